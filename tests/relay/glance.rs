//! A glance at the journal: what is read in one round trip while little happens, and when it is not enough.

use crm_relay::journal::Journal;
use crm_relay::postgres;
use crm_relay::snapshot::Position;

use tokio::time::timeout;

use crate::harness::{Cluster, DEADLINE, connect};

/// Leads that are told apart by numbers.
pub const LEADS: &str = "insert into leads (id) select lpad(n::text, 32, '0')::uuid from generate_series(1, 200) n on conflict do nothing";

/// A reader of a journal that nobody else writes to, as tests that share a server do.
struct Reader {
    journal: Journal,
    reached: Position,
    dba: tokio_postgres::Client,
}

impl Reader {
    async fn of(cluster: &Cluster) -> Reader {
        let database = postgres::Database::of(&cluster.url()).unwrap();
        let journal = Journal::open(database.session("test").await.unwrap());
        let journal = journal.await.unwrap();
        let dba = connect(&cluster.url()).await;
        dba.batch_execute(LEADS).await.unwrap();
        // which opens transactions, too
        let alone = "alter system set autovacuum = off";
        dba.batch_execute(alone).await.unwrap();
        dba.batch_execute("select pg_reload_conf()").await.unwrap();
        let reached = journal.present().await.unwrap();
        Reader {
            journal,
            reached,
            dba,
        }
    }

    /// Reads what came since; the numbers of the leads, and whether a glance was enough.
    async fn read(&mut self) -> (Vec<u32>, bool) {
        let mut batch = self.journal.read(&self.reached).await.unwrap();
        let mut found = Vec::new();
        while let Some(change) = batch.next().await.unwrap() {
            found.push(change.record_id[24..].parse().unwrap());
            assert!(change.old_image.is_some() && change.new_image.is_some());
        }
        self.reached = batch.end().await.unwrap();
        // whatever else is read is a transaction
        let last = "select query <> 'commit' from pg_stat_activity where application_name like 'crm-relay test%'";
        let glanced = self.dba.query_one(last, &[]).await.unwrap().get(0);
        (found, glanced)
    }

    /// As after a change that was read, while nothing else happened.
    async fn calm(&mut self) {
        self.dba.batch_execute(&update(200)).await.unwrap();
        assert_eq!(self.read().await.0, [200]);
        assert_eq!(self.read().await, (vec![], true));
    }
}

/// A change of one of them.
pub fn update(lead: u32) -> String {
    format!(
        "update leads set notes = coalesce(notes, '') || 'x' where id = lpad('{lead}', 32, '0')::uuid"
    )
}

#[tokio::test]
async fn a_glance_finds_few_changes_in_the_order_of_their_commits() {
    let cluster = Cluster::start().await;
    let mut reader = Reader::of(&cluster).await;
    reader.calm().await;
    let (early, late) = (connect(&cluster.url()).await, connect(&cluster.url()).await);
    early
        .batch_execute(&format!("begin; {}", update(1)))
        .await
        .unwrap();
    late.batch_execute(&format!("begin; {}; {}; commit", update(2), update(4)))
        .await
        .unwrap();
    early
        .batch_execute(&format!("{}; commit", update(3)))
        .await
        .unwrap();
    assert_eq!(reader.read().await, (vec![2, 4, 1, 3], true));
    assert_eq!(reader.read().await, (vec![], true), "none of them twice");
    reader.dba.batch_execute(&update(5)).await.unwrap();
    assert_eq!(reader.read().await, (vec![5], true));
}

#[tokio::test]
async fn a_glance_is_not_enough_where_there_is_much_or_something_was_open() {
    let cluster = Cluster::start().await;
    let mut reader = Reader::of(&cluster).await;
    assert_eq!(
        reader.read().await,
        (vec![], false),
        "who knows how much was read last"
    );
    reader.calm().await;

    // many rows in one transaction, and in several
    for begin in ["begin", ""] {
        let many: Vec<u32> = (1..=100).collect();
        let updates: Vec<String> = many.iter().map(|lead| update(*lead)).collect();
        let commit = if begin.is_empty() { "" } else { "commit" };
        for statements in [begin]
            .into_iter()
            .chain(updates.iter().map(String::as_str))
            .chain([commit])
        {
            reader.dba.batch_execute(statements).await.unwrap();
        }
        assert_eq!(reader.read().await, (many, false));
        assert_eq!(
            reader.read().await,
            (vec![], false),
            "what was read last may be large"
        );
        reader.calm().await;
    }

    // few rows of many bytes
    let long = |lead: u32| update(lead).replace("'x'", "repeat('x', 400000)");
    reader.dba.batch_execute(&long(1)).await.unwrap();
    assert_eq!(reader.read().await, (vec![1], true));
    reader.dba.batch_execute(&long(2)).await.unwrap();
    reader.dba.batch_execute(&long(1)).await.unwrap();
    assert_eq!(reader.read().await, (vec![2, 1], false));
    reader.calm().await;

    // what is open, and may be large, is looked through once at most
    let open = connect(&cluster.url()).await;
    open.batch_execute(&format!("begin; {}", update(7)))
        .await
        .unwrap();
    // only with an id above its own is it known of
    let id = "select pg_current_xact_id()";
    reader.dba.batch_execute(id).await.unwrap();
    assert_eq!(reader.read().await, (vec![], true));
    reader.dba.batch_execute(&update(8)).await.unwrap();
    assert_eq!(reader.read().await, (vec![8], false));
    reader.dba.batch_execute(&update(9)).await.unwrap();
    assert_eq!(reader.read().await, (vec![9], true), "it lies below");
    open.batch_execute("commit").await.unwrap();
    reader.dba.batch_execute(&update(9)).await.unwrap();
    assert_eq!(reader.read().await, (vec![7, 9], false));
    reader.calm().await;

    // a transaction that is large and was read before one that is not, though its id is greater
    let small = connect(&cluster.url()).await;
    small
        .batch_execute("begin; select pg_current_xact_id()")
        .await
        .unwrap();
    reader
        .dba
        .batch_execute("update leads set notes = 'all'")
        .await
        .unwrap();
    assert_eq!(reader.read().await.0.len(), 200);
    small
        .batch_execute(&format!("{}; commit", update(10)))
        .await
        .unwrap();
    assert_eq!(reader.read().await, (vec![10], false));
    assert_eq!(
        reader.read().await,
        (vec![], false),
        "the greatest id is the large one's still"
    );
}

