//! What clients that come back missed, when memory does not hold it: read from the journal.
//!
//! What one of them can ask for is bounded.

use std::panic::resume_unwind;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::change::Change;
use crate::event::Event;
use crate::gathering::Gathering;
use crate::inquiries::{Inquiries, NotTold};
use crate::journal::{Journal, RecordNow, Verdict};
use crate::order;
use crate::policy::Placement;
use crate::reader::events;
use crate::registry::{Registry, RoomSet};
use crate::replay::MOST_OF_A_ROOM;
use crate::rooms::Missed;
use crate::snapshot::{Cursor, Place};

/// Most changes that are looked through for one client.
const MOST_CHANGES: i64 = 10_000;

/// Changes whose standing is looked up at once.
const AT_ONCE: usize = 500;

/// Queries at once about cursors.
const VOUCHING: usize = 2;

/// Reads for those who come back.
pub struct History {
    inquiries: Arc<Inquiries>,
    cursors: Gathering<Cursor, Verdict>,
    placement: Placement,
    registry: watch::Receiver<Arc<Registry>>,
}

/// What there is to be said to a client that comes back.
#[derive(Debug)]
pub enum Told {
    /// What it missed.
    Missed(Missed),
    /// Nothing but the reason why it must fetch anew.
    Resync(&'static str),
}

impl History {
    /// Asks by these sessions.
    pub fn new(
        inquiries: Inquiries,
        placement: Placement,
        registry: watch::Receiver<Arc<Registry>>,
    ) -> History {
        let inquiries = Arc::new(inquiries);
        let vouching = inquiries.clone();
        let cursors = Gathering::new(VOUCHING, move |cursors: Vec<Arc<Cursor>>| {
            let inquiries = vouching.clone();
            async move {
                let look = async |journal: &Journal| {
                    let cursors: Vec<&Cursor> = cursors.iter().map(|cursor| &**cursor).collect();
                    journal.vouch_for(&cursors).await
                };
                inquiries.ask(look).await
            }
        });
        History {
            inquiries,
            cursors,
            placement,
            registry,
        }
    }

    /// Whether a cursor of this user's is a good one, so that memory may say what was missed.
    pub async fn vouch(&self, user: &str, since: &Cursor) -> Result<Told, Arc<NotTold>> {
        let verdict = self.cursors.ask(user, since.clone()).await?;
        Ok(unvouched(verdict).unwrap_or(Told::Missed(Missed::Nothing)))
    }

    /// What this user missed of these rooms since a cursor.
    pub async fn missed(
        &self,
        user: &str,
        since: &Cursor,
        rooms: &[String],
    ) -> Result<Told, NotTold> {
        self.inquiries
            .ask(async |journal| self.look(journal, user, since, rooms).await)
            .await
    }

    /// The records of these rooms as they are now.
    pub async fn records_now(&self, rooms: &[String]) -> Result<(Vec<RecordNow>, Cursor), NotTold> {
        let records: Vec<_> = rooms
            .iter()
            .filter_map(|room| room.split_once(':'))
            .collect();
        self.inquiries
            .ask(async |journal| journal.records_now(&records).await)
            .await
    }

    async fn look(
        &self,
        journal: &Journal,
        user: &str,
        since: &Cursor,
        rooms: &[String],
    ) -> Result<Told, NotTold> {
        if let Some(bad) = unvouched(journal.vouch(since).await?) {
            return Ok(bad);
        }
        let place = Place::of(since.clone());
        let snapshot = &since.position.snapshot;
        let mut changes: Vec<Change> = Vec::new();
        let until = if journal.has_more_than(MOST_CHANGES, snapshot).await? {
            let registry = self.registry.borrow().clone();
            // scope rooms hold too much to look through, and who might see a record that depends on another
            // its own changes do not say
            let is_all = |module: &str| {
                let module = registry.module(module);
                module.is_some_and(|module| module.access_of.is_none())
            };
            let mut records: Vec<(&str, &str)> = rooms
                .iter()
                .filter_map(|room| room.split_once(':'))
                .filter(|(module, _)| is_all(module))
                .collect();
            if records.len() < rooms.len() {
                return Ok(Told::Resync("too_many_changes"));
            }
            // who they were decides about any room
            let of_users = registry.modules().filter(|module| module.is_narrow);
            records.extend(of_users.map(|module| (&*module.name, user)));
            let most = MOST_OF_A_ROOM as i64 + 1;
            let found = journal
                .read_records(snapshot, &records, most, MOST_CHANGES)
                .await?;
            let Some((found, until)) = found else {
                return Ok(Told::Resync("too_many_changes"));
            };
            changes = found;
            self.placement.place(&mut changes, &registry).await?;
            until
        } else {
            let wanted = RoomSet::of(rooms);
            let mut batch = journal.read(&since.position).await?;
            let registry = self.registry.borrow().clone();
            let mut unplaced = Vec::new();
            loop {
                let next = batch.next().await?;
                let is_end = next.is_none();
                unplaced.extend(next);
                if is_end || unplaced.len() >= AT_ONCE {
                    self.placement.place(&mut unplaced, &registry).await?;
                    let placed = unplaced.drain(..);
                    // who somebody is may decide about any room
                    let of_user = |change: &Change| {
                        let module = registry.module(&change.module);
                        module.is_some_and(|module| module.is_narrow)
                    };
                    changes.extend(
                        placed.filter(|change| of_user(change) || change.concerns(&wanted)),
                    );
                }
                if is_end {
                    break;
                }
            }
            batch.end().await?.snapshot
        };
        let registry = self.registry.borrow().clone();
        // that much work would keep others waiting whose tasks share the thread
        let missed = spawn_blocking(move || {
            let transactions = order::by_transaction(changes).into_iter();
            let events = transactions.map(|changes| events(changes, &registry, &place));
            events.collect::<Vec<Vec<Event>>>()
        });
        // it is never aborted: it panics or ends
        let missed = missed
            .await
            .unwrap_or_else(|error| resume_unwind(error.into_panic()));
        Ok(Told::Missed(Missed::Events(missed, until)))
    }
}

/// Why a cursor leads nowhere; None where it is a good one.
fn unvouched(verdict: Verdict) -> Option<Told> {
    match verdict {
        Verdict::OtherHistory => Some(Told::Resync("epoch_changed")),
        Verdict::TooOld => Some(Told::Resync("cursor_too_old")),
        Verdict::Good => None,
    }
}
