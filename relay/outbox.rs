//! What waits for one connection: a queue of whole frames, bounded in bytes.
//!
//! Whoever has something for a connection puts it here and goes on; the connection's own task takes
//! it out at the pace of its socket. A connection that does not keep up loses its queue and is
//! closed with 4508: it slows no one else, and comes back with its cursor.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use tokio::sync::Notify;

use crate::frame::Frame;

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

/// The queue of one connection; shared by the rooms, which fill it, and the connection's task.
#[derive(Debug)]
pub struct Outbox {
    queue: Mutex<Queue>,
    filled: Notify,
    limit: usize,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Frame>,
    /// Bytes, as plain frames, in `frames` and in what the connection took and has not written yet.
    bytes: usize,
    /// Frames that were ever put in.
    pushed: u64,
    closed: Option<Close>,
}

impl Outbox {
    /// At most `limit` bytes wait (and one frame more, so that a frame of any size can pass).
    pub fn new(limit: usize) -> Outbox {
        Outbox {
            queue: Mutex::default(),
            filled: Notify::new(),
            limit,
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // nothing inside can panic, so the lock cannot be poisoned by a half-made change
        self.queue
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Puts a frame behind those that wait; false if the connection is closed, or closes by this.
    pub fn push(&self, frame: Frame) -> bool {
        let mut queue = self.queue();
        if queue.closed.is_some() {
            return false;
        }
        if queue.bytes > self.limit {
            drop(queue);
            self.close(Close::TOO_SLOW);
            return false;
        }
        queue.bytes += cost(&frame);
        queue.pushed += 1;
        queue.frames.push_back(frame);
        drop(queue);
        self.filled.notify_one();
        true
    }

    /// Puts what a client missed behind what waits, all at once. It was asked for, and whoever put it
    /// together has bounded it, so it does not make the connection too slow by itself.
    pub fn push_all(&self, frames: Vec<Frame>) {
        let mut queue = self.queue();
        if queue.bytes > self.limit {
            // whoever asks again and again without reading is too slow like anybody
            drop(queue);
            self.close(Close::TOO_SLOW);
            return;
        }
        if queue.closed.is_none() {
            queue.bytes += frames.iter().map(cost).sum::<usize>();
            queue.pushed += frames.len() as u64;
            queue.frames.extend(frames);
        }
        drop(queue);
        self.filled.notify_one();
    }

    /// How many frames were ever put in.
    pub fn pushed(&self) -> u64 {
        self.queue().pushed
    }

    /// How many bytes wait.
    pub fn bytes(&self) -> usize {
        self.queue().bytes
    }

    /// Most bytes that may wait.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Ends the connection; the first reason counts. What waits still goes out, except when it
    /// waits because the client is too slow.
    pub fn close(&self, close: Close) {
        let mut queue = self.queue();
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
        self.queue().closed
    }

    /// Waits until there is something to take.
    pub async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Moves all that waits to the end of `taken`.
    pub fn take(&self, taken: &mut VecDeque<Frame>) {
        let mut queue = self.queue();
        if taken.is_empty() {
            std::mem::swap(taken, &mut queue.frames);
        } else {
            taken.append(&mut queue.frames);
        }
    }

    /// Tells that so many frames of what was taken are written, of so many bytes as plain ones.
    pub fn written(&self, bytes: usize, frames: usize) {
        let mut queue = self.queue();
        queue.bytes = queue.bytes.saturating_sub(bytes + frames * FRAME_COST);
    }
}

/// What a frame costs beside its bytes, about: an empty one is not free.
const FRAME_COST: usize = 100;

fn cost(frame: &Frame) -> usize {
    frame.size() + FRAME_COST
}

#[cfg(test)]
mod tests {
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
}
