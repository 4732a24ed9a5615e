//! What clients that come back missed, when memory does not hold it: read from the journal.
//!
//! A few sessions serve all of them, so that a thousand that come back at once do not become a
//! thousand queries at once. What one of them can ask for is bounded.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::change::Change;
use crate::event::Event;
use crate::journal::{Journal, JournalError, RecordNow, Verdict};
use crate::order;
use crate::postgres::{ConnectError, Database};
use crate::reader::events;
use crate::registry::Registry;
use crate::replay::MOST_OF_A_ROOM;
use crate::rooms::{Missed, Unanswered};
use crate::snapshot::{Cursor, Place};

/// Sessions at once.
const SESSIONS: usize = 4;

/// Most changes that are looked through for one client.
const MOST_CHANGES: i64 = 10_000;

/// How long a client waits for an answer, that for its turn included.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Reads for those who come back.
pub struct History {
    database: Database,
    registry: watch::Receiver<Arc<Registry>>,
    places: Semaphore,
    idle: Mutex<Vec<Journal>>,
}

/// What there is to be said to a client that comes back.
#[derive(Debug)]
pub enum Told {
    /// What it missed.
    Missed(Missed),
    /// Nothing but the reason why it must fetch anew.
    Resync(&'static str),
}

/// Why the journal could not be asked.
#[derive(Debug, Error)]
pub enum NotTold {
    /// Postgres is away.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Or does not answer as it should.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Or not in time.
    #[error("no answer within {} s", ANSWER_WITHIN.as_secs())]
    Late,
}

impl History {
    /// Of this database; sessions are opened when somebody asks.
    pub fn new(database: Database, registry: watch::Receiver<Arc<Registry>>) -> History {
        History {
            database,
            registry,
            places: Semaphore::new(SESSIONS),
            idle: Mutex::default(),
        }
    }

    /// Answers what memory could not.
    pub async fn ask(
        &self,
        what: Unanswered,
        since: &Cursor,
        rooms: &[String],
    ) -> Result<Told, NotTold> {
        self.with_journal(async |journal| self.look(journal, what, since, rooms).await)
            .await
    }

    /// The records of these rooms as they are now.
    pub async fn records_now(&self, rooms: &[String]) -> Result<(Vec<RecordNow>, Cursor), NotTold> {
        let records: Vec<_> = rooms
            .iter()
            .filter_map(|room| room.split_once(':'))
            .collect();
        self.with_journal(async |journal| journal.records_now(&records).await)
            .await
    }

    async fn with_journal<T>(
        &self,
        look: impl AsyncFnOnce(&Journal) -> Result<T, JournalError>,
    ) -> Result<T, NotTold> {
        let answer = async {
            // never closed
            let _place = self.places.acquire().await;
            let journal = self.journal().await?;
            let told = look(&journal).await?;
            self.idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(journal);
            Ok(told)
        };
        timeout(ANSWER_WITHIN, answer)
            .await
            .unwrap_or(Err(NotTold::Late))
    }

    async fn journal(&self) -> Result<Journal, NotTold> {
        loop {
            let idle = self
                .idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop();
            match idle {
                Some(journal) if journal.is_closed() => {}
                Some(journal) => return Ok(journal),
                None => {
                    let session = self.database.session("history").await?;
                    return Ok(Journal::open(session).await?);
                }
            }
        }
    }

    async fn look(
        &self,
        journal: &Journal,
        what: Unanswered,
        since: &Cursor,
        rooms: &[String],
    ) -> Result<Told, JournalError> {
        match journal.judge(since).await? {
            Verdict::OtherHistory => return Ok(Told::Resync("epoch_changed")),
            Verdict::TooOld => return Ok(Told::Resync("cursor_too_old")),
            Verdict::Good => {}
        }
        if what == Unanswered::IsItGood {
            return Ok(Told::Missed(Missed::Nothing));
        }
        let place = Place::of(since.clone());
        let snapshot = &since.position.snapshot;
        let mut changes: Vec<Change> = Vec::new();
        let until = if journal.has_more_than(MOST_CHANGES, snapshot).await? {
            let registry = self.registry.borrow().clone();
            let records: Vec<(&str, &str)> = rooms
                .iter()
                .filter_map(|room| room.split_once(':'))
                .filter(|(module, _)| registry.module(module).is_some())
                .collect();
            if records.len() < rooms.len() {
                // scope rooms hold too much to look through
                return Ok(Told::Resync("too_many_changes"));
            }
            let (found, until) = journal
                .read_records(snapshot, &records, MOST_OF_A_ROOM as i64 + 1)
                .await?;
            changes = found;
            until
        } else {
            let wanted: std::collections::HashSet<&str> =
                rooms.iter().map(String::as_str).collect();
            let mut batch = journal.read(&since.position).await?;
            while let Some(change) = batch.next().await? {
                if change.concerns(&wanted) {
                    changes.push(change);
                }
            }
            batch.end().await?.snapshot
        };
        let registry = self.registry.borrow().clone();
        let missed: Vec<Vec<Event>> = order::by_transaction(changes)
            .into_iter()
            .map(|changes| events(changes, &registry, &place))
            .collect();
        Ok(Told::Missed(Missed::Events(missed, until)))
    }
}
