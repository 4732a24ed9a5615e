//! The journal as people read it: entries by who, what and when, with the session that wrote them.
//!
//! The stretches of the index are those of any other read, so what is looked up and what is followed
//! live come by the same two statements: which transactions, in the order of delivery, and then some of
//! them at a time. So nothing stays open on the server while somebody reads what was printed.

use std::pin::Pin;
use std::time::{Duration, SystemTime};

use futures::TryStreamExt;
use tokio_postgres::RowStream;
use tokio_postgres::types::ToSql;

use super::{Journal, JournalError, bounds, change};
use crate::change::Change;
use crate::snapshot::{Position, Snapshot};

/// A row of the journal with the session that wrote it.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// What changed.
    pub change: Change,
    /// Who had logged in to Postgres.
    pub db_user: String,
    /// The role that it had taken, else the same.
    pub db_role: String,
    /// What the session called itself.
    pub application: String,
}

/// Which entries are wanted: all that fit everything that is given.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of one of these modules.
    pub modules: Option<Vec<String>>,
    /// Of one of these records, or of their whole module.
    pub records: Option<Vec<String>>,
    /// By this user of the CRM.
    pub actor: Option<String>,
    /// By this user or role of Postgres.
    pub db_user: Option<String>,
    /// By sessions that called themselves so.
    pub application: Option<String>,
    /// Not before this moment.
    pub since: Option<SystemTime>,
    /// Before this moment.
    pub until: Option<SystemTime>,
    /// Of this transaction.
    pub txid: Option<i64>,
    /// With this number.
    pub seq: Option<i64>,
}

/// Filters ($1 to $9) are constants in a plan that is made for them, so each uses the index that it can.
/// What happened to a whole module has no record id, and is looked up by itself: an "or" would cost the
/// index.
pub const FILTER_SETTINGS: &str = "set plan_cache_mode = force_custom_plan";

macro_rules! wanted {
    ($columns:literal, $range:literal) => {
        concat!(
            "select ",
            $columns,
            " from crm_relay.change c where ",
            $range,
            wanted!(),
            " and ($2::text[] is null or c.record_id = any ($2)) union all select ",
            $columns,
            " from crm_relay.change c where ",
            $range,
            wanted!(),
            " and $2::text[] is not null and c.record_id is null offset 0"
        )
    };
    () => {
        " and ($1::text[] is null or c.module = any ($1))
          and ($3::text is null or c.actor = $3)
          and ($4::text is null or $4 in (c.db_user, c.db_role))
          and ($5::text is null or c.application = $5)
          and ($6::timestamptz is null or c.changed_at >= $6)
          and ($7::timestamptz is null or c.changed_at < $7)
          and ($8::bigint is null or c.txid = $8::bigint::text::xid8)
          and ($9::bigint is null or c.seq = $9)"
    };
}

