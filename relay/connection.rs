//! One client: its frames in, its outbox out.
//!
//! A task of its own drives each socket. It holds no buffer while nothing is said: what arrives is
//! read into the stack, what leaves is shared with all others who get it. All that waits goes out in
//! one vectored write.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures::future::BoxFuture;
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::frame::{self, Decoder, Message, Violation};
use crate::history::History;
use crate::outbox::{Close, Outbox};
use crate::protocol::{self, Refusal, Request};
use crate::registry::{Registry, is_scope};
use crate::rooms::{Command, Member};
use crate::snapshot::Cursor;
use crate::subscription;

/// How long a client may take to say hello.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// How long the last frames and the closing handshake may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// The same for a client that was too slow: only so does it learn that it was.
const SLOW_CLOSE_WITHIN: Duration = Duration::from_secs(30);

/// Bad frames after which a connection is closed.
const MOST_BAD_FRAMES: u32 = 16;

/// Most frames in one write; Linux takes 1024 (`IOV_MAX`).
const FRAMES_A_WRITE: usize = 64;

/// Bytes read at once.
const READ_AT_ONCE: usize = 16 * 1024;

/// What connections share.
#[derive(Clone)]
pub struct Shared {
    /// The task that owns the rooms.
    pub rooms: mpsc::Sender<Command>,
    /// The position of everything that was published.
    pub cursor: watch::Receiver<Arc<str>>,
    /// What is watched.
    pub registry: watch::Receiver<Arc<Registry>>,
    /// What the journal holds for those who come back.
    pub history: Arc<History>,
    /// After so long without another frame comes a heartbeat; who is silent for two of them is gone.
    pub heartbeat: Duration,
    /// Bound of each outbox, in bytes.
    pub queue_bytes: usize,
    /// Cancelled when the relay stops.
    pub stopping: CancellationToken,
}

/// One client's connection after the WebSocket handshake.
pub struct Connection {
    shared: Shared,
    stream: TcpStream,
    decoder: Decoder,
    outbox: Arc<Outbox>,
    /// Taken from the outbox; of the first frame a part may be written already.
    leaving: VecDeque<Bytes>,
    member: Member,
    session: Uuid,
    peer: SocketAddr,
    welcomed: bool,
    rooms: std::collections::HashSet<String>,
    /// What was said and is yet to be heard: nothing is, while a subscription is looked up.
    unheard: VecDeque<Message>,
    violation: Option<Violation>,
    resuming: Option<BoxFuture<'static, ()>>,
    heard_at: Instant,
    /// Pings and pongs, which the client's own code does not see.
    unseen: u64,
    bad_frames: u32,
    frames_in: u64,
    frames_out: u64,
}

impl Connection {
    /// A connection whose handshake is done; `early` came right behind it.
    pub fn new(shared: Shared, stream: TcpStream, peer: SocketAddr, member: Member) -> Connection {
        Connection {
            outbox: Arc::new(Outbox::new(shared.queue_bytes)),
            shared,
            stream,
            decoder: Decoder::new(protocol::LARGEST_MESSAGE),
            leaving: VecDeque::new(),
            member,
            session: Uuid::new_v4(),
            peer,
            welcomed: false,
            rooms: std::collections::HashSet::new(),
            unheard: VecDeque::new(),
            violation: None,
            resuming: None,
            heard_at: Instant::now(),
            unseen: 0,
            bad_frames: 0,
            frames_in: 0,
            frames_out: 0,
        }
    }

