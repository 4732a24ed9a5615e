//! The reader: keeps the relay's position in the journal and turns what comes after it into events.
//!
//! It sleeps until the doorbell rings, reads, and hands each transaction's events on; when Postgres
//! goes away it comes back with backoff and goes on where it was. It knows nothing of sockets.

use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use crate::change::Change;
use crate::diff::BadImage;
use crate::doorbell::{Doorbell, Unheard};
use crate::event::{self, Event};
use crate::inquiries::NotTold;
use crate::journal::{Excess, Journal, JournalError, Mode, Verdict};
use crate::metrics::Metrics;
use crate::order;
use crate::policy::Placement;
use crate::postgres::{ConnectError, Database};
use crate::registry::Registry;
use crate::rooms::Command;
use crate::sleep::Sleeper;
use crate::snapshot::{Cursor, Place, Position};
use crate::unsettled::Unsettled;

/// How often the journal is looked at though no bell rang; also how often the registry is read.
const SAFETY_POLL: Duration = Duration::from_secs(5);

/// The same where writers do not ring.
const POLL_WITHOUT_BELL: Duration = Duration::from_millis(250);

/// How often slots of the journal whose time is over are looked for.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// The module of what `crm_relay.disconnect()` writes, which nobody watches.
const DISCONNECTS: &str = "crm_relay";

/// Bytes of images of one transaction that are held at once; a larger one is handed on in pieces.
const PIECE: usize = 64 << 20;

/// About how many transactions are one batch to clients: who is cut off inside of one begins it again.
const TRANSACTIONS_A_BATCH: u32 = 32;

/// Changes before its own beginning that the relay reads into memory, of [`PIECE`] bytes at most.
const REMEMBERED: i64 = 2000;

/// Longest wait between two attempts to reach Postgres.
const LONGEST_BACKOFF: Duration = Duration::from_secs(8);

/// Whether clients can be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// The journal is read and the doorbell heard.
    Ready,
    /// Not.
    Unready {
        /// Why, in words that may be told to anybody.
        reason: &'static str,
        /// Why, with names of hosts and logins.
        details: String,
    },
}

/// What the rest of the relay sees of the reader.
#[derive(Debug)]
pub struct Told {
    /// Whether it reads.
    pub readiness: watch::Sender<Readiness>,
    /// What is watched.
    pub registry: watch::Sender<Arc<Registry>>,
    /// What clients are told: there must be something before they are let in.
    pub cursor: watch::Receiver<Arc<str>>,
    /// What is counted.
    pub metrics: Metrics,
}