/// Whatever is open, ends or is undone between two looks: a reader that glances where it can, and one that
/// never does, tell the same in the same order, and come to the same position.
#[tokio::test]
async fn a_glance_tells_what_a_read_tells() {
    let cluster = Cluster::start().await;
    let mut reader = Reader::of(&cluster).await;
    let mut reached = reader.reached.clone();
    let mut writers = Vec::new();
    for _ in 0..3 {
        writers.push((connect(&cluster.url()).await, false));
    }
    // a small generator of its own: the same in every run
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let database = postgres::Database::of(&cluster.url()).unwrap();
    let (mut glances, mut told) = (0, 0);
    for _ in 0..400 {
        for _ in 0..random(10) {
            let writer = random(3) as u32;
            let (session, is_open) = &mut writers[writer as usize];
            // each has sixty leads of its own, so that nobody waits
            let first = writer * 60 + 1;
            let one = update(first + random(60) as u32);
            let all = format!(
                "update leads set notes = coalesce(notes, '') || 'm' where right(id::text, 3)::int between {first} and {}",
                first + 59
            );
            let statement = match (*is_open, random(12)) {
                (true, 0..4) => "commit".to_owned(),
                (true, 4) => "rollback".to_owned(),
                (false, 0..2) => "begin".to_owned(),
                (_, 5) => format!("{all}; {all}"),
                _ => one,
            };
            session.batch_execute(&statement).await.unwrap();
            *is_open = match &*statement {
                "begin" => true,
                "commit" | "rollback" => false,
                _ => *is_open,
            };
        }
        let (found, is_glance) = reader.read().await;
        glances += usize::from(is_glance);
        told += found.len();
        let journal = Journal::open(database.session("other").await.unwrap());
        let journal = journal.await.unwrap();
        let mut batch = journal.read(&reached).await.unwrap();
        let mut read = Vec::new();
        while let Some(change) = batch.next().await.unwrap() {
            read.push(change.record_id[24..].parse::<u32>().unwrap());
        }
        reached = batch.end().await.unwrap();
        assert_eq!((found, &reader.reached), (read, &reached));
    }
    let both = (40..360).contains(&glances) && told > 1000;
    assert!(both, "{glances} glances of 400, {told} changes");
}

#[tokio::test]
async fn a_glance_sees_that_what_was_read_is_gone() {
    let cluster = Cluster::start().await;
    let mut reader = Reader::of(&cluster).await;
    reader.calm().await;
    for (gone, error) in [
        (
            "delete from crm_relay.change",
            "the journal no longer holds what was read last",
        ),
        (
            "update crm_relay.setting set pruned_txid = pg_current_xact_id()",
            "the journal was pruned beyond what was read",
        ),
    ] {
        let at_once = format!("begin; {gone}; {}; commit", update(1));
        reader.dba.batch_execute(&at_once).await.unwrap();
        let read = reader.journal.read(&reader.reached).await;
        assert_eq!(
            read.err().map(|error| error.to_string()).as_deref(),
            Some(error)
        );
        // the session of what failed is given up
        reader = Reader::of(&cluster).await;
        if gone.starts_with("delete") {
            reader.calm().await;
        }
    }
}

#[tokio::test]
async fn a_glance_that_waits_for_a_slot_to_be_truncated_knows_that_it_was() {
    let cluster = Cluster::start().await;
    let mut reader = Reader::of(&cluster).await;
    reader.calm().await;
    // what is yet to be read stands in another slot than what was read last
    let elsewhere = format!(
        "{}; update crm_relay.change set slot = (slot + 1) % 10 where seq = (select max(seq) from crm_relay.change)",
        update(1)
    );
    reader.dba.batch_execute(&elsewhere).await.unwrap();
    let slot = "select tableoid::regclass::text from crm_relay.change order by seq desc limit 1";
    let slot: String = reader.dba.query_one(slot, &[]).await.unwrap().get(0);
    let prunes = connect(&cluster.url()).await;
    let begun = format!(
        "begin; truncate {slot}; update crm_relay.setting set pruned_txid = pg_current_xact_id()"
    );
    prunes.batch_execute(&begun).await.unwrap();
    let done = timeout(DEADLINE, async {
        let waits = "select from pg_locks where not granted and mode = 'AccessShareLock'";
        while reader.dba.query(waits, &[]).await.unwrap().is_empty() {}
        prunes.batch_execute("commit").await.unwrap();
    });
    let (read, done) = tokio::join!(reader.journal.read(&reader.reached), done);
    done.expect("it waits");
    let error = read.err().map(|error| error.to_string());
    assert_eq!(
        error.as_deref(),
        Some("the journal was pruned beyond what was read")
    );
}