    /// Serves the client until it or the relay is gone.
    pub async fn run(mut self, early: Bytes) {
        let began = Instant::now();
        tracing::info!(connection = %self.session, peer = %self.peer, "connected");
        let served = match self.heard(&early).await {
            Ok(true) => self.serve(began).await,
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        if self.welcomed {
            // first of all, so that nothing more is put into its outbox
            self.command(Command::Leave {
                member: self.member,
            })
            .await;
        }
        let closed = self.outbox.closed();
        let reason = match (&served, closed) {
            (_, Some(close)) => format!("{} {}", close.code, close.reason),
            (Err(error), None) => error.to_string(),
            (Ok(()), None) => "closed by the client".to_owned(),
        };
        if let (Ok(()), Some(_)) = (&served, closed) {
            tracing::info!(connection = %self.session, reason, "closing");
        }
        if served.is_ok()
            && let Err(error) = self.part().await
        {
            tracing::debug!(connection = %self.session, %error, "the client did not wait for the end");
        }
        tracing::info!(
            connection = %self.session,
            reason,
            seconds = began.elapsed().as_secs_f64(),
            frames_in = self.frames_in,
            frames_out = self.frames_out,
            rooms = self.rooms.len(),
            "disconnected"
        );
    }

    /// Until one side wants to go; Ok if a farewell can still be said.
    async fn serve(&mut self, began: Instant) -> io::Result<()> {
        let beat = self.shared.heartbeat;
        let mut deadline = began + HELLO_WITHIN;
        let mut ping_at = began + beat;
        let mut said = 0;
        let stopping = self.shared.stopping.clone();
        loop {
            let outbox = self.outbox.clone();
            tokio::select! {
                () = async { if let Some(resuming) = &mut self.resuming { resuming.await } }, if self.resuming.is_some() => {
                    self.resuming = None;
                    self.heard_at = Instant::now();
                    if !self.attend().await {
                        return Ok(());
                    }
                }
                readable = self.stream.readable(), if self.resuming.is_none() => {
                    readable?;
                    if !self.read().await? {
                        return Ok(());
                    }
                }
                () = outbox.filled() => self.outbox.take(&mut self.leaving),
                writable = self.stream.writable(), if !self.leaving.is_empty() => writable?,
                () = sleep_until(deadline) => {
                    if self.welcomed {
                        self.beat();
                        deadline = Instant::now() + beat;
                    } else {
                        self.outbox.close(Close::NO_HELLO);
                    }
                }
                () = sleep_until(ping_at) => {
                    ping_at += beat;
                    if self.resuming.is_none() && self.heard_at.elapsed() >= beat * 2 {
                        return Err(io::Error::new(io::ErrorKind::TimedOut, "silent for two beats"));
                    }
                    self.unseen += u64::from(self.outbox.push(frame::ping(b"")));
                }
                () = stopping.cancelled(), if self.outbox.closed().is_none() => self.outbox.close(Close::GOING_AWAY),
            }
            self.write()?;
            if self.outbox.closed().is_some() {
                return Ok(());
            }
            let frames = self.outbox.pushed() - self.unseen;
            if self.welcomed && frames != said {
                said = frames;
                deadline = Instant::now() + beat;
            }
        }
    }

    /// Reads what has arrived; false when the client wants to go, or must.
    async fn read(&mut self) -> io::Result<bool> {
        let mut buffer = [0; READ_AT_ONCE];
        match self.stream.try_read(&mut buffer) {
            Ok(0) => Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "cut by the client without a close frame",
            )),
            Ok(count) => {
                self.heard_at = Instant::now();
                // off the stack, so that the future of a silent connection stays small
                let arrived = Bytes::copy_from_slice(&buffer[..count]);
                Box::pin(self.heard(&arrived)).await
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(error),
        }
    }

    async fn heard(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let decoded = self.decoder.decode(bytes, |message| {
            let last = matches!(message, Message::Close(_));
            self.unheard.push_back(message);
            !last
        });
        self.violation = decoded.err();
        Ok(self.attend().await)
    }

    /// Does what was asked, one thing after the other; false when the client wants to go, or must.
    async fn attend(&mut self) -> bool {
        while self.resuming.is_none()
            && let Some(message) = self.unheard.pop_front()
        {
            self.frames_in += 1;
            match message {
                Message::Text(text) => self.obey(protocol::read(&text)).await,
                Message::Binary => {
                    self.obey(Err(Refusal {
                        id: Value::Null,
                        code: "bad_frame",
                        message: "a binary frame; frames are JSON in text frames".to_owned(),
                    }))
                    .await
                }
                Message::Ping(payload) => {
                    self.unseen += u64::from(self.outbox.push(frame::pong(&payload)));
                }
                Message::Pong => {}
                Message::Close(close) => {
                    let code = close.map_or(1000, |(code, _)| code);
                    // nothing may come after it
                    self.outbox.close(Close {
                        code,
                        reason: "closed by the client",
                    });
                    return false;
                }
            }
        }
        if self.resuming.is_some() {
            return true;
        }
        if self.unheard.capacity() > 0 {
            self.unheard = VecDeque::new();
        }
        if let Some(violation) = self.violation.take() {
            tracing::info!(connection = %self.session, %violation, "the client broke the protocol");
            let reason = match violation.close_code() {
                1007 => "text must be UTF-8",
                1009 => "the frame is too large",
                _ => "not RFC 6455",
            };
            self.outbox.close(Close {
                code: violation.close_code(),
                reason,
            });
            return false;
        }
        true
    }

