//! Sleep: which relay of a database leads, and whether writers have to ring.
//!
//! NOTIFY takes a lock at commit that all who notify share, so writers ring only for a relay that sleeps.
//! The leading relay sleeps while it holds the advisory lock [`ASLEEP`] alone; each transaction that
//! changes something tries to share it. Who gets no share rings. Who gets one need not: somebody looks at
//! the journal anyway, or nobody is there; and the share is kept until the transaction ends.
//!
//! To fall asleep the relay waits for that lock. From then on whoever tries for a share fails, and rings;
//! those who have one are waited for. Once it is granted the relay looks a last time. So no change is
//! slept through: it was rung for, or it was committed before that look. (A lock is no snapshot: this
//! holds at every level of isolation.)
//!
//! It wakes when it is of no use to be rung for, as the bell rings again before it has looked; and when somebody
//! waits for NOTIFY's lock, which is kept while the commit is flushed: on a disk that takes 5 ms for that, eight writers
//! who ring get 178 commits a second done, and 1,300 who need not. It falls asleep when nothing comes any more.
//!
//! Of several relays one leads, by the lock [`LEADS`]. The others hear the same bells, and while the leader is
//! awake it rings for them ([`crate::doorbell`]). They try for its lock now and then and never wait for
//! it: who waits holds back the vacuum of the whole database.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_postgres::error::SqlState;

use crate::doorbell::{ANSWER_WITHIN, Unheard};
use crate::postgres::{Client, Database, Ears, chain};

/// Second key of the lock that a sleeping relay holds and writers try to share; the first is the oid of
/// `crm_relay.setting`. The trigger names it, too: see `crm_relay.ring()`.
pub const ASLEEP: i32 = 2;

/// Second key of the leader's lock.
pub const LEADS: i32 = 3;

/// A bell that comes so soon after the last look.
const SOON: Duration = Duration::from_millis(20);

/// So many of them in a row, and it is asked whether to be rung for is of use, or costs too much.
const BUSY: u32 = 3;

/// Time in which nothing was found, after which a look that finds nothing either has it try to fall asleep.
const QUIET: Duration = Duration::from_millis(8);

/// The same where writers had waited for each other, who come at the pace of their disk, or may have while it did not
/// get to fall asleep.
const QUIET_AFTER_WAITING: Duration = Duration::from_millis(50);

/// Rests between two looks, while it is awake.
const FIRST_REST: Duration = Duration::from_micros(200);
const LONGEST_REST: Duration = Duration::from_millis(2);

/// Whether somebody waits for the lock that NOTIFY takes at commit and keeps for as long as the flush takes: that of
/// the object 0 of `pg_database` (`PreCommit_Notify()` in PostgreSQL's `src/backend/commands/async.c`).
const WAITS: &str = "
    select exists (select from pg_locks
                    where locktype = 'object' and classid = 'pg_database'::regclass and objid = 0 and not granted)";

/// While it waits to fall asleep it looks for those who need not ring, less and less often: they are few,
/// or do nothing.
const FALLING_FIRST: Duration = Duration::from_millis(5);
const FALLING_LAST: Duration = Duration::from_millis(250);

/// How long it waits to fall asleep; then nobody has to ring until it tries again. Meanwhile all who come ring, and
/// may wait for each other; and a wait is a statement, whose snapshot holds back vacuum.
const FALL_WITHIN: Duration = Duration::from_secs(2);

/// How often who follows tries to lead.
const TRY_EVERY: Duration = Duration::from_secs(1);

/// How often it looks beside a leader that is silent and cannot be ended.
const PAST_EVERY: Duration = Duration::from_millis(250);

/// What a relay does between two looks at the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// Another leads, and rings.
    Follows,
    /// Another leads, is silent and cannot be ended: it looks now and then.
    Past,
    /// It looks on and on; nobody has to ring.
    Awake,
    /// It waits for those who did not have to ring; whoever comes now rings.
    Falling,
    /// Everybody rings.
    Asleep,
}

