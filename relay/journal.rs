//! The journal, as the relay reads it: `crm_relay.change`, from one snapshot to the next.
//!
//! Live delivery, start and reconnect read alike, by a [`Batch`]. A read is one transaction of isolation
//! level "repeatable read" (of few rows one statement), in which the rows and the snapshot that tells what
//! was read are of the same moment (<https://www.postgresql.org/docs/current/transaction-iso.html>).

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use thiserror::Error;
use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::{Row, SimpleQueryMessage, Statement};

use crate::change::{Action, Change};
use crate::postgres::Session;
use crate::registry::{KeyForm, Module, Registry};
use crate::snapshot::{BadCursor, Position, Snapshot, number};

pub use access::{Question, Wish};
pub use batch::{Batch, GLANCE, READ};
pub use entries::{ENTRIES, Entries, Entry, FILTER_SETTINGS, Filter, Found, TRANSACTIONS};
pub use past::{RecordNow, Verdict};
pub use rights::Excess;

/// Version of the schema that this relay reads.
pub const SCHEMA_VERSION: i32 = 7;

/// What is read of each row, the same wherever it is read.
macro_rules! columns {
    () => {
        "select c.seq, c.txid::text::bigint as number, c.module, c.action, c.record_id, c.part, c.part_id, c.actor,
                c.changed_at, c.depth, c.old_image, c.new_image,
                c.record_image, max(c.seq) over (partition by c.txid) as last
           from unnest($1::bigint[], $2::bigint[]) as stretch (first, beyond)"
    };
}

/// Each transaction's rows together, transactions by their greatest `seq`: whoever waited for a row
/// lock wrote its journal row after the other's commit.
macro_rules! in_order {
    () => {
        "order by last, seq"
    };
}

mod access;
mod batch;
mod entries;
mod rights;
// after what it uses of this file's macros
mod past;

/// Sorting and hashing would be the planner's choice only where its statistics lie; the index is
/// always right. A plan for all parameters is made once. Sorted are forty bytes a row.
pub const READ_SETTINGS: &str = "set enable_seqscan = off; set enable_bitmapscan = off; set plan_cache_mode = force_generic_plan; set jit = off; set work_mem = '16MB'";

/// Why the journal could not be read.
#[derive(Debug, Error)]
pub enum JournalError {
    /// Postgres said no, or is gone.
    #[error("{}", crate::postgres::chain(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// `crm-relay install` was not run on this database.
    #[error("schema crm_relay is not installed in this database; run: crm-relay install")]
    NotInstalled,
    /// Another version of the schema.
    #[error(
        "schema crm_relay has version {found}, this relay reads version {SCHEMA_VERSION}; run: crm-relay install"
    )]
    OtherVersion {
        /// The version that is installed.
        found: i32,
    },
    /// A snapshot that cannot be read.
    #[error("Postgres told a snapshot that makes no sense: {0}")]
    BadSnapshot(#[from] BadCursor),
    /// Another relay, or a DBA, pruned what this one had yet to read.
    #[error("the journal was pruned beyond what was read")]
    Pruned,
    /// Somebody emptied it by hand, perhaps also of what was yet to be read.
    #[error("the journal no longer holds what was read last")]
    Emptied,
    /// A row that contradicts the schema.
    #[error(
        "row {seq} of crm_relay.change has action {action:?}; it must be created, updated, deleted or truncated"
    )]
    BadRow {
        /// Its number.
        seq: i64,
        /// What stands there.
        action: String,
    },
}

/// How much the journal holds.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Rows, as the statistics of Postgres estimate them.
    pub rows: i64,
    /// Bytes of all slots with their indexes.
    pub bytes: i64,
    /// How long changes are to be kept.
    pub retention_seconds: i64,
    /// How old the oldest one is; 0 where there is none.
    pub oldest_seconds: i64,
}

/// When writers ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// While the relay sleeps.
    Adaptive,
    /// Each transaction.
    Always,
    /// Never: the relay polls.
    Never,
}

/// A session that reads the journal.
pub struct Journal {
    session: Session,
    glance: Statement,
    read: Statement,
    stands: Statement,
    is_spoilt: AtomicBool,
    /// The position after a read of few rows, when nothing was open above it.
    calm: Mutex<Option<Position>>,
}

/// A JSON image, as the bytes that Postgres wrote.
struct Image(String);

impl<'a> FromSql<'a> for Image {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Image(std::str::from_utf8(raw)?.to_owned()))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::JSON
    }
}

