//! Positions in the journal: Postgres snapshots, what lies between two of them, and cursors.
//!
//! Pure: no I/O. A position is a snapshot and not a number, because a transaction that took its
//! number early can commit late; no id, serial or timestamp tells what has been seen.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

/// Longest cursor that is looked at, in bytes.
pub const LONGEST_CURSOR: usize = 4096;

/// Which transactions are visible: those below `xmax` that are not in `xip`.
///
/// The text form is that of `pg_snapshot`, `xmin:xmax:xip,xip,…`, or shorter with what each open
/// transaction is above the one before it, `xmin:xmax:xip+1+7…`; see
/// <https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT-PARTS>.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// One above the greatest transaction that can be visible.
    pub xmax: u64,
    /// Transactions below `xmax` that were still open, ascending, each once.
    pub xip: Vec<u64>,
}

impl Snapshot {
    /// Whether a committed transaction is seen by this snapshot.
    pub fn sees(&self, txid: u64) -> bool {
        txid < self.xmax && self.xip.binary_search(&txid).is_err()
    }

    /// The lowest transaction that may still be unseen.
    pub fn xmin(&self) -> u64 {
        self.xip.first().copied().unwrap_or(self.xmax)
    }

    /// The same, but claiming nothing above `highest`.
    ///
    /// After a crash Postgres hands out again the ids of transactions that never reached the disk;
    /// a position that claimed them as seen would miss what is committed under them later.
    #[must_use]
    pub fn clipped(&self, highest: u64) -> Snapshot {
        let xmax = self.xmax.min(highest + 1);
        Snapshot {
            xmax,
            xip: self.xip.iter().copied().filter(|&xid| xid < xmax).collect(),
        }
    }

    /// Whether all that this one sees is seen by the other, too.
    pub fn is_within(&self, other: &Snapshot) -> bool {
        self.xmax <= other.xmax && other.xip.iter().all(|&xid| !self.sees(xid))
    }

    /// The transactions that `new` sees and `self` does not, as few ranges as there can be, ascending.
    ///
    /// Each range is one stretch of the journal's index. They go around transactions that are still
    /// open, so that a huge open transaction costs a reader nothing.
    pub fn until(&self, new: &Snapshot) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let mut add = |range: Range<u64>| match ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => ranges.push(range),
        };
        for &xid in self.xip.iter().filter(|&&xid| new.sees(xid)) {
            add(xid..xid + 1);
        }
        let mut start = self.xmax;
        for &open in new.xip.iter().filter(|&&xid| xid >= self.xmax) {
            if start < open {
                add(start..open);
            }
            start = open + 1;
        }
        if start < new.xmax {
            add(start..new.xmax);
        }
        ranges
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin(), self.xmax)?;
        if let Some(first) = self.xip.first() {
            write!(f, "{first}")?;
        }
        let mut steps = self.xip.windows(2).map(|pair| pair[1] - pair[0]);
        steps.try_for_each(|step| write!(f, "+{step}"))
    }
}

impl FromStr for Snapshot {
    type Err = BadCursor;

    fn from_str(text: &str) -> Result<Self, BadCursor> {
        let mut parts = text.splitn(3, ':');
        let mut next = |what| parts.next().ok_or(BadCursor::Missing(what));
        let xmin = number(next("xmin")?)?;
        let xmax = number(next("xmax")?)?;
        let open = next("the open transactions")?;
        let mut xip = Vec::new();
        for stretch in open.split(',').filter(|_| !open.is_empty()) {
            let mut xid = 0;
            for step in stretch.split('+') {
                // neither of them above 63 bits
                xid += number(step)?;
                number(&xid.to_string())?;
                xip.push(xid);
            }
        }
        let ascending = xip.windows(2).all(|pair| pair[0] < pair[1]);
        let within = xip.last().is_none_or(|&last| last < xmax);
        // a snapshot of Postgres may have an xmin below its first open transaction only when none is open
        if !ascending || !within || xmin > xip.first().copied().unwrap_or(xmax) {
            return Err(BadCursor::NoSnapshot(text.chars().take(100).collect()));
        }
        Ok(Snapshot { xmax, xip })
    }
}

