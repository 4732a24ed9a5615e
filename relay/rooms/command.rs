//! What the task that owns the rooms is asked to do.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::oneshot;

use crate::event::Event;
use crate::journal::RecordNow;
use crate::outbox::Outbox;
use crate::snapshot::{Cursor, Place, Snapshot};

/// A connection, as rooms know it; never used twice.
pub type Member = u64;

/// What the task that owns the rooms is asked to do.
#[derive(Debug)]
pub enum Command {
    /// A connection is there.
    Enter {
        /// Its number.
        member: Member,
        /// Where its frames go.
        outbox: Arc<Outbox>,
        /// Whether it wants several events of a transaction as one frame.
        transactions: bool,
    },
    /// It wants these rooms, which are well-formed.
    Subscribe {
        /// The connection.
        member: Member,
        /// The rooms, each once.
        rooms: Vec<String>,
        /// The answer, without its cursor, which is known when the rooms are live.
        answer: serde_json::Map<String, Value>,
    },
    /// It wants these rooms, and what it missed of them.
    Resume(Box<Resume>),
    /// It wants the records of these rooms as they are, and what happens to them from there on.
    Snapshot(Box<FromSnapshot>),
    /// It no longer wants these.
    Unsubscribe {
        /// The connection.
        member: Member,
        /// The rooms.
        rooms: Vec<String>,
        /// The answer.
        answer: Value,
    },
    /// It is gone.
    Leave {
        /// The connection.
        member: Member,
    },
    /// A transaction's events, or a piece of a very large one.
    Publish {
        /// In order, all of one transaction.
        events: Vec<Event>,
    },
    /// All up to `place` was published, or is held back; clients are told `told`.
    Reached {
        /// How far the reader has come.
        place: Arc<Place>,
        /// The same, but not past what is held back.
        told: Arc<Place>,
    },
    /// What was published before this relay began, from `since` to `until`, by transaction.
    Remember {
        /// Where it begins.
        since: Arc<Place>,
        /// Where the relay began.
        until: Arc<Place>,
        /// The events.
        past: Vec<Vec<Event>>,
    },
    /// The relay stops: everybody is told when to come back, and goes.
    Drain {
        /// Answered when all were told.
        told: oneshot::Sender<()>,
    },
    /// The relay begins anew, as in another history than the one that clients know.
    BeginAnew {
        /// Where.
        place: Arc<Place>,
        /// The reason that clients are told.
        why: &'static str,
    },
}

/// A subscription that goes on from a cursor.
#[derive(Debug)]
pub struct Resume {
    /// The connection.
    pub member: Member,
    /// The rooms, each once.
    pub rooms: Vec<String>,
    /// From where.
    pub since: Cursor,
    /// What the journal says of it, once somebody had to ask.
    pub journal: Option<Missed>,
    /// The answer, without its cursor.
    pub answer: serde_json::Map<String, Value>,
    /// Gets the question back when the journal must be asked first.
    pub unanswered: oneshot::Sender<Unanswered>,
}

/// A subscription that begins with the records as they are.
#[derive(Debug)]
pub struct FromSnapshot {
    /// The connection.
    pub member: Member,
    /// The records' rooms, each once.
    pub rooms: Vec<String>,
    /// The records.
    pub records: Vec<RecordNow>,
    /// The moment at which they were so.
    pub at: Cursor,
    /// The answer, without its cursor.
    pub answer: serde_json::Map<String, Value>,
    /// Answers the connection's task; dropped when the rooms are live.
    pub unanswered: oneshot::Sender<Unanswered>,
}

/// What the journal holds for a client that comes back.
#[derive(Debug)]
pub enum Missed {
    /// The cursor is good; memory may hold the rest.
    Nothing,
    /// These events, by transaction, and with them everything that this snapshot sees.
    Events(Vec<Vec<Event>>, Snapshot),
}

/// Why a subscription cannot go on from its cursor yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unanswered {
    /// Memory holds what was missed, if the cursor is a good one.
    IsItGood,
    /// It is older than memory.
    WhatWasMissed,
}
