//! Subscriptions that begin elsewhere than now: from a cursor, or with the records as they are.
//!
//! Each asks the rooms first and the journal where those cannot answer; in the end the rooms' task
//! answers the client and makes the rooms live in one step.

use serde_json::{Map, Value};
use tokio::sync::oneshot;

use crate::connection::Shared;
use crate::history::Told;
use crate::replay::Replay;
use crate::rooms::{Command, FromSnapshot, Member, Resume};
use crate::snapshot::Cursor;

/// How often the journal is asked for one subscription: once for the cursor, once for what was missed,
/// and again where memory moved on meanwhile.
const MOST_LOOKS: u32 = 4;

/// Subscribes from a cursor: from memory, else from the journal, else with the reason why not.
pub async fn resume(
    shared: Shared,
    member: Member,
    rooms: Vec<String>,
    since: Cursor,
    mut answer: Map<String, Value>,
) {
    let mut journal = None;
    let mut reason = "too_many_changes";
    for _ in 0..MOST_LOOKS {
        let (unanswered, wanted) = oneshot::channel();
        let resume = Box::new(Resume {
            member,
            rooms: rooms.clone(),
            since: since.clone(),
            journal: journal.take(),
            answer: answer.clone(),
            unanswered,
        });
        if shared.rooms.send(Command::Resume(resume)).await.is_err() {
            return;
        }
        let Ok(what) = wanted.await else {
            return; // answered
        };
        match shared.history.ask(what, &since, &rooms).await {
            Ok(Told::Missed(missed)) => journal = Some(missed),
            Ok(Told::Resync(why)) => {
                reason = why;
                break;
            }
            Err(error) => {
                tracing::warn!(%error, "could not look up what a client missed: it fetches anew");
                reason = "cursor_too_old";
                break;
            }
        }
    }
    let resync = Replay::none(&rooms, reason).resync;
    answer.insert("resync".to_owned(), resync.into());
    subscribe(&shared, member, rooms, answer).await;
}

/// Subscribes with the records as they are; where they cannot be read, without them.
pub async fn from_snapshot(
    shared: Shared,
    member: Member,
    rooms: Vec<String>,
    mut answer: Map<String, Value>,
) {
    for _ in 0..MOST_LOOKS {
        let (records, at) = match shared.history.records_now(&rooms).await {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!(%error, "could not read records for a client: it fetches them itself");
                break;
            }
        };
        let (unanswered, again) = oneshot::channel();
        let from = Box::new(FromSnapshot {
            member,
            rooms: rooms.clone(),
            records,
            at,
            answer: answer.clone(),
            unanswered,
        });
        if shared.rooms.send(Command::Snapshot(from)).await.is_err() || again.await.is_err() {
            return; // answered
        }
    }
    let resync = Replay::none(&rooms, "too_many_changes").resync;
    answer.insert("resync".to_owned(), resync.into());
    subscribe(&shared, member, rooms, answer).await;
}

async fn subscribe(
    shared: &Shared,
    member: Member,
    rooms: Vec<String>,
    answer: Map<String, Value>,
) {
    let subscribe = Command::Subscribe {
        member,
        rooms,
        answer,
    };
    // the rooms' task outlives every connection
    let _ = shared.rooms.send(subscribe).await;
}