/// Decimal digits only: no sign, no leading zero, nothing above 63 bits, as Postgres prints ids.
pub(crate) fn number(text: &str) -> Result<u64, BadCursor> {
    text.parse::<u64>()
        .ok()
        .filter(|n| i64::try_from(*n).is_ok() && n.to_string() == text)
        .ok_or_else(|| BadCursor::NoNumber(text.chars().take(100).collect()))
}

/// How far the journal has been read: everything that the clipped snapshot sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Clipped to what was read.
    pub snapshot: Snapshot,
    /// `seq` of the newest row that was read, which belongs to transaction `xmax - 1`: as long as it
    /// stands in the journal, history is the one that was read. None before the first row.
    pub witness: Option<u64>,
}

impl Position {
    /// The transaction that the witness belongs to.
    pub fn highest(&self) -> u64 {
        self.snapshot.xmax.saturating_sub(1)
    }
}

/// A position in one history, as clients keep it: `3f2a91c0.7423:7430:7425.990`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// Eight hexadecimal digits that tell this history from every other.
    pub epoch: String,
    /// The position in it.
    pub position: Position,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.", self.epoch, self.position.snapshot)?;
        match self.position.witness {
            Some(seq) => write!(f, "{seq}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Cursor {
    type Err = BadCursor;

    fn from_str(text: &str) -> Result<Self, BadCursor> {
        if text.len() > LONGEST_CURSOR {
            return Err(BadCursor::TooLong(text.len()));
        }
        let mut parts = text.splitn(3, '.');
        let mut next = |what| parts.next().ok_or(BadCursor::Missing(what));
        let epoch = next("the epoch")?;
        let hexadecimal = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        if epoch.len() != 8 || !epoch.bytes().all(hexadecimal) {
            return Err(BadCursor::NoEpoch(epoch.chars().take(100).collect()));
        }
        let snapshot = next("the snapshot")?.parse()?;
        let witness = match next("the witness")? {
            "" => None,
            seq => Some(number(seq)?),
        };
        Ok(Cursor {
            epoch: epoch.to_owned(),
            position: Position { snapshot, witness },
        })
    }
}

/// A cursor with its text, made once for all who are told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The position and its history.
    pub cursor: Cursor,
    /// As clients get it.
    pub text: Arc<str>,
}

impl Place {
    /// Shared from the start: every event of a batch holds it.
    pub fn of(cursor: Cursor) -> Arc<Place> {
        let text = cursor.to_string().into();
        Arc::new(Place { cursor, text })
    }

    /// Before anything was read.
    pub fn nowhere() -> Arc<Place> {
        let position = Position {
            snapshot: Snapshot {
                xmax: 0,
                xip: Vec::new(),
            },
            witness: None,
        };
        Place::of(Cursor {
            epoch: String::new(),
            position,
        })
    }
}