/// A session that holds the locks, and what follows from them.
pub struct Sleeper {
    client: Arc<Client>,
    ears: Ears,
    rest: Rest,
    /// Ends when it sleeps.
    falling: Option<BoxFuture<'static, Result<(), tokio_postgres::Error>>>,
    /// When it is to look though no bell rang.
    next: Instant,
    /// So long it waits after the next look, while it falls asleep.
    patience: Duration,
    busy: u32,
    /// When something was found last.
    found_at: Instant,
    /// So long it rests before the next look, while it is awake.
    rest_for: Duration,
    /// [`QUIET`], or [`QUIET_AFTER_WAITING`].
    awake_for: Duration,
}

impl Sleeper {
    /// Follows, until it is its turn to lead.
    pub async fn begin(database: &Database) -> Result<Sleeper, Unheard> {
        let (client, ears) = database.session("sleep").await?.split();
        let mut sleeper = Sleeper {
            client: Arc::new(client),
            ears,
            rest: Rest::Follows,
            falling: None,
            next: Instant::now(),
            patience: FALLING_FIRST,
            busy: 0,
            found_at: Instant::now(),
            rest_for: FIRST_REST,
            awake_for: QUIET,
        };
        sleeper.try_to_lead().await?;
        Ok(sleeper)
    }

    /// Whether it leads.
    pub fn leads(&self) -> bool {
        !matches!(self.rest, Rest::Follows | Rest::Past)
    }

    /// Whether it looks by itself, past a leader that is silent.
    pub fn looks_past_leader(&self) -> bool {
        self.rest == Rest::Past
    }

    /// Whether what is committed now rings, for whoever leads or for the one that follows.
    pub fn is_rung_for(&self) -> bool {
        matches!(self.rest, Rest::Follows | Rest::Asleep)
    }

    /// Waits until the journal is to be looked at though no bell rang.
    pub async fn due(&mut self) -> Result<(), Unheard> {
        let falls = async {
            match &mut self.falling {
                Some(falling) => falling.await,
                None => pending().await,
            }
        };
        let wakes = matches!(self.rest, Rest::Asleep);
        tokio::select! {
            fell = falls => {
                self.falling = None;
                match fell {
                    Ok(()) => self.rest = Rest::Asleep,
                    Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => self.stay_awake(QUIET_AFTER_WAITING),
                    Err(error) => return Err(Unheard::Mute(chain(&error))),
                }
                self.found_at = Instant::now();
                Ok(())
            }
            () = sleep_until(self.next), if !wakes => Ok(()),
            () = self.ears.lost() => Err(Unheard::Lost),
        }
    }

    /// Before the journal is looked at: who follows tries to lead.
    pub async fn tend(&mut self, leader_is_silent: bool) -> Result<(), Unheard> {
        if self.leads() || Instant::now() < self.next {
            return Ok(());
        }
        self.try_to_lead().await?;
        if self.leads() || !leader_is_silent {
            return Ok(());
        }
        let ended = self.end_leader().await;
        self.try_to_lead().await?;
        if !self.leads() {
            if self.rest == Rest::Follows {
                let why = ended.err().unwrap_or_default();
                tracing::warn!(
                    why,
                    "the leading relay is silent and cannot be ended: this one looks by itself"
                );
            }
            self.rest = Rest::Past;
            self.next = Instant::now() + PAST_EVERY;
        }
        Ok(())
    }

