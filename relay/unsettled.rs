//! What was told so lately that a crash may still take it back.
//!
//! With `synchronous_commit = off` a commit is seen before it is on the disk, at most three times
//! `wal_writer_delay` before (<https://www.postgresql.org/docs/current/wal-async-commit.html>). What a crash takes
//! back are the last commits, which need not be the greatest transactions: a position's witness may stand while
//! what was told after it is gone.
//!
//! Pure: no I/O.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Three times the greatest `wal_writer_delay` that Postgres takes.
const WITHIN: Duration = Duration::from_secs(30);

/// Most transactions that are remembered: with the usual `wal_writer_delay` of 200 ms those of 16,000 a second.
const MOST: usize = 10_000;

/// The last transactions that were told, each with its last row.
#[derive(Debug, Default)]
pub struct Unsettled {
    told: VecDeque<(Instant, u64, u64)>,
}

impl Unsettled {
    /// This transaction was told, up to this `seq`.
    pub fn tell(&mut self, txid: u64, seq: u64) {
        let now = Instant::now();
        let is_over = |(at, ..): &(Instant, u64, u64)| now.duration_since(*at) > WITHIN;
        while self.told.len() >= MOST || self.told.front().is_some_and(is_over) {
            self.told.pop_front();
        }
        self.told.push_back((now, txid, seq));
    }

    /// Transaction and `seq` of each: while these stand in the journal, so does all that was told.
    pub fn rows(&self) -> Vec<(u64, u64)> {
        let rows = self.told.iter().map(|(_, txid, seq)| (*txid, *seq));
        rows.collect()
    }

    /// Another history begins.
    pub fn forget(&mut self) {
        self.told.clear();
    }
}