impl Journal {
    /// Checks that the schema is the one that this relay knows.
    pub async fn open(session: Session) -> Result<Journal, JournalError> {
        let client = &session.client;
        let installed = client
            .query_one("select to_regclass('crm_relay.setting') is not null", &[])
            .await?;
        if !installed.get::<_, bool>(0) {
            return Err(JournalError::NotInstalled);
        }
        let found = client
            .query_one("select version from crm_relay.setting", &[])
            .await?
            .get(0);
        if found != SCHEMA_VERSION {
            return Err(JournalError::OtherVersion { found });
        }
        client.batch_execute(READ_SETTINGS).await?;
        let glance = client.prepare(GLANCE).await?;
        let read = client.prepare(READ).await?;
        let stands = client.prepare(batch::STANDS).await?;
        Ok(Journal {
            session,
            glance,
            read,
            stands,
            is_spoilt: AtomicBool::new(false),
            calm: Mutex::default(),
        })
    }

    /// Whether it must not be used again.
    pub fn is_spoilt(&self) -> bool {
        self.is_spoilt.load(Ordering::Relaxed)
    }

    /// Statements of this session end with an error when they take longer.
    pub async fn limit(&self, longest: Duration) -> Result<(), JournalError> {
        let limit = format!("set statement_timeout = {}", longest.as_millis());
        Ok(self.session.client.batch_execute(&limit).await?)
    }

    /// What tells this history from every other; see `crm_relay.epoch()`.
    pub async fn epoch(&self) -> Result<String, JournalError> {
        Ok(self
            .session
            .client
            .query_one("select crm_relay.epoch()", &[])
            .await?
            .get(0))
    }

    /// The doorbell's mode: whether writers ring.
    pub async fn mode(&self) -> Result<Mode, JournalError> {
        let row = self
            .session
            .client
            .query_one("select doorbell from crm_relay.setting", &[])
            .await?;
        Ok(match row.get(0) {
            "never" => Mode::Never,
            "adaptive" => Mode::Adaptive,
            _ => Mode::Always,
        })
    }

    /// Which tables are watched.
    pub async fn registry(&self) -> Result<Registry, JournalError> {
        let rows = self
            .session
            .client
            .query(
                "select m.module, m.event, m.key_columns, m.quiet_columns, m.part_of is not null,
                        array(select coalesce(format_type(coalesce(nullif(t.typbasetype, 0), t.oid), null), 'text')
                                from unnest(m.key_columns) with ordinality as k (name, place)
                                left join pg_attribute a on a.attrelid = m.relation and a.attname = k.name
                                left join pg_type t on t.oid = a.atttypid
                               order by k.place),
                        m.access_columns, m.narrow, m.access_of,
                        array(select k from unnest(m.key_columns || m.access_columns || m.hidden_columns) k
                               where not exists (select from pg_attribute a where a.attrelid = m.relation
                                                    and a.attname = k and not a.attisdropped))
                   from crm_relay.module m",
                &[],
            )
            .await?;
        Ok(Registry::of(rows.iter().map(|row| Module {
            name: row.get::<_, String>(0).into(),
            event: row.get(1),
            key_columns: row.get(2),
            quiet_columns: row.get(3),
            is_part: row.get(4),
            key: KeyForm::of(&row.get::<_, Vec<String>>(5)),
            access_columns: row.get(6),
            is_narrow: row.get(7),
            access_of: row.get(8),
            missing: row.get(9),
        })))
    }

    /// The present: everything that is committed counts as read.
    pub async fn present(&self) -> Result<Position, JournalError> {
        let (snapshot, _) = self.begin().await?;
        let (highest, witness) = self.newest().await?;
        self.session.client.batch_execute("commit").await?;
        Ok(Position {
            snapshot: snapshot.clipped(highest),
            witness,
        })
    }

    /// Empties a journal that was restored from another server, and tells whether it was.
    pub async fn renew(&self) -> Result<bool, JournalError> {
        let row = (self.session.client)
            .query_one("select crm_relay.renew()", &[])
            .await?;
        Ok(row.get(0))
    }

    /// Makes history another than the one of this epoch, of which something that was read is gone:
    /// clients may have been told it.
    pub async fn disown(&self, epoch: &str) -> Result<(), JournalError> {
        (self.session.client)
            .execute("select crm_relay.disown($1)", &[&epoch])
            .await?;
        Ok(())
    }

    /// Truncates a slot whose time is over and which holds nothing that is yet to be read from this
    /// position on; returns its name. None: there is no such slot, or somebody reads it.
    pub async fn prune(&self, read: &Position) -> Result<Option<String>, JournalError> {
        let needed = read.snapshot.xmin() as i64;
        let row = (self.session.client)
            .query_opt("select crm_relay.prune($1::bigint::text::xid8)", &[&needed])
            .await?;
        Ok(row.map(|row| row.get(0)))
    }