    /// After the journal was looked at: `found` changes, in this time, and whether the bell has rung again
    /// meanwhile.
    pub async fn looked(
        &mut self,
        found: u64,
        took: Duration,
        rings_on: bool,
    ) -> Result<(), Unheard> {
        let now = Instant::now();
        // until this look began
        let quiet_for = (now - self.found_at).saturating_sub(took);
        if found > 0 {
            self.found_at = now;
        }
        match self.rest {
            Rest::Follows | Rest::Past => {}
            Rest::Asleep if found > 0 => {
                self.busy = if quiet_for < SOON { self.busy + 1 } else { 0 };
                if self.busy == BUSY {
                    self.busy = 0;
                    if self.ask(WAITS).await? {
                        self.wake(QUIET_AFTER_WAITING).await?;
                    } else if rings_on {
                        self.wake(QUIET).await?;
                    }
                }
            }
            Rest::Asleep => {}
            Rest::Awake if found == 0 && quiet_for >= self.awake_for => self.fall_asleep(),
            Rest::Awake => {
                // while it finds something it looks half of its time, so that what comes meanwhile is read at
                // once; then less and less often
                let rest = if found > 0 { took } else { self.rest_for * 2 };
                self.rest_for = rest.min(LONGEST_REST);
                self.next = now + self.rest_for;
            }
            Rest::Falling => {
                self.next = Instant::now() + self.patience;
                self.patience = (self.patience * 2).min(FALLING_LAST);
            }
        }
        Ok(())
    }

    fn fall_asleep(&mut self) {
        let client = self.client.clone();
        let wait = format!(
            "set lock_timeout = {}; select pg_advisory_lock('crm_relay.setting'::regclass::oid::int, {ASLEEP}); set lock_timeout = 0",
            FALL_WITHIN.as_millis()
        );
        self.falling = Some(async move { client.batch_execute(&wait).await }.boxed());
        self.rest = Rest::Falling;
        self.patience = FALLING_FIRST;
        self.next = Instant::now() + self.patience;
    }

    async fn wake(&mut self, quiet: Duration) -> Result<(), Unheard> {
        self.ask(&format!(
            "select pg_advisory_unlock('crm_relay.setting'::regclass::oid::int, {ASLEEP})"
        ))
        .await?;
        self.stay_awake(quiet);
        Ok(())
    }

    /// Until nothing has come for so long.
    fn stay_awake(&mut self, quiet: Duration) {
        self.awake_for = quiet;
        self.busy = 0;
        self.rest = Rest::Awake;
        self.found_at = Instant::now();
        self.rest_for = FIRST_REST;
        self.next = self.found_at;
    }

    async fn try_to_lead(&mut self) -> Result<(), Unheard> {
        self.next = Instant::now() + TRY_EVERY;
        let leads = self
            .ask(&format!(
                "select pg_try_advisory_lock('crm_relay.setting'::regclass::oid::int, {LEADS})"
            ))
            .await?;
        if leads {
            tracing::info!("this relay leads");
            self.stay_awake(QUIET);
        }
        Ok(())
    }

    /// Ends the session of a leader that says nothing any more; only another relay's of the same role.
    async fn end_leader(&mut self) -> Result<(), String> {
        let end = format!(
            "select pg_terminate_backend(l.pid)
               from pg_locks l join pg_stat_activity a on a.pid = l.pid
              where l.locktype = 'advisory' and l.granted and l.classid = 'crm_relay.setting'::regclass::oid
                and l.objid = {LEADS} and l.objsubid = 2 and a.datname = current_database()
                and a.usename = current_user and a.application_name like 'crm-relay%'"
        );
        match timeout(ANSWER_WITHIN, self.client.query_opt(&end, &[])).await {
            Ok(Ok(Some(_))) => {
                tracing::warn!("the leading relay is silent: its session was ended");
                Ok(())
            }
            Ok(Ok(None)) => Err("somebody else's session holds its lock".to_owned()),
            Ok(Err(error)) => Err(chain(&error)),
            Err(_) => Err("no answer".to_owned()),
        }
    }

    async fn ask(&mut self, query: &str) -> Result<bool, Unheard> {
        match timeout(ANSWER_WITHIN, self.client.query_one(query, &[])).await {
            Ok(Ok(row)) => Ok(row.get(0)),
            Ok(Err(error)) => Err(Unheard::Mute(chain(&error))),
            Err(_) => Err(Unheard::Lost),
        }
    }
}
