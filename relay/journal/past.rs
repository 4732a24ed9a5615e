//! What the journal tells those who come back: whether a cursor is good, what came after it, what the
//! records are now.

use super::{Image, Journal, JournalError, bounds, change};
use crate::change::{Action, Change};
use crate::snapshot::{Cursor, Position, Snapshot};

/// The same of these records alone ($3 their modules, $4 their ids; a null id: what happened to the
/// whole module), of each at most $5 rows.
const READ_RECORDS: &str = concat!(
    columns!(),
    " cross join unnest($3::text[], $4::text[]) as wanted (module, id)
      cross join lateral (
           select * from crm_relay.change c
            where c.module = wanted.module and c.record_id = wanted.id
              and c.txid >= stretch.first::text::xid8 and c.txid < stretch.beyond::text::xid8
            limit $5) c ",
    in_order!()
);

/// How many rows there are in the ranges, at most $3 and one more.
const COUNT: &str = "
    select count(*) from (
      select from unnest($1::bigint[], $2::bigint[]) as stretch (first, beyond)
       cross join lateral (
             select from crm_relay.change c
              where c.txid >= stretch.first::text::xid8 and c.txid < stretch.beyond::text::xid8
              limit $3::bigint + 1) c
       limit $3::bigint + 1) counted";

/// How many rows that query would find, at most $6 and one more.
const COUNT_RECORDS: &str = "
    select count(*) from (
      select from unnest($1::bigint[], $2::bigint[]) as stretch (first, beyond)
       cross join unnest($3::text[], $4::text[]) as wanted (module, id)
       cross join lateral (
             select from crm_relay.change c
              where c.module = wanted.module and c.record_id = wanted.id
                and c.txid >= stretch.first::text::xid8 and c.txid < stretch.beyond::text::xid8
              limit $5::bigint) c
       limit $6::bigint + 1) counted";

/// Modules of which more happened than rows can say ($3 are those that matter).
const UPHEAVALS: &str = "
    select distinct c.module, c.txid::text::bigint, c.changed_at
      from unnest($1::bigint[], $2::bigint[]) as stretch (first, beyond)
     cross join unnest($3::text[]) as wanted (module)
     cross join lateral (
           select * from crm_relay.change c
            where c.module = wanted.module and c.record_id is null
              and c.txid >= stretch.first::text::xid8 and c.txid < stretch.beyond::text::xid8
           offset 0) c";

/// Records ($1 their modules, $2 their ids) and the last change of each.
const RECORDS_NOW: &str = "
    select wanted.module, wanted.id, crm_relay.record_now(wanted.module, wanted.id),
           (select max(c.seq) from crm_relay.change c
             where c.module = wanted.module and c.record_id = wanted.id and c.part is null)
      from unnest($1::text[], $2::text[]) with ordinality as wanted (module, id, place)
     order by wanted.place";

/// What cursors claim ($1 epochs, $2 and $3 witnesses), and what is so.
const CHECK: &str = "
    select w.epoch = (select crm_relay.epoch()), pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
           s.pruned_txid::text::bigint,
           exists (select from crm_relay.change c where c.txid = w.txid::text::xid8 and c.seq = w.seq)
      from crm_relay.setting s,
           unnest($1::text[], $2::bigint[], $3::bigint[]) with ordinality as w (epoch, txid, seq, place)
     order by w.place";

/// Of these rows ($1 their transactions, $2 their `seq`s) one that is neither there nor pruned.
const FALLEN: &str = "
    select from unnest($1::bigint[], $2::bigint[]) as w (txid, seq)
      join crm_relay.setting s on s.pruned_txid < w.txid::text::xid8
     where not exists (select from crm_relay.change c where c.txid = w.txid::text::xid8 and c.seq = w.seq)
     limit 1";

/// What the journal says of a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is what it claims to be.
    Good,
    /// What came after it was pruned, or some of it.
    TooOld,
    /// It belongs to another history than the one that this database has now.
    OtherHistory,
}

/// A record as it is at some moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordNow {
    /// Its module.
    pub module: String,
    /// Its id.
    pub record_id: String,
    /// All of it but hidden columns; None if there is no such record.
    pub image: Option<String>,
    /// The last change of it that the journal holds.
    pub seq: Option<u64>,
}