/// The transactions with wanted entries in the ranges ($10 to $11, exclusive), in the order of delivery.
pub const TRANSACTIONS: &str = concat!(
    "select txid::text::bigint
       from (select c.txid, max(c.seq) as last
               from unnest($10::bigint[], $11::bigint[]) as stretch (first, beyond)
              cross join lateral (",
    wanted!(
        "c.txid, c.seq",
        "c.txid >= stretch.first::text::xid8 and c.txid < stretch.beyond::text::xid8"
    ),
    ") c group by c.txid) transactions
      order by last"
);

/// The wanted entries of these transactions ($10), in their order.
pub const ENTRIES: &str = concat!(
    "select c.seq, c.txid::text::bigint, c.module, c.action, c.record_id, c.part, c.part_id, c.actor, c.changed_at,
            c.depth, c.old_image, c.new_image, c.record_image, c.db_user, c.db_role, c.application
       from unnest($10::bigint[]) with ordinality as wanted (txid, place)
      cross join lateral (",
    wanted!("c.*", "c.txid = wanted.txid::text::xid8"),
    ") c
      order by wanted.place, c.seq"
);

/// What is there to be read: transactions in the order of delivery.
#[derive(Debug)]
pub struct Found {
    /// The transactions.
    pub txids: Vec<i64>,
    /// The position after all of them.
    pub position: Position,
    pruned: u64,
}

/// Entries as they come from the server, at the pace at which they are taken.
pub struct Entries<'a> {
    journal: &'a Journal,
    rows: Pin<Box<RowStream>>,
}

impl Filter {
    fn parameters(&self) -> Vec<&(dyn ToSql + Sync)> {
        vec![
            &self.modules,
            &self.records,
            &self.actor,
            &self.db_user,
            &self.application,
            &self.since,
            &self.until,
            &self.txid,
            &self.seq,
        ]
    }
}

impl Journal {
    /// From now on this session plans for each filter by itself.
    pub async fn plan_for_filters(&self) -> Result<(), JournalError> {
        Ok(self.session.client.batch_execute(FILTER_SETTINGS).await?)
    }

    /// The transactions with wanted entries that became visible since a position; since ever, where
    /// there is none.
    pub async fn transactions(
        &self,
        since: Option<&Position>,
        filter: &Filter,
    ) -> Result<Found, JournalError> {
        let (snapshot, pruned) = self.begin().await?;
        let nothing = Snapshot {
            xmax: 0,
            xip: Vec::new(),
        };
        let since = since.map_or(&nothing, |position| &position.snapshot);
        if since.xmax > 0 && pruned >= since.xmin() {
            return Err(JournalError::Pruned);
        }
        let (first, beyond) = bounds(&since.until(&snapshot));
        let mut parameters = filter.parameters();
        parameters.extend([&first as &(dyn ToSql + Sync), &beyond]);
        let client = &self.session.client;
        let rows = client.query_raw(TRANSACTIONS, parameters).await?;
        let txids = rows
            .map_ok(|row| row.get::<_, i64>(0))
            .try_collect()
            .await?;
        let (highest, witness) = self.newest().await?;
        client.batch_execute("commit").await?;
        Ok(Found {
            txids,
            position: Position {
                snapshot: snapshot.clipped(highest),
                witness,
            },
            pruned,
        })
    }

    /// Begins to read the wanted entries of some of the transactions that were found.
    pub async fn entries(
        &self,
        found: &Found,
        txids: &[i64],
        filter: &Filter,
    ) -> Result<Entries<'_>, JournalError> {
        let (_, pruned) = self.begin().await?;
        let lowest = txids.iter().min().copied().unwrap_or_default() as u64;
        if pruned > found.pruned && pruned >= lowest {
            return Err(JournalError::Pruned);
        }
        let mut parameters = filter.parameters();
        parameters.push(&txids);
        let rows = self.session.client.query_raw(ENTRIES, parameters).await?;
        Ok(Entries {
            journal: self,
            rows: Box::pin(rows),
        })
    }

    /// What became of a transaction: `committed`, `aborted`, `in progress`, `forgotten`, `future`; and
    /// whether it may have been in what was pruned.
    pub async fn fate(&self, txid: i64) -> Result<(String, bool), JournalError> {
        let row = (self.session.client)
            .query_one(
                "select case when $1::bigint::text::xid8 >= pg_snapshot_xmax(pg_current_snapshot()) then 'future'
                             else coalesce(pg_xact_status($1::bigint::text::xid8), 'forgotten') end,
                        s.pruned_txid >= $1::bigint::text::xid8
                   from crm_relay.setting s",
                &[&txid],
            )
            .await?;
        Ok((row.get(0), row.get(1)))
    }

    /// For how long the journal keeps what happened, as `7 days`.
    pub async fn retention(&self) -> Result<String, JournalError> {
        let row = (self.session.client)
            .query_one("select retention::text from crm_relay.setting", &[])
            .await?;
        Ok(row.get(0))
    }

    /// A moment as Postgres reads it, times without a zone in UTC.
    pub async fn moment(&self, text: &str) -> Result<SystemTime, JournalError> {
        let client = &self.session.client;
        client.batch_execute("set timezone = 'UTC'").await?;
        let row = client
            .query_one("select $1::text::timestamptz", &[&text])
            .await?;
        Ok(row.get(0))
    }

    /// The moment that was so long ago, by the clock of Postgres, which the journal goes by.
    pub async fn ago(&self, time: Duration) -> Result<SystemTime, JournalError> {
        let row = (self.session.client)
            .query_one(
                "select clock_timestamp() - make_interval(secs => $1)",
                &[&time.as_secs_f64()],
            )
            .await?;
        Ok(row.get(0))
    }
}

impl Entries<'_> {
    /// The next entry, or None when all were taken.
    pub async fn next(&mut self) -> Result<Option<Entry>, JournalError> {
        let Some(row) = self.rows.try_next().await? else {
            return Ok(None);
        };
        Ok(Some(Entry {
            change: change(&row)?,
            db_user: row.get(13),
            db_role: row.get(14),
            application: row.get(15),
        }))
    }

    /// Ends the read.
    pub async fn end(self) -> Result<(), JournalError> {
        Ok(self.journal.session.client.batch_execute("commit").await?)
    }
}
