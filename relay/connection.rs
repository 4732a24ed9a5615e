//! One client: its frames in, its outbox out.
//!
//! A task of its own drives each socket. It holds no buffer while nothing is said: what arrives is
//! read into the stack, what leaves is shared with all others who get it. What is done once or seldom is
//! boxed, so that the task of a silent client is no larger than it must be to wait.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::frame::{self, Decoder, Message, Violation};
use crate::gate::{Admitted, Gate, NotAdmitted};
use crate::history::History;
use crate::metrics::Metrics;
use crate::outbox::{Close, Outbox};
use crate::policy::Credential;
use crate::protocol::{self, Refusal, Request};
use crate::rate::Rate;
use crate::registry::{Registry, is_scope};
use crate::rooms::{Command, Enter, Member};
use crate::server::places::{Place, Places, Turns};
use crate::snapshot::Cursor;
use crate::socket::Socket;
use crate::subscription::{self, Live, Wanted};

/// How long a client may take to say hello.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// How long the last frames and the closing handshake may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// The same for a client that was too slow: only so does it learn that it was.
const SLOW_CLOSE_WITHIN: Duration = Duration::from_secs(30);

/// How long before its end a client is told that its token expires; half of what is left, if that is
/// less.
const TOKEN_EXPIRES_IN: Duration = Duration::from_secs(60);

/// Bad frames after which a connection is closed.
const MOST_BAD_FRAMES: u32 = 16;

/// Requests above what a connection may do, after which it is closed.
const MOST_EXCESS: u32 = 64;

/// Bytes read at once.
const READ_AT_ONCE: usize = 16 * 1024;

/// What connections share.
pub struct Shared {
    /// The task that owns the rooms.
    pub rooms: mpsc::Sender<Command>,
    /// The position of everything that was published.
    pub cursor: watch::Receiver<Arc<str>>,
    /// What is watched.
    pub registry: watch::Receiver<Arc<Registry>>,
    /// What the journal holds for those who come back.
    pub history: Arc<History>,
    /// Who may come in; None where everybody may.
    pub gate: Option<Gate>,
    /// After so long without another frame comes a heartbeat; who is silent for two of them is gone.
    pub heartbeat: Duration,
    /// Bound of each outbox, in bytes.
    pub queue_bytes: usize,
    /// What one connection may do.
    pub limits: Limits,
    /// How many connections each user has.
    pub users: Arc<Places<String>>,
    /// How many subscribes of each user are under way.
    pub subscribing: Arc<Turns<String>>,
    /// What is counted.
    pub metrics: Metrics,
    /// Cancelled when the relay stops.
    pub stopping: CancellationToken,
}

/// What one connection may do.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Rooms that it may be in.
    pub rooms: usize,
    /// Frames a second, and for ten seconds' worth at once.
    pub frames: u32,
    /// The same of subscribes.
    pub subscribes: u32,
}

/// What a WebSocket handshake has told.
#[derive(Debug)]
pub struct Arrived {
    /// Where the client is.
    pub peer: IpAddr,
    /// What the rooms call its connection.
    pub member: Member,
    /// A token that came with it.
    pub token: Option<String>,
    /// Whether compression was agreed upon.
    pub compresses: bool,
}

/// One client's connection after the WebSocket handshake.
pub struct Connection {
    shared: Arc<Shared>,
    stream: Arc<Socket>,
    decoder: Decoder,
    outbox: Arc<Outbox>,
    member: Member,
    session: Uuid,
    peer: IpAddr,
    /// Came with the handshake, for the hello.
    token: Option<String>,
    welcomed: bool,
    /// One of its user's.
    place: Option<Place<String>>,
    frames: Rate,
    subscribes: Rate,
    /// What it asked for too often.
    excess: u32,
    pass: Option<Pass>,
    /// How many it had when it last asked for some or gave some back.
    rooms: usize,
    /// What was said and is yet to be heard: nothing is, while something is looked up.
    unheard: VecDeque<Message>,
    violation: Option<Violation>,
    looking_up: Option<BoxFuture<'static, LookedUp>>,
    heard_at: Instant,
    bad_frames: u32,
    frames_in: u64,
}

/// A good token: whose, and until when.
struct Pass {
    who: Arc<Credential>,
    expires_at: SystemTime,
    /// When the client is told, until it was.
    tell_at: Option<SystemTime>,
}