#[derive(Debug, Error)]
enum Interrupted {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    NotTold(#[from] NotTold),
    #[error(transparent)]
    Unheard(#[from] Unheard),
    #[error("history is another than the one that was read")]
    OtherHistory,
    #[error("the doorbell has another mode now")]
    OtherMode,
    #[error("the rooms are gone")]
    Stopped,
}

impl Interrupted {
    /// Without anything that only operators should know.
    fn in_public(&self) -> &'static str {
        let of_journal = |error: &JournalError| match error {
            JournalError::NotInstalled => {
                "schema crm_relay is not installed in this database; run: crm-relay install"
            }
            JournalError::OtherVersion { .. } => {
                "schema crm_relay has a version that this relay does not read; run: crm-relay install"
            }
            JournalError::Pruned => "the journal was pruned beyond what was read",
            JournalError::Emptied => "history is another than the one that was read",
            JournalError::Postgres(_) => "contact with Postgres was lost, or it refused",
            JournalError::BadSnapshot(_) | JournalError::BadRow { .. } => {
                "the journal cannot be read"
            }
        };
        match self {
            Interrupted::Connect(_)
            | Interrupted::NotTold(NotTold::Connect(_))
            | Interrupted::Unheard(Unheard::Connect(_)) => "Postgres is not reached",
            Interrupted::Journal(error) | Interrupted::NotTold(NotTold::Journal(error)) => {
                of_journal(error)
            }
            Interrupted::NotTold(NotTold::Late) => "Postgres does not answer in time",
            Interrupted::Unheard(Unheard::Lost | Unheard::Mute(_)) => {
                "contact with Postgres was lost, or it refused"
            }
            Interrupted::Unheard(Unheard::Silent) => "the doorbell is not heard",
            Interrupted::OtherHistory => "history is another than the one that was read",
            Interrupted::OtherMode => "the doorbell has another mode now",
            Interrupted::Stopped => "the relay stops",
        }
    }
}

/// Reads on and on. It owns its position; nobody else knows more of it than cursors.
pub struct Reader {
    database: Database,
    rooms: mpsc::Sender<Command>,
    told: Told,
    reached: Option<(String, Position)>,
    place: Arc<Place>,
    /// Where this history began for the relay, until what came before is remembered.
    began: Option<Arc<Place>>,
    /// Of a batch that was interrupted: what of it was handed on, by transaction its greatest `seq`.
    handed_on: HashMap<u64, u64>,
    unsettled: Unsettled,
    /// Whether the registry is newer than all that is in the batch: what it lacks is watched no more.
    is_registry_newer: bool,
    placement: Placement,
    look: Arc<Notify>,
    /// Whether it ever was in contact with Postgres.
    has_read: bool,
    /// What its login has more than it needs, as it was said last; None: nobody wants to hear of it.
    excess: Option<Vec<Excess>>,
}

impl Reader {
    /// Begins at the present, once Postgres is reached. It looks when the bell rings, now and then, and
    /// when `look` says that somebody waits for it.
    pub fn new(
        database: Database,
        placement: Placement,
        rooms: mpsc::Sender<Command>,
        told: Told,
        look: Arc<Notify>,
    ) -> Reader {
        Reader {
            database,
            rooms,
            told,
            reached: None,
            place: Place::nowhere(),
            began: None,
            handed_on: HashMap::new(),
            unsettled: Unsettled::default(),
            is_registry_newer: false,
            placement,
            look,
            has_read: false,
            excess: None,
        }
    }

    /// The same, and it says so when its login has more than it needs.
    pub fn modest(self) -> Reader {
        let excess = Some(Vec::new());
        Reader { excess, ..self }
    }

