//! The feed: what passes, for operators who watch it in the console.
//!
//! Each who watches gets a sample: of every second the first [`SHOWN_A_SECOND`] changes that they asked for,
//! and the number of all. It is taken by the task that owns the rooms, so nothing is put together that
//! nobody will see, and nothing at all while nobody watches. Who does not take what they are shown is shown
//! less; nobody waits for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::event::{Changed, Event, View};
use crate::registry::holds;
use crate::rooms::Bearer;

/// Most changes of a second that one who watches is shown.
pub const SHOWN_A_SECOND: u64 = 100;

/// Most changes that wait for one who watches.
pub const WAITING: usize = 2 * SHOWN_A_SECOND as usize;

/// Most who watch at once.
const MOST_VIEWERS: usize = 16;

/// Bytes of a change's images above which it is shown without its values, and an insert or a delete without the
/// names of its columns.
const LARGEST: usize = 16 << 10;

/// Which changes somebody wants to see.
#[derive(Debug, Default, Deserialize)]
pub struct Filter {
    /// Of this module.
    pub module: Option<String>,
    /// As this room's members get them.
    pub room: Option<String>,
    /// Made by this user.
    pub user: Option<String>,
}

/// What somebody who watches is shown of a change.
#[derive(Debug)]
pub struct Seen {
    /// The frame that members of the room get; where values are not for them, they must be taken out.
    pub frame: String,
    /// Whether values are for them.
    pub values: bool,
    /// Connections that got it.
    pub receivers: usize,
    /// From capture to outboxes.
    pub lag: Duration,
}

/// What passed since somebody began to watch; whoever reads it takes the difference of two moments.
#[derive(Debug, Default)]
pub struct Tally {
    /// Changes that they asked for.
    pub passed: AtomicU64,
    /// Of those the ones that they were shown.
    pub shown: AtomicU64,
    /// Of those the ones that they were to be shown, had they taken the ones before.
    pub missed: AtomicU64,
    /// All changes.
    pub changes: AtomicU64,
    /// Deliveries of all changes.
    pub deliveries: AtomicU64,
    /// Sum of the lag of all changes, in microseconds.
    pub lag: AtomicU64,
    /// The longest lag since it was last taken out, in microseconds.
    pub slowest: AtomicU64,
    /// Whether they may no longer see values, whatever their token says.
    pub is_blind: AtomicBool,
}

/// Somebody who watches.
#[derive(Debug)]
pub struct Viewer {
    filter: Filter,
    /// Whose token lets them see values.
    bearer: Option<Bearer>,
    to: mpsc::Sender<Seen>,
    tally: Arc<Tally>,
    second: Instant,
    /// Of the present second those that were to be shown.
    picked: u64,
}

impl Viewer {
    /// Wants these; `bearer` is a `system_admin`, by whose token values are shown.
    pub fn new(
        filter: Filter,
        bearer: Option<Bearer>,
        to: mpsc::Sender<Seen>,
        tally: Arc<Tally>,
    ) -> Viewer {
        Viewer {
            filter,
            bearer,
            to,
            tally,
            second: Instant::now(),
            picked: 0,
        }
    }

    /// By whose token values are shown.
    pub fn bearer(&self) -> Option<&Bearer> {
        self.bearer.as_ref()
    }

    /// Shows no values any more.
    pub fn blind(&mut self) {
        self.tally.is_blind.store(true, Ordering::Relaxed);
        self.bearer = None;
    }