impl Journal {
    /// Whether what a cursor claims is so, and all that came after it still here.
    pub async fn vouch(&self, cursor: &Cursor) -> Result<Verdict, JournalError> {
        let verdict = self.vouch_for(&[cursor]).await?.pop();
        Ok(verdict.unwrap_or(Verdict::OtherHistory))
    }

    /// The same of each of these.
    pub async fn vouch_for(&self, cursors: &[&Cursor]) -> Result<Vec<Verdict>, JournalError> {
        let epochs: Vec<&str> = cursors.iter().map(|cursor| &*cursor.epoch).collect();
        let positions = cursors.iter().map(|cursor| &cursor.position);
        let (highest, seqs): (Vec<i64>, Vec<i64>) = positions
            .clone()
            .map(|position| {
                let seq = position.witness.unwrap_or_default();
                (position.highest() as i64, seq as i64)
            })
            .unzip();
        let rows = (self.session.client)
            .query(CHECK, &[&epochs, &highest, &seqs])
            .await?;
        let verdicts = positions.zip(&rows).map(|(position, row)| {
            let (same_epoch, xmax, pruned): (bool, i64, i64) = (row.get(0), row.get(1), row.get(2));
            let (xmax, pruned) = (xmax as u64, pruned as u64);
            let Position { snapshot, witness } = position;
            let stands = witness.is_none() || pruned >= position.highest() || row.get(3);
            if !same_epoch || snapshot.xmax > xmax || !stands {
                Verdict::OtherHistory
            } else if pruned >= snapshot.xmin() {
                Verdict::TooOld
            } else {
                Verdict::Good
            }
        });
        Ok(verdicts.collect())
    }

    /// Whether all of these rows (transaction and `seq`) are there, but for those that were pruned since.
    pub async fn stand(&self, rows: &[(u64, u64)]) -> Result<bool, JournalError> {
        let rows = rows.iter().map(|&(txid, seq)| (txid as i64, seq as i64));
        let (txids, seqs): (Vec<i64>, Vec<i64>) = rows.unzip();
        let fallen = (self.session.client)
            .query_opt(FALLEN, &[&txids, &seqs])
            .await?;
        Ok(fallen.is_none())
    }

    /// Whether more than `most` rows came after a position.
    pub async fn has_more_than(&self, most: i64, since: &Snapshot) -> Result<bool, JournalError> {
        let (snapshot, _) = self.begin().await?;
        let (first, beyond) = bounds(&since.until(&snapshot));
        let row = (self.session.client)
            .query_one(COUNT, &[&first, &beyond, &most])
            .await?;
        self.session.client.batch_execute("commit").await?;
        Ok(row.get::<_, i64>(0) > most)
    }

    /// What came after a position, of these records alone (module and id), of each at most `most`
    /// changes; an upheaval of a module counts as one without a record. None where it is more than
    /// `most_of_all`. All of it must still be there.
    pub async fn read_records(
        &self,
        since: &Snapshot,
        records: &[(&str, &str)],
        most: i64,
        most_of_all: i64,
    ) -> Result<Option<(Vec<Change>, Snapshot)>, JournalError> {
        let (snapshot, pruned) = self.begin().await?;
        if pruned >= since.xmin() {
            return Err(JournalError::Pruned);
        }
        let (first, beyond) = bounds(&since.until(&snapshot));
        let (modules, ids): (Vec<&str>, Vec<&str>) = records.iter().copied().unzip();
        let client = &self.session.client;
        let count = client
            .query_one(
                COUNT_RECORDS,
                &[&first, &beyond, &modules, &ids, &most, &most_of_all],
            )
            .await?;
        if count.get::<_, i64>(0) > most_of_all {
            client.batch_execute("commit").await?;
            return Ok(None);
        }
        let rows = client
            .query(READ_RECORDS, &[&first, &beyond, &modules, &ids, &most])
            .await?;
        let upheavals = client
            .query(UPHEAVALS, &[&first, &beyond, &modules])
            .await?;
        let newest = self.newest().await?;
        client.batch_execute("commit").await?;
        let mut changes = rows.iter().map(change).collect::<Result<Vec<_>, _>>()?;
        changes.extend(upheavals.iter().map(|row| Change {
            seq: 0,
            txid: row.get::<_, i64>(1) as u64,
            module: row.get::<_, &str>(0).into(),
            action: Action::Truncated,
            record_id: String::new(),
            part: None,
            actor: None,
            changed_at: row.get(2),
            depth: 1,
            old_image: None,
            new_image: None,
            record_image: None,
            before: None,
            after: None,
            heirs: Vec::new(),
        }));
        Ok(Some((changes, snapshot.clipped(newest.0))))
    }