    /// Reads until the rooms are gone.
    pub async fn run(mut self) {
        let mut backoff = Duration::from_millis(100);
        loop {
            let began = Instant::now();
            let interrupted = match self.read_on().await {
                Err(Interrupted::Stopped) => return,
                Err(interrupted) => interrupted,
                Ok(never) => match never {},
            };
            if self.told.readiness.borrow().clone() == Readiness::Ready
                || began.elapsed() > LONGEST_BACKOFF
            {
                backoff = Duration::from_millis(100);
            }
            self.told.readiness.send_replace(Readiness::Unready {
                reason: interrupted.in_public(),
                details: interrupted.to_string(),
            });
            self.told.metrics.leads.set(0);
            tracing::warn!(reason = %interrupted, again_in_ms = backoff.as_millis() as u64, "not reading the journal");
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    async fn read_on(&mut self) -> Result<std::convert::Infallible, Interrupted> {
        // the bell first: what is committed from here on rings, what was before is read
        let mut doorbell = Doorbell::hang(&self.database).await?;
        let opening = async {
            let journal = Journal::open(self.database.session("reader").await?).await?;
            self.look_at_rights(&journal).await;
            // before there is a cursor, with which clients are let in
            self.read_registry(&journal).await?;
            self.find_position(&journal).await?;
            let mode = journal.mode().await?;
            let sleeper = match mode {
                Mode::Adaptive => Some(Sleeper::begin(&self.database).await?),
                Mode::Always | Mode::Never => None,
            };
            Ok::<_, Interrupted>((journal, mode, sleeper))
        };
        let (journal, mode, mut sleeper) = tokio::select! {
            opened = opening => opened?,
            unheard = doorbell.watch() => return Err(unheard.into()),
        };
        if sleeper.is_some() {
            doorbell.keep_company();
        }
        tokio::select! {
            read = self.read(&journal) => { read?; }
            unheard = doorbell.watch() => return Err(unheard.into()),
        }
        if self
            .told
            .cursor
            .wait_for(|cursor| !cursor.is_empty())
            .await
            .is_err()
        {
            return Err(Interrupted::Stopped);
        }
        tracing::info!(database = %self.database.target(), cursor = %self.place.text, doorbell = ?mode, "reading the journal");
        self.told.readiness.send_replace(Readiness::Ready);
        if std::mem::replace(&mut self.has_read, true) {
            self.told.metrics.reconnects.inc();
        }
        tokio::select! {
            remembered = self.remember(&journal) => remembered?,
            unheard = doorbell.watch() => return Err(unheard.into()),
        }

        let mut safety = tokio::time::interval(match mode {
            Mode::Never => POLL_WITHOUT_BELL,
            Mode::Adaptive | Mode::Always => SAFETY_POLL,
        });
        safety.set_missed_tick_behavior(MissedTickBehavior::Delay);
        safety.reset();
        let mut looked_around = Instant::now();
        let mut pruned = Instant::now();
        let mut pruning = JoinSet::new();
        pruning.spawn(measure(self.database.clone(), self.told.metrics.clone()));
        loop {
            let is_due = async {
                match &mut sleeper {
                    Some(sleeper) => sleeper.due().await,
                    None => pending().await,
                }
            };
            let rung = tokio::select! {
                rung = doorbell.rung() => {
                    rung?;
                    self.told.metrics.doorbells.inc();
                    true
                }
                due = is_due => {
                    due?;
                    true
                }
                // what it finds may be about to ring
                () = self.look.notified() => true,
                _ = safety.tick() => false,
                () = self.rooms.closed() => return Err(Interrupted::Stopped),
            };
            if rung {
                // so that it does not find what is about to ring: among many changes one always is
                safety.reset();
            }
            let is_rung_for = sleeper
                .as_ref()
                .map_or(mode == Mode::Always, Sleeper::is_rung_for);
            let silent = doorbell.leader_is_silent();
            let began = Instant::now();
            let look = async {
                if let Some(sleeper) = &mut sleeper {
                    sleeper.tend(silent).await?;
                }
                let found = self.read(&journal).await?;
                if !rung && is_rung_for && found > 0 {
                    self.told.metrics.safety_poll_finds.inc_by(found);
                    tracing::warn!(changes = found, "found changes that no bell had announced");
                }
                if looked_around.elapsed() >= SAFETY_POLL {
                    looked_around = Instant::now();
                    if journal.mode().await? != mode {
                        return Err(Interrupted::OtherMode);
                    }
                    self.check_history(&journal).await?;
                    self.read_registry(&journal).await?;
                }
                while pruning.try_join_next().is_some() {}
                if pruned.elapsed() >= PRUNE_EVERY && pruning.is_empty() {
                    pruned = Instant::now();
                    let read = self.place.cursor.position.clone();
                    let (database, metrics) = (self.database.clone(), self.told.metrics.clone());
                    pruning.spawn(async {
                        prune(database.clone(), read).await;
                        measure(database, metrics).await;
                    });
                }
                Ok::<_, Interrupted>(found)
            };
            // for as long as the doorbell is heard: a look that never ends is cut off by it
            let found = tokio::select! {
                looked = look => looked?,
                unheard = doorbell.watch() => return Err(unheard.into()),
            };
            if let Some(sleeper) = &mut sleeper {
                sleeper
                    .looked(found, began.elapsed(), doorbell.has_rung())
                    .await?;
                doorbell.lead(sleeper.leads());
                let metrics = &self.told.metrics;
                metrics.leads.set(sleeper.leads().into());
                metrics.led_past.set(sleeper.looks_past_leader().into());
                if found > 0 && !is_rung_for {
                    doorbell.pass_on().await?;
                }
            }
        }
    }

    /// Says what its login has more than it needs, if that is news.
    async fn look_at_rights(&mut self, journal: &Journal) {
        let Some(known) = &mut self.excess else {
            return;
        };
        let excess = match journal.excess().await {
            Ok(excess) => excess,
            Err(error) => {
                tracing::warn!(%error, "could not look up the rights of the relay's login");
                return;
            }
        };
        if !excess.is_empty() && *known != excess {
            let what: Vec<&str> = excess.iter().map(|one| one.what.as_str()).collect();
            let mend: Vec<&str> = excess.iter().map(|one| one.mend.as_str()).collect();
            let (what, mend) = (what.join("; "), mend.join(" "));
            tracing::warn!(
                what,
                mend,
                "the relay's login has more than crm_relay_serve, which is all that it needs"
            );
        }
        *known = excess;
    }

    /// Whether what was read is still what happened.
    async fn check_history(&self, journal: &Journal) -> Result<(), Interrupted> {
        match journal.vouch(&self.place.cursor).await? {
            Verdict::Good => Ok(()),
            Verdict::TooOld => Err(JournalError::Pruned.into()),
            Verdict::OtherHistory => Err(Interrupted::OtherHistory),
        }
    }

    /// The position to go on from: the one that was reached, if history is still the same.
    async fn find_position(&mut self, journal: &Journal) -> Result<(), Interrupted> {
        if journal.renew().await? {
            tracing::warn!(
                "the journal held transactions that this server has not come to: it was restored from elsewhere and begins anew"
            );
        }
        let mut why = "epoch_changed";
        if let Some((known, _)) = &self.reached {
            let verdict = match journal.vouch(&self.place.cursor).await? {
                Verdict::Good if !journal.stand(&self.unsettled.rows()).await? => {
                    Verdict::OtherHistory
                }
                verdict => verdict,
            };
            match verdict {
                Verdict::Good => return Ok(()),
                Verdict::TooOld => {
                    why = "cursor_too_old";
                    tracing::warn!(
                        "the journal was pruned beyond what was read: everybody fetches anew"
                    );
                }
                Verdict::OtherHistory => {
                    // also for cursors from before what is gone, whose clients were told it
                    journal.disown(known).await?;
                    let epoch = journal.epoch().await?;
                    tracing::warn!(was = %known, is = %epoch, "history is another than the one that was read: everybody fetches anew");
                }
            }
        }
        let epoch = journal.epoch().await?;
        let position = journal.present().await?;
        self.handed_on.clear();
        self.unsettled.forget();
        self.place = Place::of(Cursor {
            epoch: epoch.clone(),
            position: position.clone(),
        });
        self.reached = Some((epoch, position));
        self.began = Some(self.place.clone());
        let place = self.place.clone();
        let disconnected = journal.disconnected().await?;
        self.send(Command::BeginAnew {
            place,
            why,
            disconnected,
        })
        .await
    }

    /// Reads what was told before this relay began, for those who come back to it.
    async fn remember(&mut self, journal: &Journal) -> Result<(), Interrupted> {
        let Some(until) = self.began.clone() else {
            return Ok(());
        };
        let (since, mut changes) = journal
            .past(&until.cursor.position, REMEMBERED, PIECE)
            .await?;
        let since = Place::of(Cursor {
            epoch: until.cursor.epoch.clone(),
            position: since,
        });
        let registry = self.told.registry.borrow().clone();
        for some in changes.chunks_mut(500) {
            self.placement.place(some, &registry).await?;
        }
        let past = order::by_transaction(changes)
            .into_iter()
            .map(|changes| events(changes, &registry, &since))
            .collect();
        let remember = Command::Remember { since, until, past };
        self.send(remember).await?;
        // not before: who comes back waits for it
        self.began = None;
        Ok(())
    }

    async fn read_registry(&mut self, journal: &Journal) -> Result<(), Interrupted> {
        let registry = journal.registry().await?;
        for module in registry
            .modules()
            .filter(|module| !module.missing.is_empty())
        {
            let known = self.told.registry.borrow().clone();
            let known = known.module(&module.name);
            if known.is_none_or(|known| known.missing != module.missing) {
                let columns = module.missing.join(", ");
                tracing::warn!(module = %module.name, columns, "the table lacks columns that it is watched with: its rooms fetch anew at each change, until it is watched again");
            }
        }
        self.told.registry.send_if_modified(|known| {
            let changed = **known != registry;
            if changed {
                *known = Arc::new(registry);
            }
            changed
        });
        Ok(())
    }

    async fn send(&self, command: Command) -> Result<(), Interrupted> {
        self.rooms
            .send(command)
            .await
            .map_err(|_| Interrupted::Stopped)
    }

    /// Reads what came since, hands it on, and moves the position when all of it is handed on;
    /// returns the number of changes.
    async fn read(&mut self, journal: &Journal) -> Result<u64, Interrupted> {
        let Some((_, position)) = self.reached.clone() else {
            return Ok(0);
        };
        let mut changes = 0;
        let mut transactions = 0;
        let mut held: Vec<Change> = Vec::new();
        let mut bytes = 0;
        let mut batch = journal.read(&position).await?;
        self.is_registry_newer = false;
        loop {
            let is_due = transactions + 1 >= TRANSACTIONS_A_BATCH;
            let so_far = is_due.then(|| batch.so_far()).flatten();
            let Some(change) = batch.next().await? else {
                break;
            };
            changes += 1;
            let is_next = held.last().is_some_and(|last| last.txid != change.txid);
            if is_next || bytes > PIECE {
                self.hand_on(std::mem::take(&mut held)).await?;
                bytes = 0;
            }
            transactions += u32::from(is_next);
            if is_next
                && transactions >= TRANSACTIONS_A_BATCH
                && let Some(position) = so_far
            {
                transactions = 0;
                self.reach(position).await?;
            }
            bytes += change.image_bytes();
            held.push(change);
        }
        self.hand_on(held).await?;
        let next = batch.end().await?;
        if changes > 0 {
            self.told.metrics.batch.observe(changes as f64);
        }
        self.reach(next).await?;
        Ok(changes)
    }

    /// Goes on from here.
    async fn reach(&mut self, position: Position) -> Result<(), Interrupted> {
        self.handed_on.clear();
        match &mut self.reached {
            Some((epoch, reached)) if *reached != position => {
                *reached = position.clone();
                let epoch = epoch.clone();
                self.place = Place::of(Cursor { epoch, position });
            }
            _ => return Ok(()),
        }
        let (place, told) = (self.place.clone(), self.place.clone());
        self.send(Command::Reached { place, told }).await
    }

    /// Makes events of one transaction's changes (or a piece of them) and hands them on.
    async fn hand_on(&mut self, mut changes: Vec<Change>) -> Result<(), Interrupted> {
        if let Some(Change { txid, .. }) = changes.first() {
            let done = self.handed_on.get(txid).copied();
            changes.retain(|change| Some(change.seq) > done);
        }
        let Some(Change { txid, seq, .. }) = changes.last() else {
            return Ok(());
        };
        let (txid, seq) = (*txid, *seq);
        let is_known = |change: &Change| {
            let registry = self.told.registry.borrow();
            *change.module == *DISCONNECTS || registry.module(&change.module).is_some()
        };
        if !self.is_registry_newer && !changes.iter().all(is_known) {
            // watched since the registry was read; the reader's own session is in the middle of a read
            let other = Journal::open(self.database.session("registry").await?).await?;
            self.read_registry(&other).await?;
            self.is_registry_newer = true;
        }
        let registry = self.told.registry.borrow().clone();
        let is_narrow = |change: &Change| {
            registry
                .module(&change.module)
                .is_some_and(|module| module.is_narrow)
        };
        if changes.iter().any(is_narrow) {
            // whose brokerage a record is in depends on its owner
            self.placement.forget();
        }
        self.placement.place(&mut changes, &registry).await?;
        let events = events(changes, &registry, &self.place);
        if !events.is_empty() {
            self.send(Command::Publish { events }).await?;
        }
        self.handed_on.insert(txid, seq);
        self.unsettled.tell(txid, seq);
        Ok(())
    }
}

/// In a session of its own: a slot of some million rows is looked through before it is truncated, and
/// what happens meanwhile does not wait for that.
async fn prune(database: Database, read: Position) {
    let pruned = async {
        let journal = Journal::open(database.session("prune").await?).await?;
        let mut slots = Vec::new();
        while let Some(slot) = journal.prune(&read).await? {
            slots.push(slot);
        }
        Ok::<_, Interrupted>(slots)
    };
    match pruned.await {
        Ok(slots) if slots.is_empty() => {}
        Ok(slots) => tracing::info!(slots = slots.join(", "), "truncated slots of the journal"),
        Err(error) => tracing::warn!(%error, "could not prune the journal"),
    }
}

/// How large the journal is. In a session of its own, too: it waits where a slot is being truncated.
async fn measure(database: Database, metrics: Metrics) {
    let measured = async {
        let journal = Journal::open(database.session("measure").await?).await?;
        Ok::<_, Interrupted>(journal.size().await?)
    };
    match measured.await {
        Ok(size) => metrics.sized(&size),
        Err(error) => tracing::warn!(%error, "could not look up the size of the journal"),
    }
}

/// The events of one transaction's changes, in order.
pub fn events(changes: Vec<Change>, registry: &Registry, place: &Arc<Place>) -> Vec<Event> {
    let copy = |change: &Change| (change.module.clone(), change.txid, change.changed_at);
    let told: Vec<_> = changes.iter().map(copy).collect();
    let linked = match order::relink(changes) {
        Ok(linked) => linked,
        Err(error) => return upheaval(told, &error),
    };
    let mut events = Vec::with_capacity(linked.len());
    for change in linked {
        if *change.module == *DISCONNECTS {
            events.push(Event::Disconnected {
                user: change.record_id,
                at: change.changed_at,
                txid: change.txid,
            });
            continue;
        }
        // unwatched since: nobody is in rooms of a module that is not there
        let Some(module) = registry.module(&change.module) else {
            continue;
        };
        if module.is_narrow {
            events.push(event::of_user(change));
            continue;
        }
        let changed = change
            .part
            .as_ref()
            .map_or(Some(module), |(part, _)| registry.module(part));
        let quiet = changed.map_or(&[][..], |changed| &changed.quiet_columns[..]);
        let told = copy(&change);
        match event::of(change, module, quiet, place) {
            Ok(event) => events.extend(event),
            Err(error) => events.extend(upheaval(vec![told], &error)),
        }
    }
    events
}

/// What cannot be read as rows is told as an upheaval of its modules: nobody is left believing that
/// they are current.
fn upheaval(told: Vec<(Arc<str>, u64, std::time::SystemTime)>, error: &BadImage) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    let mut modules: Vec<Arc<str>> = Vec::new();
    for (module, txid, changed_at) in told {
        if !modules.contains(&module) {
            tracing::error!(%module, txid, %error, "a change cannot be read: its module's rooms fetch anew");
            modules.push(module.clone());
            events.push(Event::Truncated {
                module,
                txid,
                changed_at,
            });
        }
    }
    events
}