/// Why a text is no cursor.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BadCursor {
    /// Longer than [`LONGEST_CURSOR`].
    #[error("a cursor has at most {LONGEST_CURSOR} bytes, this one has {0}")]
    TooLong(usize),
    /// Ends before all of its parts are there.
    #[error("{0} is missing; a cursor looks like 3f2a91c0.7423:7430:7425.990")]
    Missing(&'static str),
    /// The first part is no epoch.
    #[error("the epoch must be eight hexadecimal digits, not \"{0}\"")]
    NoEpoch(String),
    /// A part that must be a number is none.
    #[error("\"{0}\" is no number as Postgres prints one")]
    NoNumber(String),
    /// The numbers contradict each other.
    #[error("\"{0}\" is no snapshot: open transactions ascend and lie between xmin and xmax")]
    NoSnapshot(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::btree_set;
    use proptest::prelude::*;

    fn snapshot(text: &str) -> Snapshot {
        text.parse().unwrap()
    }

    #[test]
    fn what_lies_between_two_snapshots_is_read_in_few_ranges() {
        for (old, new, expected) in [
            ("5:5:", "5:5:", &[][..]),
            ("5:5:", "9:9:", &[(5, 9)]),
            ("5:9:5,7", "9:9:", &[(5, 6), (7, 8)]),
            ("5:9:5,7", "7:12:7,10", &[(5, 6), (9, 10), (11, 12)]),
            ("8:9:8", "12:12:", &[(8, 12)]),
            ("5:9:5+2", "7:12:7+3", &[(5, 6), (9, 10), (11, 12)]),
            ("5:9:5", "5:9:5", &[]),
            // a transaction that is open and has written a million rows is gone around
            ("5:5:", "6:100:6", &[(5, 6), (7, 100)]),
        ] {
            let ranges: Vec<(u64, u64)> = snapshot(old)
                .until(&snapshot(new))
                .iter()
                .map(|range| (range.start, range.end))
                .collect();
            assert_eq!(ranges, expected, "{old} → {new}");
        }
    }

    #[test]
    fn a_position_claims_nothing_above_what_was_read() {
        assert_eq!(snapshot("5:20:5,12").clipped(9), snapshot("5:10:5"));
        assert_eq!(snapshot("20:20:").clipped(0), snapshot("1:1:"));
    }

    #[test]
    fn a_cursor_is_written_as_it_is_read() {
        for text in [
            "3f2a91c0.7423:7430:7425.990",
            "3f2a91c0.1:1:.",
            "00000000.5:9:5+2.1",
        ] {
            let cursor: Cursor = text.parse().unwrap();
            assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }
        assert_eq!(snapshot("5:99:5,7,30"), snapshot("5:99:5+2+23"));
    }

    #[test]
    fn a_thousand_open_transactions_fit_into_a_cursor() {
        let xip: Vec<u64> = (0..1000).map(|n| 1_000_000_000_000 + 13 * n).collect();
        let text = Snapshot {
            xmax: xip[999] + 1,
            xip,
        }
        .to_string();
        assert!(text.len() < LONGEST_CURSOR - 64, "{}", text.len());
    }

    #[test]
    fn what_is_no_cursor_is_refused() {
        let long = format!("3f2a91c0.1:1:{}.", "1,".repeat(4096));
        for text in [
            "",
            "x",
            "3f2a91c0",
            "3f2a91c0.1:1:",
            "3F2A91C0.1:1:.",
            "3f2a91c0.1:1.",
            "3f2a91c0.-1:1:.",
            "3f2a91c0.1:99999999999999999999:.",
            "3f2a91c0.5:9:7,6.",
            "3f2a91c0.5:9:9.",
            "3f2a91c0.9:5:.",
            "3f2a91c0.5:9:5+0.",
            "3f2a91c0.5:9:5+.",
            "3f2a91c0.5:9:+5.",
            "3f2a91c0.5:9:5+9223372036854775807+9223372036854775807.",
            "3f2a91c0.+1:1:.",
            "3f2a91c0.01:1:.",
            "3f2a91c0.1:1:.x",
            &long,
        ] {
            assert!(text.parse::<Cursor>().is_err(), "{text}");
        }
    }

    prop_compose! {
        /// Two snapshots of one history: what the older has seen, the newer has, too.
        fn history()(xmax in 1u64..60, more in 0u64..40, open in btree_set(1u64..60, 0..12),
                     still in btree_set(1u64..100, 0..12)) -> (Snapshot, Snapshot) {
            let old = Snapshot { xmax, xip: open.into_iter().filter(|&x| x < xmax).collect() };
            let xmax = xmax + more;
            let xip = still.into_iter().filter(|&x| x < xmax && !old.sees(x)).collect();
            (old.clone(), Snapshot { xmax, xip })
        }
    }

    proptest! {
        #[test]
        fn the_ranges_hold_exactly_what_became_visible((old, new) in history()) {
            let ranges = old.until(&new);
            for txid in 0..110 {
                let read = ranges.iter().filter(|range| range.contains(&txid)).count();
                prop_assert_eq!(read, usize::from(new.sees(txid) && !old.sees(txid)), "{}", txid);
            }
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
        }

        #[test]
        fn what_is_within_adds_nothing((old, new) in history()) {
            prop_assert!(old.is_within(&new));
            let nothing_new = (0..110).all(|txid| !new.sees(txid) || old.sees(txid));
            prop_assert_eq!(new.is_within(&old), nothing_new && new.xmax <= old.xmax);
        }

        #[test]
        fn a_snapshot_is_read_as_it_was_written((old, new) in history()) {
            for snapshot in [old, new] {
                prop_assert_eq!(&snapshot.to_string().parse::<Snapshot>(), &Ok(snapshot));
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,80}") {
            let _ = text.parse::<Cursor>();
        }
    }
}
