//! Recent events, kept in memory, bounded in bytes, so that a thousand clients that come back at once
//! do not read the journal a thousand times.
//!
//! Pure: no I/O. What is remembered is whole: every event of a transaction that `Recent::start` does
//! not see and the relay has told.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::event::Event;
use crate::snapshot::{Cursor, Place, Snapshot};

/// Cursors of others that are remembered as good: of those who come back together, most have one of a few.
const VOUCHED: usize = 64;

/// The last events that were told, by transaction.
#[derive(Debug)]
pub struct Recent {
    limit: usize,
    bytes: usize,
    start: Arc<Place>,
    now: Arc<Place>,
    entries: VecDeque<Entry>,
    /// Cursors that this relay did not give out, and whose witness was seen to stand in this history.
    vouched: VecDeque<Cursor>,
}

/// One transaction's events, or a piece of a large one's, or what a throttle held back.
#[derive(Debug)]
struct Entry {
    /// How far the relay had come when it was told; never goes back from one entry to the next.
    since: Arc<Place>,
    events: Vec<Event>,
    bytes: usize,
}

/// Whether a client can be told from memory what it missed.
#[derive(Debug)]
pub enum Found<'a> {
    /// All of it: the events that its cursor does not see, by transaction.
    Missed(Vec<Vec<&'a Event>>),
    /// Yes, but the cursor is none that this relay gave out: let somebody look whether its witness
    /// still stands.
    Unknown,
    /// No: the cursor is older than what is remembered.
    Older,
}

impl Recent {
    /// At most `limit` bytes, about.
    pub fn new(limit: usize) -> Recent {
        Recent {
            limit,
            bytes: 0,
            start: Place::nowhere(),
            now: Place::nowhere(),
            entries: VecDeque::new(),
            vouched: VecDeque::new(),
        }
    }

    /// How far the relay has come.
    pub fn now(&self) -> &Arc<Place> {
        &self.now
    }

    /// Forgets everything: a history begins here.
    pub fn begin(&mut self, place: Arc<Place>) {
        self.bytes = 0;
        self.entries.clear();
        self.vouched.clear();
        self.start = place.clone();
        self.now = place;
    }

    /// Everything up to here was told.
    pub fn reached(&mut self, place: Arc<Place>) {
        self.now = place;
    }

    /// Remembers what was told.
    pub fn push(&mut self, events: Vec<Event>) -> &[Event] {
        let bytes = size(&events);
        self.bytes += bytes;
        self.entries.push_back(Entry {
            since: self.now.clone(),
            events,
            bytes,
        });
        // The last entry stays until the next one comes: it is being told. A batch goes as a whole,
        // because the place where it begins says that nothing of it is missing.
        while self.bytes > self.limit && self.entries.len() > 1 {
            let since = self.entries[0].since.clone();
            if self.entries.back().is_some_and(|last| last.since == since) {
                break;
            }
            while self
                .entries
                .front()
                .is_some_and(|entry| entry.since == since)
            {
                self.bytes -= self.entries.pop_front().map_or(0, |entry| entry.bytes);
            }
            self.start = self.entries[0].since.clone();
        }
        self.entries.back().map_or(&[], |entry| &entry.events)
    }

    /// Remembers what was told before this relay began, from `since` to where its memory begins.
    pub fn remember(&mut self, since: Arc<Place>, until: &Arc<Place>, past: Vec<Vec<Event>>) {
        if self.start != *until {
            return;
        }
        for events in past.into_iter().rev() {
            let bytes = size(&events);
            self.bytes += bytes;
            self.entries.push_front(Entry {
                since: since.clone(),
                events,
                bytes,
            });
        }
        self.start = since;
    }

    /// The witness of this cursor was seen to stand in this history.
    pub fn vouch(&mut self, cursor: &Cursor) {
        if !self.vouched.contains(cursor) {
            if self.vouched.len() == VOUCHED {
                self.vouched.pop_front();
            }
            self.vouched.push_back(cursor.clone());
        }
    }

    /// What a client with this cursor missed.
    pub fn since(&self, cursor: &Cursor) -> Found<'_> {
        let snapshot = &cursor.position.snapshot;
        let mut known = self.now.cursor == *cursor
            || self.start.cursor == *cursor
            || self.vouched.contains(cursor);
        let Some(first) = self.first_unseen(snapshot, |since| known |= since.cursor == *cursor)
        else {
            return Found::Older;
        };
        if !known {
            return Found::Unknown;
        }
        Found::Missed(self.unseen(first, snapshot))
    }

    /// Whether a cursor is older than what is remembered.
    pub fn is_older(&self, cursor: &Cursor) -> bool {
        let snapshot = &cursor.position.snapshot;
        self.first_unseen(snapshot, |_| {}).is_none()
    }

    /// What is remembered and not seen by a snapshot that was read from the journal meanwhile.
    pub fn after(&self, snapshot: &Snapshot) -> Option<Vec<Vec<&Event>>> {
        let first = self.first_unseen(snapshot, |_| {})?;
        Some(self.unseen(first, snapshot))
    }

    /// Back batch by batch, to the one that begins where this snapshot has seen everything; None where it
    /// is older than what is remembered. Who was here lately is told without a look at all the rest.
    fn first_unseen(&self, snapshot: &Snapshot, mut met: impl FnMut(&Place)) -> Option<usize> {
        let mut first = self.entries.len();
        while first > 0 {
            let since = &self.entries[first - 1].since;
            while first > 0 && self.entries[first - 1].since == *since {
                first -= 1;
            }
            met(since);
            if since.cursor.position.snapshot.is_within(snapshot) {
                return Some(first);
            }
        }
        let start = &self.start.cursor.position.snapshot;
        start.is_within(snapshot).then_some(first)
    }

    fn unseen(&self, first: usize, snapshot: &Snapshot) -> Vec<Vec<&Event>> {
        let entries = self.entries.range(first..);
        let unseen = entries.filter(|entry| match entry.events.first() {
            Some(event) => !snapshot.sees(event.txid()),
            None => false,
        });
        unseen.map(|entry| entry.events.iter().collect()).collect()
    }
}

fn size(events: &[Event]) -> usize {
    let each = events.iter().map(|event| match event {
        Event::Changed(changed) => changed.size(),
        _ => 200,
    });
    each.sum::<usize>() + 100
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(cursor: &str) -> Arc<Place> {
        Place::of(cursor.parse().unwrap())
    }

    #[test]
    fn a_cursor_of_another_relay_is_good_once_it_was_vouched_for_until_history_begins_anew() {
        let mut recent = Recent::new(1000);
        recent.begin(place("00000001.7:7:.1"));
        recent.reached(place("00000001.9:9:.3"));
        let of_another = "00000001.8:8:.2".parse().unwrap();
        assert!(matches!(recent.since(&of_another), Found::Unknown));
        recent.vouch(&of_another);
        assert!(matches!(recent.since(&of_another), Found::Missed(_)));
        // others come, and come again
        for number in 10..10 + VOUCHED {
            for _ in 0..2 {
                recent.vouch(&format!("00000001.8:8:.{number}").parse().unwrap());
            }
        }
        assert!(matches!(recent.since(&of_another), Found::Unknown));
        assert_eq!(recent.vouched.len(), VOUCHED);
        recent.vouch(&of_another);
        recent.begin(place("00000001.7:7:.1"));
        assert!(matches!(recent.since(&of_another), Found::Unknown));
    }
}
