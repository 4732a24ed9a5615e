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
        // of a large transaction, which is told in pieces, the last row will do
        if self.told.back().is_some_and(|(_, last, _)| *last == txid) {
            self.told.pop_back();
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_last_transactions_of_half_a_minute_are_kept_each_with_its_last_row() {
        let mut unsettled = Unsettled::default();
        unsettled.tell(7, 1);
        tokio::time::advance(WITHIN).await;
        for (txid, seq) in [(9, 2), (9, 3), (8, 4)] {
            unsettled.tell(txid, seq);
        }
        assert_eq!(unsettled.rows(), [(7, 1), (9, 3), (8, 4)]);
        tokio::time::advance(Duration::from_secs(1)).await;
        unsettled.tell(10, 5);
        assert_eq!(unsettled.rows(), [(9, 3), (8, 4), (10, 5)]);
        for txid in 0..MOST as u64 {
            unsettled.tell(100 + txid, 6);
        }
        assert_eq!(unsettled.rows().len(), MOST);
        assert_eq!(unsettled.rows()[0], (100, 6));
    }
}