    /// How they see a change; None if they did not ask for it.
    fn view<'a>(&self, changed: &'a Changed) -> Option<(View, Vec<&'a str>)> {
        let Filter { module, room, user } = &self.filter;
        let is_of = module
            .as_ref()
            .is_none_or(|module| **module == **changed.module());
        let is_by = user.is_none() || user.as_deref() == changed.actor();
        if !is_of || !is_by {
            return None;
        }
        let Some(room) = room else {
            return Some((View::Stayed, Vec::new()));
        };
        let (room, seen) = changed.rooms().find(|(known, _)| known == room)?;
        let is_scope = room != changed.record_room;
        Some((seen.view(), is_scope.then_some(room).into_iter().collect()))
    }

    /// Counts one that they asked for, and tells whether it is among those that are shown.
    fn picks(&mut self, now: Instant) -> bool {
        add(&self.tally.passed, 1);
        if now.duration_since(self.second) >= Duration::from_secs(1) {
            self.second = now;
            self.picked = 0;
        }
        self.picked += 1;
        self.picked <= SHOWN_A_SECOND
    }

    fn show(&self, seen: Seen) {
        let counter = match self.to.try_send(seen) {
            Ok(()) => &self.tally.shown,
            Err(_) => &self.tally.missed,
        };
        add(counter, 1);
    }
}

/// All who watch.
#[derive(Debug, Default)]
pub struct Feed {
    viewers: Vec<Viewer>,
}

impl Feed {
    /// Somebody more; where there are too many already, what they were given to be shown by is dropped.
    pub fn watch(&mut self, viewer: Viewer) {
        self.viewers.retain(|known| !known.to.is_closed());
        if self.viewers.len() < MOST_VIEWERS {
            self.viewers.push(viewer);
        }
    }

    /// Shows a change that so many got.
    pub fn tell(&mut self, changed: &Changed, receivers: usize) {
        if self.viewers.is_empty() {
            return;
        }
        self.viewers.retain(|known| !known.to.is_closed());
        let lag = SystemTime::now().duration_since(changed.changed_at);
        let lag = lag.unwrap_or_default();
        let micros = lag.as_micros() as u64;
        let now = Instant::now();
        for viewer in &mut self.viewers {
            add(&viewer.tally.changes, 1);
            add(&viewer.tally.deliveries, receivers as u64);
            add(&viewer.tally.lag, micros);
            viewer.tally.slowest.fetch_max(micros, Ordering::Relaxed);
            let Some((view, scopes)) = viewer.view(changed) else {
                continue;
            };
            if !viewer.picks(now) {
                continue;
            }
            let is_small = changed.length() <= LARGEST;
            viewer.show(Seen {
                frame: match is_small {
                    true => changed.text(view, &scopes),
                    false => changed.outline(view, &scopes),
                },
                values: viewer.bearer.is_some(),
                receivers,
                lag,
            });
        }
    }

    /// Shows what else a transaction did: a module that all must fetch anew. Values are no longer shown by the
    /// token of one who was thrown out.
    pub fn tell_else(&mut self, events: &[Event]) {
        if self.viewers.is_empty() {
            return;
        }
        let now = Instant::now();
        for event in events {
            for viewer in &mut self.viewers {
                match event {
                    Event::Truncated {
                        module,
                        txid,
                        changed_at,
                    } => {
                        let Filter {
                            module: of,
                            room,
                            user,
                        } = &viewer.filter;
                        let is_of = of.as_ref().is_none_or(|of| **of == **module)
                            && room.as_ref().is_none_or(|room| holds(room, module))
                            && user.is_none();
                        if !is_of || !viewer.picks(now) {
                            continue;
                        }
                        let lag = SystemTime::now().duration_since(*changed_at);
                        let told = json!({"module": &**module, "action": "truncated", "txid": txid.to_string()});
                        viewer.show(Seen {
                            frame: told.to_string(),
                            values: false,
                            receivers: 0,
                            lag: lag.unwrap_or_default(),
                        });
                    }
                    Event::Disconnected { user, .. } => {
                        let theirs = viewer.bearer.as_ref();
                        if theirs.is_some_and(|bearer| bearer.who.user == *user) {
                            viewer.blind();
                        }
                    }
                    Event::Changed(_) | Event::UserChanged { .. } => {}
                }
            }
        }
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}
