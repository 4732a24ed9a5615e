//! What the task that owns the rooms is asked to do, and what it answers.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use uuid::Uuid;

use crate::event::Event;
use crate::feed::Viewer;
use crate::frame::Frame;
use crate::journal::RecordNow;
use crate::outbox::Outbox;
use crate::policy::{Credential, Question};
use crate::snapshot::{Cursor, Place, Snapshot};

/// How long the rooms may take to say how much there is of everything.
const SURVEY_WITHIN: Duration = Duration::from_secs(2);

/// A connection, as rooms know it; never used twice.
pub type Member = u64;

/// The relay's own member, who sees what it wrote itself ([`crate::canary`]); connections count from 0.
pub const ITSELF: Member = Member::MAX;

/// What the task that owns the rooms is asked to do.
#[derive(Debug)]
pub enum Command {
    /// A connection is there.
    Enter(Box<Enter>),
    /// It has another token, of the same user.
    Renew {
        /// The connection.
        member: Member,
        /// Who it is now.
        bearer: Bearer,
        /// What it is told if the token counts.
        accepted: Frame,
    },
    /// It wants rooms.
    Subscribe(Box<Subscribe>),
    /// It no longer wants these.
    Unsubscribe {
        /// The connection.
        member: Member,
        /// The rooms.
        rooms: Vec<String>,
        /// Comes back in the answer.
        id: Value,
        /// Answered with how many of them it had, and how many it has now.
        reply: oneshot::Sender<(usize, usize)>,
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
    /// The relay begins anew, as in another history than the one that clients know.
    BeginAnew {
        /// Where.
        place: Arc<Place>,
        /// The reason that clients are told.
        why: &'static str,
        /// Who was thrown out, and when; their tokens of before are refused.
        disconnected: Vec<(String, SystemTime)>,
    },
    /// What the policy says of what waits to be told.
    Judged(Verdicts),
    /// What the policy says of what is to be told to one who comes back.
    Known(Verdicts),
    /// What the policy says when it is asked again.
    JudgedAgain(Verdicts),
    /// What the policy says of rooms that some are in.
    Reviewed {
        /// Who, which room, and whether they may still be in it.
        rooms: Vec<(Arc<Credential>, Arc<str>, bool)>,
        /// Whether those who may are to fetch anew.
        resync: bool,
    },
    /// An operator watches what passes.
    Watch(Viewer),
    /// An operator asks how much there is of everything.
    Survey {
        /// So many rooms and connections are named.
        most: usize,
        /// Answered at once.
        reply: oneshot::Sender<Survey>,
    },
    /// The relay stops: everybody is told when to come back, and goes.
    Drain {
        /// Answered when all were told.
        told: oneshot::Sender<()>,
    },
}

/// A connection is there.
#[derive(Debug)]
pub struct Enter {
    /// Its number.
    pub member: Member,
    /// Its name in the log.
    pub session: Uuid,
    /// Where its frames go.
    pub outbox: Arc<Outbox>,
    /// Whether it wants several events of a transaction as one frame.
    pub transactions: bool,
    /// Who it is; None where everybody may see everything.
    pub bearer: Option<Bearer>,
    /// What it is told if it may come in.
    pub welcome: Frame,
}

/// Who has a good token.
#[derive(Debug, Clone)]
pub struct Bearer {
    /// Who they are to the policy.
    pub who: Arc<Credential>,
    /// When the token was issued, where it says so.
    pub issued_at: Option<SystemTime>,
}

/// Somebody wants rooms.
#[derive(Debug)]
pub struct Subscribe {
    /// The connection.
    pub member: Member,
    /// The rooms, each once and well-formed.
    pub rooms: Vec<String>,
    /// At which moment the policy granted them; None where everybody may see everything.
    pub granted: Option<Cursor>,
    /// Where it begins.
    pub from: Beginning,
    /// Comes back in the answer to the client.
    pub id: Value,
    /// The rooms that it cannot have, with the code, as the protocol lists them.
    pub denied: Vec<Value>,
    /// Answers the connection's task.
    pub reply: oneshot::Sender<Reply>,
}

/// How much there is of everything at a moment.
#[derive(Debug, Default)]
pub struct Survey {
    /// Rooms that somebody is in.
    pub rooms: usize,
    /// Rooms of all connections.
    pub subscriptions: usize,
    /// Bytes that wait for all connections.
    pub queue_bytes: usize,
    /// Bytes that wait for the one for which most wait.
    pub longest_queue_bytes: usize,
    /// Transactions that wait for the policy.
    pub unjudged: usize,
    /// The rooms with the most members, and how many those are.
    pub crowded: Vec<(Arc<str>, usize)>,
    /// The connections for which most waits.
    pub present: Vec<Present>,
}

/// A connection, as operators see it.
#[derive(Debug)]
pub struct Present {
    /// Its name in the log.
    pub session: Uuid,
    /// Whose it is; None where nobody is asked.
    pub user: Option<String>,
    /// How many rooms it has.
    pub rooms: usize,
    /// Bytes that wait for it.
    pub queue_bytes: usize,
}

impl Survey {
    /// Asks the task that owns the rooms, to name so many of them and of their members; None when it is gone,
    /// or is too busy to answer within two seconds.
    pub async fn of(rooms: &mpsc::Sender<Command>, most: usize) -> Option<Survey> {
        let answer = async {
            let (reply, replied) = oneshot::channel();
            let asked = rooms.send(Command::Survey { most, reply });
            asked.await.ok()?;
            replied.await.ok()
        };
        timeout(SURVEY_WITHIN, answer).await.ok().flatten()
    }
}

/// Where a subscription begins.
#[derive(Debug)]
pub enum Beginning {
    /// Now.
    Now,
    /// Now, and the client is told to fetch anew for this reason.
    Anew(&'static str),
    /// From a cursor, with what was missed.
    Since {
        /// The cursor.
        since: Cursor,
        /// What the journal says of it, once somebody had to ask.
        journal: Option<Missed>,
    },
    /// With the records as they were at a moment, and what happened to them from there on.
    Records {
        /// The records.
        records: Vec<RecordNow>,
        /// The moment.
        at: Cursor,
    },
}

/// What the journal holds for a client that comes back.
#[derive(Debug)]
pub enum Missed {
    /// The cursor is good; memory may hold the rest.
    Nothing,
    /// These events, by transaction, and with them everything that this snapshot sees.
    Events(Vec<Vec<Event>>, Snapshot),
}

/// What became of a subscription.
#[derive(Debug)]
pub enum Reply {
    /// The rooms are live, and the client knows.
    Live {
        /// How many.
        rooms: usize,
        /// How many it cannot have.
        denied: usize,
        /// How many it has now.
        of_all: usize,
    },
    /// Not yet: memory holds what was missed, if the cursor is a good one.
    IsItGood,
    /// Not yet: the cursor is older than memory.
    WhatWasMissed,
    /// Not yet: access may have changed since it was granted.
    IsItStillGranted,
    /// Not yet: the policy must be asked who may see what was missed.
    WhoMaySee {
        /// What to ask.
        asked: Inquiry,
        /// Comes back with the answer.
        journal: Option<Missed>,
    },
}

/// Questions to the policy.
#[derive(Debug)]
pub struct Inquiry {
    /// Whether these may see records that stand so.
    pub questions: Vec<Question>,
    /// What was known when they were asked: an answer to what is no longer the question counts for
    /// nothing.
    pub era: u64,
}

impl Inquiry {
    /// With an answer to each.
    pub fn answered(&self, answers: &[bool]) -> Verdicts {
        let questions = self.questions.iter().cloned();
        Verdicts {
            answers: questions.zip(answers.iter().copied()).collect(),
            era: self.era,
        }
    }
}

/// Answers of the policy.
#[derive(Debug)]
pub struct Verdicts {
    /// The questions, with their answers.
    pub answers: Vec<(Question, bool)>,
    /// That of the inquiry.
    pub era: u64,
}

/// What the rooms ask the policy.
#[derive(Debug)]
pub enum Asked {
    /// Who may see what is to be told.
    Judge(Inquiry),
    /// The same of what was told by an answer that is not new any more; nothing waits for it.
    JudgeAgain(Inquiry),
    /// Who may still be where they are.
    Review {
        /// Who, and which room.
        rooms: Vec<(Arc<Credential>, Arc<str>)>,
        /// Whether those who may are to fetch anew.
        resync: bool,
    },
}