    /// The last `most` rows before a position, or up to twice as many, and the position before them. No rows where it
    /// would be more than that, as after what has been open for long, or images of more than `most_bytes`.
    pub async fn past(
        &self,
        until: &Position,
        most: i64,
        most_bytes: usize,
    ) -> Result<(Position, Vec<Change>), JournalError> {
        let client = &self.session.client;
        self.begin().await?;
        // a row that was written before anything that was open then: everything up to it is seen
        let row = client
            .query_opt(
                "select c.txid::text::bigint,
                        (select max(n.seq) from crm_relay.change n where n.txid = c.txid)
                   from crm_relay.change c where c.txid < $1::bigint::text::xid8
                  order by c.txid desc offset $2 limit 1",
                &[&(until.snapshot.xmin() as i64), &most],
            )
            .await?;
        let since = match row {
            Some(row) => Position {
                snapshot: Snapshot {
                    xmax: row.get::<_, i64>(0) as u64 + 1,
                    xip: Vec::new(),
                },
                witness: Some(row.get::<_, i64>(1) as u64),
            },
            None => {
                let pruned = "select pruned_txid::text::bigint from crm_relay.setting";
                let pruned: i64 = client.query_one(pruned, &[]).await?.get(0);
                let xmax = (pruned as u64 + 1).min(until.snapshot.xmin());
                Position {
                    snapshot: Snapshot {
                        xmax,
                        xip: Vec::new(),
                    },
                    witness: None,
                }
            }
        };
        let nothing = (until.clone(), Vec::new());
        let (first, beyond) = bounds(&since.snapshot.until(&until.snapshot));
        let most = most * 2;
        let count = client.query_one(COUNT, &[&first, &beyond, &most]).await?;
        if count.get::<_, i64>(0) > most {
            client.batch_execute("commit").await?;
            return Ok(nothing);
        }
        let mut batch = self.read_until(&since, until.snapshot.clone()).await?;
        let (mut changes, mut bytes) = (Vec::new(), 0);
        while let Some(change) = batch.next().await? {
            bytes += change.image_bytes();
            if bytes > most_bytes {
                break;
            }
            changes.push(change);
        }
        drop(batch);
        client.batch_execute("commit").await?;
        Ok(if bytes > most_bytes {
            nothing
        } else {
            (since, changes)
        })
    }

    /// These records (module and id) as they are now, and the cursor of that moment. A record that
    /// cannot be read, such as one whose id does not cast, counts as not there.
    pub async fn records_now(
        &self,
        records: &[(&str, &str)],
    ) -> Result<(Vec<RecordNow>, Cursor), JournalError> {
        let (snapshot, _) = self.begin().await?;
        let (modules, ids): (Vec<&str>, Vec<&str>) = records.iter().copied().unzip();
        let client = &self.session.client;
        let (highest, witness) = self.newest().await?;
        let epoch = self.epoch().await?;
        // last: it runs code of the tables' owners
        let rows = client.query(RECORDS_NOW, &[&modules, &ids]).await?;
        self.end_after_others().await?;
        let records = rows.iter().map(|row| RecordNow {
            module: row.get(0),
            record_id: row.get(1),
            image: row.get::<_, Option<Image>>(2).map(|image| image.0),
            seq: row.get::<_, Option<i64>>(3).map(|seq| seq as u64),
        });
        let position = Position {
            snapshot: snapshot.clipped(highest),
            witness,
        };
        Ok((records.collect(), Cursor { epoch, position }))
    }
}
