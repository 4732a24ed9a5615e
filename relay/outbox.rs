//! What waits for one connection: a queue of whole frames, bounded in bytes.
//!
//! Whoever has something for a connection puts it here and goes on; it is taken out at the pace of the
//! connection's socket. A connection that does not keep up loses its queue and is closed with 4508: it
//! slows no one else, and comes back with its cursor.
//!
//! All that waits goes out in one vectored write, of whoever comes first: what the connection itself has to
//! say is written by its task, what many get by few tasks of the [`Post`], and what few get, while nothing
//! else is to be told, by whoever tells it. A socket that takes no more is left to the connection's task,
//! which waits for it.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::frame::Frame;
use crate::socket::Socket;

/// Most frames in one write; Linux takes 1024 (`IOV_MAX`).
const FRAMES_A_WRITE: usize = 64;

/// Bytes after which nothing more is added to a write: a socket takes little more, and what is to be
/// compressed is so by who writes.
const BYTES_A_WRITE: usize = 256 * 1024;

/// Outboxes that one task of the post empties, one after the other.
const OUTBOXES_A_ROUND: usize = 64;

/// Why a connection ends: the close code and reason that its client is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Close {
    /// RFC 6455, section 7.4, or a code of `relay/PROTOCOL.md`.
    pub code: u16,
    /// For people.
    pub reason: &'static str,
}

impl Close {
    /// The relay stops.
    pub const GOING_AWAY: Close = Close {
        code: 1001,
        reason: "relay stops",
    };
    /// Frame after frame that made no sense.
    pub const BAD_FRAMES: Close = Close {
        code: 4400,
        reason: "too many bad frames",
    };
    /// No token, or one that is not good (any more).
    pub const BAD_TOKEN: Close = Close {
        code: 4401,
        reason: "the token is missing, bad or expired",
    };
    /// Thrown out by an administrator.
    pub const DISCONNECTED: Close = Close {
        code: 4403,
        reason: "disconnected by an administrator",
    };
    /// A token of somebody else.
    pub const OTHER_USER: Close = Close {
        code: 4403,
        reason: "the token is another user's",
    };
    /// No `hello` in time.
    pub const NO_HELLO: Close = Close {
        code: 4408,
        reason: "no hello in time",
    };
    /// Request after request, more often than it may.
    pub const TOO_OFTEN: Close = Close {
        code: 4429,
        reason: "too many requests",
    };
    /// Its user has as many connections as one may.
    pub const TOO_MANY: Close = Close {
        code: 4429,
        reason: "too many connections of this user",
    };
    /// More waited than may wait.
    pub const TOO_SLOW: Close = Close {
        code: 4508,
        reason: "too slow: come back with the cursor",
    };
    /// Those that the relay may say of itself, each code once.
    pub const OF_THE_RELAY: [Close; 7] = [
        Close::GOING_AWAY,
        Close::BAD_FRAMES,
        Close::BAD_TOKEN,
        Close::DISCONNECTED,
        Close::NO_HELLO,
        Close::TOO_OFTEN,
        Close::TOO_SLOW,
    ];

    /// The client went, with this code.
    pub fn by_client(code: u16) -> Close {
        Close {
            code,
            reason: BY_CLIENT,
        }
    }

    /// Whether it was the client who went.
    pub fn is_by_client(self) -> bool {
        self.reason == BY_CLIENT
    }
}

const BY_CLIENT: &str = "closed by the client";

/// The queue of one connection; shared by the rooms, which fill it, and whoever empties it.
#[derive(Debug)]
pub struct Outbox {
    queue: Mutex<Queue>,
    filled: Notify,
    limit: usize,
    exit: Option<Exit>,
}

#[derive(Debug)]
struct Queue {
    frames: VecDeque<Frame>,
    /// Bytes, as plain frames, in `frames` and in what was taken and is not written yet.
    bytes: usize,
    /// Whether somebody is on the way who will take what waits.
    is_tended: bool,
    /// When something was last put in that the client's code will see.
    told_at: Instant,
    closed: Option<Close>,
}