/// What had to be looked up.
enum LookedUp {
    /// Whose token a hello came with.
    Hello(Option<Result<Admitted, NotAdmitted>>, bool),
    /// Whose another token is.
    Token(Result<Admitted, NotAdmitted>),
    /// A subscription is live; None if the relay stops.
    Live(Option<Live>),
}

impl Pass {
    fn of(admitted: &Admitted) -> Pass {
        let now = SystemTime::now();
        let left = admitted.expires_at.duration_since(now).unwrap_or_default();
        Pass {
            who: admitted.bearer.who.clone(),
            expires_at: admitted.expires_at,
            tell_at: Some(admitted.expires_at - TOKEN_EXPIRES_IN.min(left / 2)),
        }
    }

    /// When something is to be done about it.
    fn next(&self) -> SystemTime {
        self.tell_at.unwrap_or(self.expires_at)
    }
}

impl Connection {
    /// A connection whose handshake is done. Boxed: a task would hold it twice, as what it was given and as
    /// what it works with.
    pub fn new(shared: Arc<Shared>, stream: Socket, arrived: Arrived) -> Box<Connection> {
        let Arrived {
            peer,
            member,
            token,
            compresses,
        } = arrived;
        let decoder = Decoder::new(protocol::LARGEST_MESSAGE);
        let stream = Arc::new(stream);
        let outbox = Outbox::leading_to(stream.clone(), compresses, shared.queue_bytes);
        Box::new(Connection {
            outbox: Arc::new(outbox),
            stream,
            decoder: match compresses {
                true => decoder.inflating(),
                false => decoder,
            },
            member,
            session: Uuid::new_v4(),
            peer,
            token,
            welcomed: false,
            place: None,
            frames: Rate::new(shared.limits.frames),
            subscribes: Rate::new(shared.limits.subscribes),
            excess: 0,
            pass: None,
            rooms: 0,
            unheard: VecDeque::new(),
            violation: None,
            looking_up: None,
            heard_at: Instant::now(),
            bad_frames: 0,
            frames_in: 0,
            shared,
        })
    }

    /// Serves the client until it or the relay is gone; `early` came right behind the handshake.
    pub async fn run(mut self: Box<Self>, early: Bytes) {
        let began = Instant::now();
        tracing::info!(connection = %self.session, peer = %self.peer, "connected");
        let heard = Box::pin(self.heard(&early)).await;
        // a piece of what the handshake was read into, all of which it would keep
        drop(early);
        let served = match heard {
            Ok(true) => self.serve(began).await,
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        Box::pin(self.leave(served, began)).await;
    }

    /// Takes leave of everybody.
    async fn leave(&mut self, served: io::Result<()>, began: Instant) {
        if self.welcomed {
            // first of all, so that nothing more is put into its outbox
            self.command(Command::Leave {
                member: self.member,
            })
            .await;
        }
        let closed = self.outbox.closed();
        self.shared.metrics.closed(closed);
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
            frames_out = self.outbox.frames_written(),
            rooms = self.rooms,
            "disconnected"
        );
    }

    /// Until one side wants to go; Ok if a farewell can still be said.
    async fn serve(&mut self, began: Instant) -> io::Result<()> {
        let beat = self.shared.heartbeat;
        let mut beat_at = began + beat;
        let mut ping_at = began + beat;
        let mut pass_at = None;
        let mut is_full = false;
        let stopping = self.shared.stopping.clone();
        loop {
            let outbox = self.outbox.clone();
            let deadline = match self.welcomed {
                true => beat_at,
                false => began + HELLO_WITHIN,
            };
            // one timer for all: each takes more than what it is for
            let next = deadline.min(ping_at).min(pass_at.unwrap_or(deadline));
            tokio::select! {
                Some(found) = async { Some(self.looking_up.as_mut()?.await) }, if self.looking_up.is_some() => {
                    self.looking_up = None;
                    self.heard_at = Instant::now();
                    if !Box::pin(self.go_on(found)).await {
                        return Ok(());
                    }
                }
                readable = self.stream.readable(), if self.looking_up.is_none() => {
                    readable?;
                    if let Some(arrived) = self.read()?
                        && !Box::pin(self.heard(&arrived)).await?
                    {
                        return Ok(());
                    }
                }
                () = outbox.filled() => {}
                writable = self.stream.writable(), if is_full => writable?,
                () = sleep_until(next) => {
                    let now = Instant::now();
                    if self.welcomed {
                        if self.outbox.told_at() + beat <= now {
                            self.beat();
                        }
                        beat_at = self.outbox.told_at() + beat;
                    } else if deadline <= now {
                        self.outbox.close(Close::NO_HELLO);
                    }
                    if ping_at <= now {
                        ping_at += beat;
                        // by the clock on the wall, which goes on while a machine sleeps
                        pass_at = self.check_pass();
                        if self.looking_up.is_none() && self.heard_at.elapsed() >= beat * 2 {
                            return Err(io::Error::new(io::ErrorKind::TimedOut, "silent for two beats"));
                        }
                        self.outbox.push(frame::ping(b""));
                    }
                    if pass_at.is_some_and(|at| at <= now) {
                        pass_at = self.check_pass();
                    }
                }
                () = stopping.cancelled(), if self.outbox.closed().is_none() => self.outbox.close(Close::GOING_AWAY),
            }
            is_full = !self.outbox.write()?;
            if self.outbox.closed().is_some() {
                return Ok(());
            }
            if pass_at.is_none() {
                pass_at = self.check_pass();
            }
        }
    }