    async fn obey(&mut self, request: Result<Request, Refusal>) {
        let done = match request {
            Ok(Request::Hello { .. }) if self.welcomed => Err(bad_frame(
                "hello was said already; it is the first frame only",
            )),
            Ok(Request::Hello { transactions }) => {
                self.welcome(transactions).await;
                Ok(())
            }
            Ok(_) if !self.welcomed => Err(bad_frame("hello must be the first frame")),
            Ok(Request::Subscribe {
                id,
                rooms,
                since,
                snapshot,
            }) => self.subscribe(id, rooms, since, snapshot).await,
            Ok(Request::Unsubscribe { id, rooms }) => {
                self.unsubscribe(id, rooms).await;
                Ok(())
            }
            Ok(Request::Ping { id }) => {
                self.say(
                    &json!({"type": "pong", "id": id, "cursor": &**self.shared.cursor.borrow()}),
                );
                Ok(())
            }
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = done {
            self.outbox.push(frame::text(refusal.text().as_bytes()));
            self.bad_frames += 1;
            if self.bad_frames >= MOST_BAD_FRAMES {
                self.outbox.close(Close::BAD_FRAMES);
            }
        }
    }

    fn say(&self, frame: &Value) {
        self.outbox.push(frame::text(frame.to_string().as_bytes()));
    }

    async fn command(&mut self, command: Command) {
        // the rooms' task ends after the last connection: there is always somebody to hear
        let _ = self.shared.rooms.send(command).await;
    }

    async fn welcome(&mut self, transactions: bool) {
        self.welcomed = true;
        self.say(&json!({
            "type": "welcome",
            "protocol": protocol::VERSION,
            "session": self.session,
            "userId": null,
            "expiresAt": null,
            "heartbeatSeconds": self.shared.heartbeat.as_secs(),
            "limits": {"rooms": protocol::MOST_ROOMS, "frameBytes": protocol::LARGEST_MESSAGE},
        }));
        self.command(Command::Enter {
            member: self.member,
            outbox: self.outbox.clone(),
            transactions,
        })
        .await;
    }

    async fn subscribe(
        &mut self,
        id: Value,
        rooms: Vec<String>,
        since: Option<String>,
        snapshot: bool,
    ) -> Result<(), Refusal> {
        if snapshot && let Some(room) = rooms.iter().find(|room| is_scope(room)) {
            return Err(Refusal {
                id,
                ..bad_frame(&format!(
                    "subscribe: \"snapshot\" is for rooms of records, not for {room}"
                ))
            });
        }
        let since = match since.as_deref().map(str::parse::<Cursor>).transpose() {
            Ok(since) => since,
            Err(bad) => {
                return Err(Refusal {
                    id,
                    code: "bad_cursor",
                    message: bad.to_string(),
                });
            }
        };
        let registry = self.shared.registry.borrow().clone();
        let mut granted = Vec::new();
        let mut denied = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for room in rooms {
            if !seen.insert(room.clone()) {
                continue;
            }
            if !registry.has_room(&room) {
                denied.push(json!({"room": room, "code": "bad_room"}));
            } else if self.rooms.contains(&room) || self.rooms.len() < protocol::MOST_ROOMS {
                self.rooms.insert(room.clone());
                granted.push(room);
            } else {
                denied.push(json!({"room": room, "code": "too_many_rooms"}));
            }
        }
        let mut answer = Map::new();
        answer.insert("type".to_owned(), "subscribed".into());
        answer.insert("id".to_owned(), id);
        answer.insert("rooms".to_owned(), granted.clone().into());
        tracing::info!(connection = %self.session, rooms = granted.len(), denied = denied.len(), of_all = self.rooms.len(), "subscribed");
        if !denied.is_empty() {
            answer.insert("denied".to_owned(), denied.into());
        }
        let member = self.member;
        match since {
            Some(since) if !granted.is_empty() => {
                let resume =
                    subscription::resume(self.shared.clone(), member, granted, since, answer);
                self.resuming = Some(Box::pin(resume));
            }
            _ if snapshot && !granted.is_empty() => {
                let begin =
                    subscription::from_snapshot(self.shared.clone(), member, granted, answer);
                self.resuming = Some(Box::pin(begin));
            }
            _ => {
                let rooms = granted;
                self.command(Command::Subscribe {
                    member,
                    rooms,
                    answer,
                })
                .await;
            }
        }
        Ok(())
    }

    async fn unsubscribe(&mut self, id: Value, rooms: Vec<String>) {
        let had: Vec<String> = rooms
            .into_iter()
            .filter(|room| self.rooms.remove(room))
            .collect();
        tracing::info!(connection = %self.session, rooms = had.len(), of_all = self.rooms.len(), "unsubscribed");
        let answer = json!({"type": "unsubscribed", "id": id, "rooms": had});
        self.command(Command::Unsubscribe {
            member: self.member,
            rooms: had,
            answer,
        })
        .await;
    }

    fn beat(&self) {
        let now = humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string();
        self.say(&json!({"type": "heartbeat", "timestamp": now, "cursor": &**self.shared.cursor.borrow()}));
    }

    /// Writes what the socket takes without waiting, many frames at a time.
    fn write(&mut self) -> io::Result<()> {
        if self.leaving.is_empty() {
            self.outbox.take(&mut self.leaving);
        }
        while !self.leaving.is_empty() {
            let mut slices = [IoSlice::new(&[]); FRAMES_A_WRITE];
            let mut count = 0;
            for (slice, frame) in slices.iter_mut().zip(&self.leaving) {
                *slice = IoSlice::new(frame);
                count += 1;
            }
            match self.stream.try_write_vectored(&slices[..count]) {
                Ok(written) => {
                    let frames = self.forget(written);
                    self.outbox.written(written, frames);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if self.leaving.capacity() > FRAMES_A_WRITE {
            self.leaving = VecDeque::new();
        }
        Ok(())
    }

    /// Lets go of what is written; returns how many frames ended in it.
    fn forget(&mut self, mut written: usize) -> usize {
        let mut ended = 0;
        while let Some(first) = self.leaving.front_mut() {
            if written < first.len() {
                first.advance(written);
                return ended;
            }
            written -= first.len();
            self.leaving.pop_front();
            self.frames_out += 1;
            ended += 1;
        }
        ended
    }

    /// The last frames and the closing handshake (RFC 6455, section 7.1.1), as far as the client lets.
    async fn part(&mut self) -> io::Result<()> {
        self.outbox.take(&mut self.leaving);
        let closed = self.outbox.closed();
        let mut within = CLOSE_WITHIN;
        if closed == Some(Close::TOO_SLOW) {
            // of what waits only a frame that is begun must be ended
            self.leaving.truncate(1);
            within = SLOW_CLOSE_WITHIN;
        }
        let last = closed.map(|close| frame::close(close.code, close.reason));
        self.leaving.extend(last);
        let farewell = async {
            loop {
                self.write()?;
                if self.leaving.is_empty() {
                    break;
                }
                self.stream.writable().await?;
            }
            // closing with unread bytes would reset the connection and lose the close frame
            socket2::SockRef::from(&self.stream).shutdown(std::net::Shutdown::Write)?;
            let mut ignored = [0; 4096];
            loop {
                self.stream.readable().await?;
                match self.stream.try_read(&mut ignored) {
                    Ok(0) => return Ok(()),
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        };
        // a client that does not finish is left
        timeout(within, farewell).await.unwrap_or(Ok(()))
    }
}

fn bad_frame(message: &str) -> Refusal {
    Refusal {
        id: Value::Null,
        code: "bad_frame",
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::Database;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A text or another frame of a client, its mask zero.
    fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let header = [0x80 | opcode, 0x80 | payload.len() as u8, 0, 0, 0, 0];
        [&header, payload].concat()
    }

    #[tokio::test]
    async fn nothing_comes_after_a_close_frame() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let (rooms, mut commands) = mpsc::channel(1);
        let (_cursor, cursor) = watch::channel(Arc::from(""));
        let (_registry, registry) = watch::channel(Arc::new(Registry::default()));
        let nowhere = Database::of("postgresql://nobody@127.0.0.1:1/nothing").unwrap();
        let shared = Shared {
            rooms: rooms.clone(),
            cursor,
            history: Arc::new(History::new(nowhere, registry.clone())),
            registry,
            heartbeat: Duration::from_secs(25),
            queue_bytes: 1 << 20,
            stopping: CancellationToken::new(),
        };
        tokio::spawn(Connection::new(shared, stream, peer, 7).run(Bytes::new()));
        let hello = masked(0x1, br#"{"type":"hello"}"#);
        client.write_all(&hello).await.unwrap();
        let Some(Command::Enter { outbox, .. }) = commands.recv().await else {
            panic!("it does not enter");
        };
        // the rooms are busy with others: they learn late that it left, and tell it something before
        rooms.try_send(Command::Leave { member: 1 }).unwrap();
        let close = masked(0x8, &1000_u16.to_be_bytes());
        client.write_all(&close).await.unwrap();
        while outbox.pushed() == 1 && outbox.closed().is_none() {
            tokio::task::yield_now().await;
        }
        outbox.push(frame::text(b"late"));
        drop(rooms);
        let left = async { while commands.recv().await.is_some() {} };
        let mut told = Vec::new();
        let (read, ()) = tokio::join!(
            async {
                let read = client.read_to_end(&mut told).await;
                drop(client);
                read
            },
            left
        );
        read.unwrap();
        let told = String::from_utf8_lossy(&told);
        assert!(told.contains("welcome"), "{told}");
        assert!(!told.contains("late"), "{told}");
    }
}