/// Where it leads. Locked for as long as somebody writes: frames stay in order, and whoever puts something
/// in need not wait.
#[derive(Debug)]
struct Exit {
    socket: Arc<Socket>,
    compresses: bool,
    leaving: Mutex<Leaving>,
}

/// Taken out, and not written yet.
#[derive(Debug, Default)]
struct Leaving {
    frames: VecDeque<Frame>,
    /// Bytes of the first of them that are written already.
    begun: usize,
    /// Frames that were ever written.
    written: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // nothing that is done under these locks leaves half a change behind
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Outbox {
    /// At most `limit` bytes wait (and one frame more, so that a frame of any size can pass), until
    /// somebody takes them.
    pub fn new(limit: usize) -> Outbox {
        let queue = Queue {
            frames: VecDeque::new(),
            bytes: 0,
            is_tended: false,
            told_at: Instant::now(),
            closed: None,
        };
        Outbox {
            queue: Mutex::new(queue),
            filled: Notify::new(),
            limit,
            exit: None,
        }
    }

    /// The same, and it leads to a socket.
    pub fn leading_to(socket: Arc<Socket>, compresses: bool, limit: usize) -> Outbox {
        let exit = Exit {
            socket,
            compresses,
            leaving: Mutex::default(),
        };
        Outbox {
            exit: Some(exit),
            ..Outbox::new(limit)
        }
    }

    /// Puts a frame behind those that wait; false if the connection is closed, or closes by this.
    pub fn push(&self, frame: Frame) -> bool {
        let put = self.put(frame);
        if put == Some(true) {
            self.filled.notify_one();
        }
        put.is_some()
    }

    /// The same; whether somebody has to be sent for it, None if the connection is closed.
    fn put(&self, frame: Frame) -> Option<bool> {
        let mut queue = lock(&self.queue);
        if queue.closed.is_some() {
            return None;
        }
        if queue.bytes > self.limit {
            drop(queue);
            self.close(Close::TOO_SLOW);
            return None;
        }
        queue.bytes += cost(&frame);
        if !frame.is_control() {
            queue.told_at = Instant::now();
        }
        queue.frames.push_back(frame);
        Some(!std::mem::replace(&mut queue.is_tended, true))
    }

    /// Writes a frame at once where nothing waits before it; else it is put behind that. `now` is this moment,
    /// asked for once for all who get the frame.
    pub fn send(&self, frame: &Frame, now: Instant) {
        if !self.write_first(frame, now) {
            self.push(frame.clone());
        }
    }

    /// False if something waits before it, or may.
    fn write_first(&self, frame: &Frame, now: Instant) -> bool {
        let Some(exit) = &self.exit else {
            return false;
        };
        let Ok(mut leaving) = exit.leaving.try_lock() else {
            return false;
        };
        let mut queue = lock(&self.queue);
        if queue.closed.is_some() || !queue.frames.is_empty() || !leaving.frames.is_empty() {
            return false;
        }
        if !frame.is_control() {
            queue.told_at = now;
        }
        // what is put in from here on is written after it: whoever does must lock what is leaving
        drop(queue);
        let form = exit.form(frame);
        let written = exit.socket.try_write(&[IoSlice::new(form)]).unwrap_or(0);
        if written == form.len() && matches!(exit.socket.flush(), Ok(true)) {
            leaving.written += 1;
            return true;
        }
        lock(&self.queue).bytes += cost(frame);
        leaving.frames.push_back(frame.clone());
        leaving.begun = written;
        drop(leaving);
        // the connection's own task waits for the socket, or finds out what is wrong with it
        self.filled.notify_one();
        true
    }

    /// Puts what a client missed behind what waits, all at once. It was asked for, and whoever put it
    /// together has bounded it, so it does not make the connection too slow by itself.
    pub fn push_all(&self, frames: Vec<Frame>) {
        let mut queue = lock(&self.queue);
        if queue.bytes > self.limit {
            // whoever asks again and again without reading is too slow like anybody
            drop(queue);
            self.close(Close::TOO_SLOW);
            return;
        }
        if queue.closed.is_none() {
            queue.bytes += frames.iter().map(cost).sum::<usize>();
            queue.told_at = Instant::now();
            queue.frames.extend(frames);
            queue.is_tended = true;
        }
        drop(queue);
        self.filled.notify_one();
    }

    /// When something was last put in that the client's own code will see; at first, when it came.
    pub fn told_at(&self) -> Instant {
        lock(&self.queue).told_at
    }

    /// How many bytes wait.
    pub fn bytes(&self) -> usize {
        lock(&self.queue).bytes
    }

    /// Most bytes that may wait.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Ends the connection; the first reason counts. What waits still goes out, except when it
    /// waits because the client is too slow.
    pub fn close(&self, close: Close) {
        let mut queue = lock(&self.queue);
        if queue.closed.is_some() {
            return;
        }
        queue.closed = Some(close);
        if close == Close::TOO_SLOW {
            queue.frames.clear();
        }
        drop(queue);
        self.filled.notify_one();
    }

    /// Why the connection ends, if it does.
    pub fn closed(&self) -> Option<Close> {
        lock(&self.queue).closed
    }

    /// Waits until there is something to take that nobody else does, or the connection ends.
    pub async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Moves all that waits to the end of `taken`; false if nothing does. Only then is somebody woken
    /// again for what comes.
    pub fn take(&self, taken: &mut VecDeque<Frame>) -> bool {
        let mut queue = lock(&self.queue);
        if queue.frames.is_empty() {
            queue.is_tended = false;
            return false;
        }
        if taken.is_empty() {
            std::mem::swap(taken, &mut queue.frames);
        } else {
            taken.append(&mut queue.frames);
        }
        true
    }

    /// Tells that so many frames of what was taken are written, of so many bytes as plain ones.
    pub fn written(&self, bytes: usize, frames: usize) {
        let mut queue = lock(&self.queue);
        queue.bytes = queue.bytes.saturating_sub(bytes + frames * FRAME_COST);
    }

    /// Writes what the socket takes without waiting, many frames at a time; false if it must be waited for.
    pub fn write(&self) -> io::Result<bool> {
        let Some(exit) = &self.exit else {
            return Ok(true);
        };
        let mut leaving = lock(&exit.leaving);
        if !exit.socket.flush()? {
            return Ok(false);
        }
        while !leaving.frames.is_empty() || self.take(&mut leaving.frames) {
            let mut slices = [IoSlice::new(&[]); FRAMES_A_WRITE];
            let mut count = 0;
            let mut bytes = 0;
            let mut begun = leaving.begun;
            for (slice, frame) in slices.iter_mut().zip(&leaving.frames) {
                let rest = &exit.form(frame)[begun..];
                *slice = IoSlice::new(rest);
                begun = 0;
                count += 1;
                bytes += rest.len();
                if bytes >= BYTES_A_WRITE {
                    break;
                }
            }
            match exit.socket.try_write(&slices[..count]) {
                Ok(written) => self.forget(exit, &mut leaving, written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        if leaving.frames.capacity() > FRAMES_A_WRITE {
            leaving.frames = VecDeque::new();
        }
        exit.socket.flush()
    }

    /// Lets go of frames that are written.
    fn forget(&self, exit: &Exit, leaving: &mut Leaving, written: usize) {
        leaving.begun += written;
        let (mut bytes, mut frames) = (0, 0);
        while let Some(first) = leaving.frames.front() {
            let size = exit.form(first).len();
            if leaving.begun < size {
                break;
            }
            leaving.begun -= size;
            bytes += first.size();
            frames += 1;
            leaving.frames.pop_front();
        }
        leaving.written += frames as u64;
        self.written(bytes, frames);
    }

    /// Puts the last frame behind all that waits; of a client that is too slow only a frame that is begun
    /// goes before it.
    pub fn part(&self, last: Frame) {
        let Some(exit) = &self.exit else {
            return;
        };
        let mut leaving = lock(&exit.leaving);
        self.take(&mut leaving.frames);
        if self.closed() == Some(Close::TOO_SLOW) {
            leaving.frames.truncate(1);
        }
        leaving.frames.push_back(last);
    }

    /// How many frames were ever written.
    pub fn frames_written(&self) -> u64 {
        let leaving = self.exit.as_ref().map(|exit| lock(&exit.leaving));
        leaving.map_or(0, |leaving| leaving.written)
    }
}

impl Exit {
    /// A frame as it goes out here.
    fn form<'a>(&self, frame: &'a Frame) -> &'a [u8] {
        match self.compresses {
            true => frame.compressed(),
            false => frame.plain(),
        }
    }
}

/// What a frame costs beside its bytes, about: an empty one is not free.
const FRAME_COST: usize = 100;

fn cost(frame: &Frame) -> usize {
    frame.size() + FRAME_COST
}

/// Outboxes with something for which nobody is on the way yet: few tasks empty many of them. To wake each
/// connection's task costs as much as what it then writes.
#[derive(Debug, Default)]
pub struct Post {
    waiting: Vec<Arc<Outbox>>,
}

impl Post {
    /// Puts a frame into an outbox; see [`Outbox::push`].
    pub fn put(&mut self, outbox: &Arc<Outbox>, frame: Frame) {
        if outbox.put(frame) != Some(true) {
            return;
        }
        if outbox.exit.is_none() {
            return outbox.filled.notify_one();
        }
        self.waiting.push(outbox.clone());
        if self.waiting.len() >= OUTBOXES_A_ROUND {
            self.send();
        }
    }

    /// Has all of them written.
    pub fn send(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let round = std::mem::take(&mut self.waiting);
        tokio::spawn(async move {
            for outbox in round {
                // the connection's own task waits for the socket, or finds out what is wrong with it
                if !matches!(outbox.write(), Ok(true)) {
                    outbox.filled.notify_one();
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::frame;

    fn frames(outbox: &Outbox) -> usize {
        let mut taken = VecDeque::new();
        outbox.take(&mut taken);
        taken.len()
    }

    #[test]
    fn a_queue_beyond_its_bound_is_dropped_and_the_connection_closed() {
        let outbox = Outbox::new(1000);
        let frame = frame::text(&[b'x'; 600]);
        assert!(outbox.push(frame.clone()));
        assert!(outbox.push(frame.clone()));
        assert!(!outbox.push(frame.clone()));
        assert_eq!(outbox.closed(), Some(Close::TOO_SLOW));
        assert_eq!(frames(&outbox), 0);
    }

    #[test]
    fn a_frame_of_any_size_passes_when_nothing_waits() {
        let outbox = Outbox::new(1000);
        assert!(outbox.push(frame::text(&[b'x'; 50_000])));
        let mut taken = VecDeque::new();
        outbox.take(&mut taken);
        assert!(!outbox.push(frame::text(b"more")), "taken is not written");
    }

    #[test]
    fn a_frame_without_payload_is_not_free() {
        let outbox = Outbox::new(100_000);
        let put = (0..).take_while(|_| outbox.push(frame::pong(b""))).count();
        assert!(put <= 1000, "{put}");
        let replays = Outbox::new(100_000);
        let all = vec![frame::pong(b""); 10_000];
        replays.push_all(all);
        assert!(!replays.push(frame::pong(b"")), "they were counted, too");
    }

    #[test]
    fn what_is_written_makes_room() {
        let outbox = Outbox::new(1000);
        let frame = frame::text(&[b'x'; 600]);
        for _ in 0..10 {
            assert!(outbox.push(frame.clone()));
            assert_eq!(frames(&outbox), 1);
            outbox.written(frame.size(), 1);
        }
    }

    #[test]
    fn what_waits_goes_out_before_an_orderly_close() {
        let outbox = Outbox::new(1000);
        outbox.push(frame::text(b"last"));
        outbox.close(Close::GOING_AWAY);
        outbox.close(Close::TOO_SLOW);
        assert_eq!(outbox.closed(), Some(Close::GOING_AWAY));
        assert_eq!(frames(&outbox), 1);
    }

    #[tokio::test]
    async fn whoever_takes_is_woken_again_only_when_they_found_nothing() {
        let outbox = Outbox::new(1000);
        let is_woken = || tokio::time::timeout(std::time::Duration::ZERO, outbox.filled());
        let mut taken = VecDeque::new();
        outbox.push(frame::text(b"one"));
        assert!(is_woken().await.is_ok());
        assert!(outbox.take(&mut taken));
        outbox.push(frame::text(b"two"));
        assert!(is_woken().await.is_err(), "they come by anyway");
        assert!(outbox.take(&mut taken));
        assert!(!outbox.take(&mut taken));
        outbox.push(frame::text(b"three"));
        assert!(is_woken().await.is_ok());
        assert_eq!(taken.len(), 2);
    }

    async fn client_and_socket() -> (TcpStream, Arc<Socket>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::try_join!(client, listener.accept()).unwrap();
        (client, Arc::new(Socket::from(accepted.0)))
    }

    /// As a connection's task does.
    async fn write_on(outbox: Arc<Outbox>, socket: Arc<Socket>) {
        loop {
            match outbox.write().unwrap() {
                true => outbox.filled().await,
                false => socket.writable().await.unwrap(),
            }
        }
    }

    #[tokio::test]
    async fn what_a_socket_does_not_take_at_once_goes_out_before_what_comes_then() {
        let frames = [vec![b'x'; 20 << 20], b"then".to_vec()].map(|text| frame::text(&text));
        let (mut client, socket) = client_and_socket().await;
        let outbox = Arc::new(Outbox::leading_to(socket.clone(), false, usize::MAX));
        for frame in &frames {
            outbox.send(frame, Instant::now());
        }
        let expected = frames.map(|frame| frame.plain().to_vec()).concat();
        let task = tokio::spawn(write_on(outbox.clone(), socket));
        let mut read = vec![0; expected.len()];
        client.read_exact(&mut read).await.unwrap();
        assert!(read == expected);
        assert_eq!((outbox.frames_written(), outbox.bytes()), (2, 0));
        task.abort();
    }

    #[tokio::test]
    async fn what_a_socket_does_not_take_at_once_is_counted_and_somebody_is_sent_for_it() {
        let frame = frame::text(&vec![b'x'; 20 << 20]);
        let (_client, socket) = client_and_socket().await;
        let outbox = Outbox::leading_to(socket, false, 1000);
        outbox.send(&frame, Instant::now());
        assert_eq!(outbox.bytes(), cost(&frame));
        let is_woken = tokio::time::timeout(std::time::Duration::ZERO, outbox.filled());
        assert!(is_woken.await.is_ok());
        outbox.send(&frame, Instant::now());
        assert_eq!(outbox.closed(), Some(Close::TOO_SLOW));
    }

    /// Frames of many sizes from the post, from the connection's own task and from who tells them, at once, to
    /// a client that is slower: each whole, in order, none lost, and at the end nothing is counted as waiting.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn whoever_writes_frames_stay_whole_and_in_order() {
        let (mut client, socket) = client_and_socket().await;
        let outbox = Arc::new(Outbox::leading_to(socket.clone(), false, usize::MAX));
        let sent: Vec<Vec<u8>> = (0..4000_usize)
            .map(|number| format!("{number:<width$}", width = number * 7 % 9000).into_bytes())
            .collect();
        let expected: Vec<u8> = sent
            .iter()
            .flat_map(|text| frame::text(text).plain().to_vec())
            .collect();
        let task = tokio::spawn(write_on(outbox.clone(), socket));
        tokio::spawn({
            let outbox = outbox.clone();
            async move {
                for (number, texts) in sent.chunks(3).enumerate() {
                    let mut post = Post::default();
                    for text in texts {
                        match number % 5 {
                            0 => _ = outbox.push(frame::text(text)),
                            1 => outbox.send(&frame::text(text), Instant::now()),
                            _ => post.put(&outbox, frame::text(text)),
                        }
                    }
                    post.send();
                    if number % 16 == 0 {
                        tokio::time::sleep(std::time::Duration::from_micros(300)).await;
                    }
                }
            }
        });
        let mut read = vec![0; expected.len()];
        let reading = client.read_exact(&mut read);
        let within = std::time::Duration::from_secs(60);
        tokio::time::timeout(within, reading)
            .await
            .expect("all comes")
            .unwrap();
        assert!(read == expected);
        while outbox.bytes() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(outbox.frames_written(), 4000);
        task.abort();
    }
}