    /// Reads what has arrived, if anything has.
    fn read(&mut self) -> io::Result<Option<Bytes>> {
        // here and nowhere around an await: it would be part of the task for as long as that lives
        let mut buffer = [0; READ_AT_ONCE];
        match self.stream.try_read(&mut buffer) {
            Ok(0) => Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "cut by the client without a close frame",
            )),
            Ok(count) => {
                self.heard_at = Instant::now();
                Ok(Some(Bytes::copy_from_slice(&buffer[..count])))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Goes on with what waited until something was looked up; false when the client wants to go, or must.
    async fn go_on(&mut self, found: LookedUp) -> bool {
        self.looked_up(found).await;
        self.outbox.closed().is_some() || self.attend().await
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
        while self.looking_up.is_none()
            && self.outbox.closed().is_none()
            && let Some(message) = self.unheard.pop_front()
        {
            self.frames_in += 1;
            if !self.frames.allows() && !matches!(message, Message::Close(_)) {
                let id = match &message {
                    Message::Text(text) => protocol::id(text),
                    _ => Value::Null,
                };
                self.too_often(id, "frames");
                continue;
            }
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
                    self.outbox.push(frame::pong(&payload));
                }
                Message::Pong => {}
                Message::Close(close) => {
                    let code = close.map_or(1000, |(code, _)| code);
                    // nothing may come after it
                    self.outbox.close(Close::by_client(code));
                    return false;
                }
            }
        }
        if self.looking_up.is_some() {
            return true;
        }
        if self.unheard.capacity() > 0 {
            self.unheard = VecDeque::new();
        }
        if let Some(violation) = self.violation.take() {
            tracing::info!(connection = %self.session, %violation, "the client broke the protocol");
            let reason = match violation.close_code() {
                1007 => "text must be UTF-8, and compressed as RFC 7692 says",
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

    /// Refuses what comes too often, and ends with whom that does not stop.
    fn too_often(&mut self, id: Value, what: &str) {
        let refusal = Refusal {
            id,
            code: "rate_limited",
            message: format!("too many {what}; wait a little"),
        };
        self.outbox.push(frame::text(refusal.text().as_bytes()));
        self.excess += 1;
        if self.excess >= MOST_EXCESS {
            self.outbox.close(Close::TOO_OFTEN);
        }
    }

    async fn obey(&mut self, request: Result<Request, Refusal>) {
        let done = match request {
            Ok(Request::Hello { .. }) if self.welcomed => Err(bad_frame(
                "hello was said already; it is the first frame only",
            )),
            Ok(Request::Hello {
                transactions,
                token,
            }) => {
                let token = token.or(self.token.take());
                let gate = self.shared.gate.clone();
                self.looking_up = Some(Box::pin(async move {
                    let admitted = match gate {
                        Some(gate) => Some(gate.admit(token.as_deref()).await),
                        None => None,
                    };
                    LookedUp::Hello(admitted, transactions)
                }));
                Ok(())
            }
            Ok(_) if !self.welcomed => Err(bad_frame("hello must be the first frame")),
            Ok(Request::Subscribe {
                id,
                rooms,
                since,
                snapshot,
            }) => {
                if self.subscribes.allows() {
                    self.subscribe(id, rooms, since, snapshot)
                } else {
                    self.too_often(id, "subscribes");
                    Ok(())
                }
            }
            Ok(Request::Unsubscribe { id, rooms }) => {
                self.unsubscribe(id, rooms).await;
                Ok(())
            }
            Ok(Request::Token { token }) => {
                if let Some(gate) = self.shared.gate.clone() {
                    self.looking_up = Some(Box::pin(async move {
                        LookedUp::Token(gate.admit(Some(&token)).await)
                    }));
                } else {
                    self.say(&token_accepted(None));
                }
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

    async fn looked_up(&mut self, found: LookedUp) {
        match found {
            LookedUp::Hello(None, transactions) => self.welcome(None, transactions).await,
            LookedUp::Hello(Some(Ok(admitted)), transactions) => {
                self.welcome(Some(admitted), transactions).await;
            }
            LookedUp::Token(Ok(admitted)) => self.renew(admitted).await,
            LookedUp::Hello(Some(Err(refused)), _) | LookedUp::Token(Err(refused)) => {
                tracing::info!(connection = %self.session, reason = refused.reason(), "token refused");
                let reason = refused.reason().into();
                self.shared.metrics.tokens_refused.of([reason]).inc();
                self.outbox.close(Close::BAD_TOKEN);
            }
            LookedUp::Live(None) => {}
            LookedUp::Live(Some(live)) => {
                self.rooms = live.of_all;
                tracing::info!(connection = %self.session, rooms = live.rooms, denied = live.denied, of_all = live.of_all, "subscribed");
            }
        }
    }

    async fn welcome(&mut self, admitted: Option<Admitted>, transactions: bool) {
        if let Some(admitted) = &admitted {
            self.place = self.shared.users.take(&admitted.bearer.who.user);
            if self.place.is_none() {
                tracing::warn!(connection = %self.session, user = admitted.bearer.who.user, "refused: too many connections of one user, see RELAY_MAX_CONNECTIONS_PER_USER");
                return self.outbox.close(Close::TOO_MANY);
            }
        }
        self.welcomed = true;
        let user = admitted.as_ref().map(|admitted| &*admitted.bearer.who.user);
        if let Some(user) = user {
            tracing::info!(connection = %self.session, user, "welcomed");
        }
        let welcome = json!({
            "type": "welcome",
            "protocol": protocol::VERSION,
            "session": self.session,
            "userId": user,
            "expiresAt": admitted.as_ref().map(|admitted| moment(admitted.expires_at)),
            "heartbeatSeconds": self.shared.heartbeat.as_secs(),
            "limits": {"rooms": self.shared.limits.rooms, "frameBytes": protocol::LARGEST_MESSAGE},
        });
        self.pass = admitted.as_ref().map(Pass::of);
        let enter = Enter {
            member: self.member,
            session: self.session,
            outbox: self.outbox.clone(),
            transactions,
            bearer: admitted.map(|admitted| admitted.bearer),
            welcome: frame::text(welcome.to_string().as_bytes()),
        };
        self.command(Command::Enter(Box::new(enter))).await;
    }

    async fn renew(&mut self, admitted: Admitted) {
        let known = self.pass.as_ref().map(|pass| &pass.who.user);
        if known != Some(&admitted.bearer.who.user) {
            tracing::info!(connection = %self.session, "token refused: another user's");
            let reason = "other_user".into();
            self.shared.metrics.tokens_refused.of([reason]).inc();
            return self.outbox.close(Close::OTHER_USER);
        }
        self.pass = Some(Pass::of(&admitted));
        let accepted = token_accepted(Some(admitted.expires_at)).to_string();
        self.command(Command::Renew {
            member: self.member,
            bearer: admitted.bearer,
            accepted: frame::text(accepted.as_bytes()),
        })
        .await;
    }

    /// Tells of a token that ends soon, and ends the connection with it; returns when to look again.
    fn check_pass(&mut self) -> Option<Instant> {
        let now = SystemTime::now();
        let pass = self.pass.as_mut()?;
        if pass.expires_at <= now {
            self.outbox.close(Close::BAD_TOKEN);
            return None;
        }
        if pass.tell_at.take_if(|tell_at| *tell_at <= now).is_some() {
            let expires_at = moment(pass.expires_at);
            self.say(&json!({"type": "token_expiring", "expiresAt": expires_at}));
        }
        let left = self.pass.as_ref()?.next().duration_since(now);
        Some(Instant::now() + left.unwrap_or_default())
    }

    fn subscribe(
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
        let mut wanted = Wanted {
            member: self.member,
            connection: self.session,
            rooms: Vec::new(),
            denied: Vec::new(),
            id,
            from: match since {
                Some(since) => subscription::From::Since(since),
                None if snapshot => subscription::From::Records,
                None => subscription::From::Now,
            },
        };
        let mut seen = std::collections::HashSet::new();
        for room in rooms {
            if !seen.insert(room.clone()) {
                continue;
            }
            let code = match registry.has_room(&room) {
                false => "bad_room",
                // nobody is asked about more than there can be
                true if wanted.rooms.len() >= self.shared.limits.rooms => "too_many_rooms",
                true => {
                    wanted.rooms.push(room);
                    continue;
                }
            };
            wanted.denied.push(json!({"room": room, "code": code}));
        }
        let who = self.pass.as_ref().map(|pass| pass.who.clone());
        let live = subscription::subscribe(self.shared.clone(), who, wanted);
        self.looking_up = Some(Box::pin(async { LookedUp::Live(live.await) }));
        Ok(())
    }

    async fn unsubscribe(&mut self, id: Value, rooms: Vec<String>) {
        let (reply, replied) = oneshot::channel();
        self.command(Command::Unsubscribe {
            member: self.member,
            rooms,
            id,
            reply,
        })
        .await;
        if let Ok((had, of_all)) = replied.await {
            self.rooms = of_all;
            tracing::info!(connection = %self.session, rooms = had, of_all, "unsubscribed");
        }
    }

    fn beat(&self) {
        let now = moment(SystemTime::now());
        self.say(&json!({"type": "heartbeat", "timestamp": now, "cursor": &**self.shared.cursor.borrow()}));
    }

    /// The last frames and the closing handshake (RFC 6455, section 7.1.1), as far as the client lets.
    async fn part(&mut self) -> io::Result<()> {
        let closed = self.outbox.closed();
        let within = match closed {
            Some(Close::TOO_SLOW) => SLOW_CLOSE_WITHIN,
            _ => CLOSE_WITHIN,
        };
        if let Some(close) = closed {
            self.outbox.part(frame::close(close.code, close.reason));
        }
        let farewell = async {
            while !self.outbox.write()? {
                self.stream.writable().await?;
            }
            // closing with unread bytes would reset the connection and lose the close frame
            self.stream.end()?;
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

/// A time as frames tell it.
fn moment(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

fn token_accepted(expires_at: Option<SystemTime>) -> Value {
    json!({"type": "token_accepted", "expiresAt": expires_at.map(moment)})
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
    use crate::inquiries::Inquiries;
    use crate::policy::Placement;
    use crate::postgres::Database;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

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
        let asking = || Inquiries::new(nowhere.clone(), "test", 1);
        let placement = Placement::new(asking());
        let shared = Arc::new(Shared {
            rooms: rooms.clone(),
            cursor,
            history: Arc::new(History::new(asking(), placement, registry.clone())),
            gate: None,
            registry,
            heartbeat: Duration::from_secs(25),
            queue_bytes: 1 << 20,
            limits: Limits {
                rooms: 1000,
                frames: 100,
                subscribes: 20,
            },
            users: Places::new(1),
            subscribing: Turns::new(1),
            metrics: Metrics::default(),
            stopping: CancellationToken::new(),
        });
        let arrived = Arrived {
            peer: peer.ip(),
            member: 7,
            token: None,
            compresses: false,
        };
        tokio::spawn(Connection::new(shared, stream.into(), arrived).run(Bytes::new()));
        let hello = masked(0x1, br#"{"type":"hello"}"#);
        client.write_all(&hello).await.unwrap();
        let Some(Command::Enter(enter)) = commands.recv().await else {
            panic!("it does not enter");
        };
        let outbox = enter.outbox.clone();
        outbox.push(enter.welcome);
        // the rooms are busy with others: they learn late that it left, and tell it something before
        rooms.try_send(Command::Leave { member: 1 }).unwrap();
        let close = masked(0x8, &1000_u16.to_be_bytes());
        client.write_all(&close).await.unwrap();
        while outbox.closed().is_none() {
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