    /// How much it holds; of its rows the oldest alone is read.
    pub async fn size(&self) -> Result<Size, JournalError> {
        let row = (self.session.client)
            .query_one(
                "select s.rows, s.bytes, extract(epoch from c.retention)::bigint,
                        coalesce(extract(epoch from clock_timestamp() - (
                          select changed_at from crm_relay.change order by txid limit 1)), 0)::bigint
                   from crm_relay.setting c
                  cross join (
                    select coalesce(sum(pg_stat_get_live_tuples(inhrelid)), 0)::bigint,
                           coalesce(sum(pg_total_relation_size(inhrelid)), 0)::bigint
                      from pg_inherits where inhparent = 'crm_relay.change'::regclass) as s (rows, bytes)",
                &[],
            )
            .await?;
        Ok(Size {
            rows: row.get(0),
            bytes: row.get(1),
            retention_seconds: row.get(2),
            oldest_seconds: row.get(3),
        })
    }

    /// Transaction and `seq` of the newest row; of what was pruned, where there is none.
    async fn newest(&self) -> Result<(u64, Option<u64>), JournalError> {
        let client = &self.session.client;
        let newest = client
            .query_opt(
                "select c.txid::text::bigint,
                        (select max(n.seq) from crm_relay.change n where n.txid = c.txid)
                   from crm_relay.change c order by c.txid desc limit 1",
                &[],
            )
            .await?;
        if let Some(row) = newest {
            return Ok((
                row.get::<_, i64>(0) as u64,
                Some(row.get::<_, i64>(1) as u64),
            ));
        }
        let pruned = "select pruned_txid::text::bigint from crm_relay.setting";
        let row = client.query_one(pruned, &[]).await?;
        Ok((row.get::<_, i64>(0) as u64, None))
    }

    /// Begins a transaction (a read that fails gives up the session) and tells its snapshot and the
    /// greatest transaction that was pruned, in one round trip.
    async fn begin(&self) -> Result<(Snapshot, u64), JournalError> {
        // locked before the snapshot is taken: truncating heeds no snapshot, and what this one sees must
        // not go before it is read
        let begun = "begin isolation level repeatable read read only;
                     lock table crm_relay.change in access share mode;
                     select pg_current_snapshot()::text, pruned_txid::text from crm_relay.setting";
        for message in self.session.client.simple_query(begun).await? {
            if let SimpleQueryMessage::Row(row) = message {
                let snapshot = row.get(0).unwrap_or_default().parse()?;
                return Ok((snapshot, number(row.get(1).unwrap_or_default())?));
            }
        }
        Err(BadCursor::Missing("the snapshot").into())
    }

    /// Ends a transaction that ran code of the tables' owners. All that it did was undone (see
    /// `crm_relay.image()`) but statements that it prepared, one in the place of ours perhaps.
    async fn end_after_others(&self) -> Result<(), JournalError> {
        let ended = "commit; select from pg_catalog.pg_prepared_statements where from_sql limit 1";
        let told = self.session.client.simple_query(ended).await?;
        let is_row = |message: &SimpleQueryMessage| matches!(message, SimpleQueryMessage::Row(_));
        if told.iter().any(is_row) {
            self.is_spoilt.store(true, Ordering::Relaxed);
            tracing::warn!(
                "code that came with a record (a cast to json, a function in an index) prepared a statement in the relay's session, which is given up"
            );
        }
        Ok(())
    }
}

fn bounds(stretches: &[Range<u64>]) -> (Vec<i64>, Vec<i64>) {
    let bounds = stretches
        .iter()
        .map(|stretch| (stretch.start as i64, stretch.end as i64));
    bounds.unzip()
}

fn change(row: &Row) -> Result<Change, JournalError> {
    let seq: i64 = row.get(0);
    let action: &str = row.get(3);
    let Some(action) = Action::from_name(action) else {
        let action = action.to_owned();
        return Err(JournalError::BadRow { seq, action });
    };
    let part: Option<String> = row.get(5);
    Ok(Change {
        seq: seq as u64,
        txid: row.get::<_, i64>(1) as u64,
        module: Arc::from(row.get::<_, &str>(2)),
        action,
        record_id: row.get::<_, Option<String>>(4).unwrap_or_default(),
        part: part.map(|part| (part, row.get::<_, Option<String>>(6).unwrap_or_default())),
        actor: row.get(7),
        changed_at: row.get::<_, SystemTime>(8),
        depth: row.get(9),
        old_image: row.get::<_, Option<Image>>(10).map(|image| image.0),
        new_image: row.get::<_, Option<Image>>(11).map(|image| image.0),
        record_image: row.get::<_, Option<Image>>(12).map(|image| image.0),
        before: None,
        after: None,
        heirs: Vec::new(),
    })
}
