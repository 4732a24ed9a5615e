//! What should be reached, in the words and the order of those who set it: what, and how much.

/// A line of the table.
pub type Line = (&'static str, &'static str);

pub const FAN_OUT: Line = (
    "fan-out saturated: 1,000 subscribers of one room, 500 changes by real SQL updates as fast as one writer can, frames per CPU-second of the relay",
    "at least 5 times Node `ws`, 5 times Socket.IO, 4 times nchan; at least 0.8 of a bare loop that writes up to 8 waiting frames per call",
);
pub const PACED: Line = (
    "fan-out paced: 20 changes/s to 1,000 subscribers, CPU per frame",
    "at most 1.15 times a bare loop with one `write` per frame",
);
pub const LATENCY: Line = (
    "its latency, change to the last subscriber, p99",
    "below each peer's p50 in the same run",
);
pub const ONE: Line = (
    "one subscriber, commit to frame, p50",
    "at most 1.3 times a bare LISTEN-to-socket bridge (which neither journals nor diffs), p99 at most 2 times",
);
pub const IDLE: Line = (
    "memory per idle subscribed connection, 10,000 of them (PSS growth)",
    "at most 4 KiB",
);
pub const DEFLATE: Line = (
    "the same with deflate negotiated",
    "at most 5 KiB; one deflate per event, not per subscriber; bytes on the wire at most 0.60 of plain for a 1.5 KB record, 0.30 for 12 KB of JSON",
);
pub const STORM: Line = (
    "connect, authenticate, subscribe: 10,000 clients at once after a restart",
    "all live within 10 s, at most 1 journal query per 100 clients",
);
pub const SUSTAINED: Line = (
    "sustained changes through the whole way (trigger, journal, diff, 1 subscriber each)",
    "at least 8,000 rows/s in transactions of 10 rows, on two cores shared with Postgres, lag p99 below 100 ms, flat over 5 minutes",
);
pub const CATCH_UP: Line = (
    "catch-up from the journal after downtime",
    "at least 100,000 changes/s decoded and diffed",
);
pub const GROWTH: Line = (
    "growth",
    "CPU per change with 10,000 connections in 10,000 rooms within 20 % of that with 10 in 10; a poll's cost the same with 10 million journal rows as with 10 thousand, and with a transaction open for an hour as without",
);
pub const WRITERS: Line = (
    "the writers' cost, adaptive doorbell, alternating with triggers off in one run: one row of 22 columns by 8 clients",
    "at least 0.75 of the throughput without triggers, journal complete with index, partitions and rights (0.50 is what plain NOTIFY without a journal leaves); one client at least 0.88; one statement over 1,000 rows at most 6 times without",
);
pub const WIDE: Line = (
    "the same for a wide row (five 35 KB jsonb columns unchanged, one price edited)",
    "at least 0.50 (full images leave 0.04), WAL per edit at most 2 KB, no change of a large column ever missed, also one made by a before trigger",
);
pub const START: Line = (
    "binary, start",
    "at most 15 MB stripped; ready within 300 ms of a reachable Postgres (memory of recent changes is filled after)",
);
