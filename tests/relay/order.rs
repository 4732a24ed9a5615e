//! Order: what every client sees of a record is that record's history.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use serde_json::Value;
use uuid::Uuid;

use crate::harness::{Client, Database, Relay};

const WRITERS: u64 = 8;
const RECORDS: u64 = 20;
const STORM: Duration = Duration::from_secs(30);

fn record(number: u64) -> Uuid {
    Uuid::from_u128(0x4000_8000_0000_0000_0000 + u128::from(number))
}

fn number(event: &Value, field: &str) -> u64 {
    event[field].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn whoever_waited_for_the_row_comes_after_though_its_id_is_lower() {
    let database = Database::create().await;
    let lead = record(1);
    database
        .execute(&format!("insert into leads (id) values ('{lead}')"))
        .await;
    let relay = Relay::start(&database.url()).await;
    let mut client = Client::connect(&relay).await;
    client.subscribe(&[format!("leads:{lead}")]).await;
    let (early, late) = (database.connect().await, database.connect().await);
    // both in one batch
    relay.signal("STOP");
    early
        .batch_execute("begin; select pg_current_xact_id()")
        .await
        .unwrap();
    late.batch_execute("update leads set status = 'contacted'")
        .await
        .unwrap();
    early
        .batch_execute("update leads set status = 'qualified'; commit")
        .await
        .unwrap();
    relay.signal("CONT");
    let (first, second) = (client.next_event().await, client.next_event().await);
    assert_eq!(
        (&first["data"]["status"], &second["data"]["status"]),
        (&"contacted".into(), &"qualified".into())
    );
    assert_eq!(first["data"]["status"], second["previous"]["status"]);
    assert!(
        number(&first, "txid") > number(&second, "txid"),
        "bare ids would tell it the other way round"
    );
}

/// One writer: transactions of one to three increments, some rolled back in part or whole, until the
/// storm is over. Returns how many committed.
async fn write(session: tokio_postgres::Client, writer: u64, until: Instant) -> u64 {
    // a small generator of its own: the storm differs by writer and is the same in every run
    let mut state = 0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(writer + 1);
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    session
        .batch_execute("set deadlock_timeout = '20ms'")
        .await
        .unwrap();
    let mut committed = 0;
    while Instant::now() < until {
        let isolation = ["read committed", "repeatable read", "serializable"][random(3) as usize];
        let mut sql = format!("begin isolation level {isolation};");
        if random(2) == 0 {
            // takes its number early
            sql.push_str("select pg_current_xact_id();");
        }
        if random(8) == 0 {
            sql.push_str("select pg_sleep(0.003);");
        }
        for _ in 0..=random(3) {
            let update = format!(
                "update leads set number_of_contacts = number_of_contacts + 1, notes = 'writer {writer}',
                                  version = version + 1, updated_at = clock_timestamp() where id = '{}';",
                record(random(RECORDS))
            );
            match random(5) {
                0 => sql.push_str(&format!("savepoint s; {update} rollback to s;")),
                1 => sql.push_str(&format!("savepoint s; {update} release s;")),
                _ => sql.push_str(&update),
            }
        }
        let commits = random(10) > 0;
        sql.push_str(if commits { "commit" } else { "rollback" });
        match session.batch_execute(&sql).await {
            Ok(()) => committed += u64::from(commits),
            // deadlocks and serialization failures are part of the storm
            Err(error) => {
                let code = error.code().map_or("", |code| code.code());
                assert!(["40P01", "40001"].contains(&code), "{error:?}");
                session.batch_execute("rollback").await.unwrap();
            }
        }
    }
    committed
}

/// Events as they came, those of `TRANSACTION` frames one by one.
fn flat(frames: Vec<Value>) -> Vec<Value> {
    let mut events = Vec::new();
    for frame in frames {
        match frame["events"].as_array() {
            Some(inner) => events.extend(inner.iter().cloned()),
            None => events.push(frame),
        }
    }
    events
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_storm_nothing_is_lost_or_doubled_and_no_history_breaks() {
    let database = Database::create().await;
    for number in 0..RECORDS {
        database
            .execute(&format!(
                "insert into leads (id) values ('{}')",
                record(number)
            ))
            .await;
    }
    let relay = Relay::with(&database.url(), |command| {
        command.env("RELAY_QUEUE_BYTES", "1000000000");
    })
    .await;
    let rooms: Vec<String> = (0..RECORDS)
        .map(|number| format!("leads:{}", record(number)))
        .collect();
    let (mut plain, mut whole) = (
        Client::connect(&relay).await,
        Client::with_transactions(&relay).await,
    );
    plain.subscribe(&rooms).await;
    whole.subscribe(&rooms).await;
    let from = database
        .value("select coalesce(max(seq), 0) from crm_relay.change")
        .await;

    let until = Instant::now() + STORM;
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        writers.push(tokio::spawn(write(database.connect().await, writer, until)));
    }
    let mut committed = 0;
    for writer in writers {
        committed += writer.await.unwrap();
    }

    let leads = "module = 'leads' and action = 'updated'";
    let journal: usize = database
        .value(&format!(
            "select count(*) from crm_relay.change where {leads} and seq > {from}"
        ))
        .await
        .parse()
        .unwrap();
    let mut ends = HashMap::new();
    for number in 0..RECORDS {
        let id = record(number).to_string();
        let end: u64 = database
            .value(&format!(
                "select number_of_contacts from leads where id = '{id}'"
            ))
            .await
            .parse()
            .unwrap();
        ends.insert(id, end);
    }
    let lone = whole.everything(database.client()).await;
    assert!(
        lone.iter()
            .filter(|frame| frame["type"] == "TRANSACTION")
            .count()
            > 100
    );
    for (who, events) in [
        ("plain", plain.everything(database.client()).await),
        ("whole", flat(lone)),
    ] {
        assert_eq!(events.len(), journal, "{who}: as many as the journal holds");
        let seqs: HashSet<u64> = events.iter().map(|event| number(event, "seq")).collect();
        assert_eq!(seqs.len(), journal, "{who}: none twice");
        let mut reached: HashMap<String, u64> = HashMap::new();
        let mut last_txid: HashMap<String, u64> = HashMap::new();
        let mut ended = HashSet::new();
        let mut present = 0;
        let mut against_ids = 0;
        for event in &events {
            let id = event["recordId"].as_str().unwrap().to_owned();
            let (was, is) = (
                &event["previous"]["number_of_contacts"],
                &event["data"]["number_of_contacts"],
            );
            let known = reached.entry(id.clone()).or_default();
            assert_eq!(was.as_u64(), Some(*known), "{who}: {event}");
            *known += 1;
            assert_eq!(is.as_u64(), Some(*known), "{who}: {event}");
            let txid = number(event, "txid");
            if txid != present {
                assert!(
                    ended.insert(present),
                    "{who}: transaction {present} is split"
                );
                assert!(!ended.contains(&txid), "{who}: transaction {txid} is split");
                present = txid;
            }
            if let Some(before) = last_txid.insert(id, txid) {
                against_ids += usize::from(txid < before);
            }
        }
        for (id, end) in &ends {
            assert_eq!(
                reached.get(id).copied().unwrap_or_default(),
                *end,
                "{who}: lead {id}"
            );
        }
        // otherwise the storm was no test of it
        assert!(
            against_ids > 0,
            "{who}: the order of bare transaction ids would have done on this run"
        );
        println!(
            "{who}: {committed} transactions, {journal} changes, {against_ids} of them against the order of ids"
        );
    }
}
