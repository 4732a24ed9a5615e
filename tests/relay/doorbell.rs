//! When writers ring, who leads, and that no change is slept through.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crm_relay::postgres::{Database as Server, Said, Session};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::harness::{Client, Cluster, DEADLINE, Database, Relay, connect};

/// The lock of a relay that sleeps, and the leader's.
const ASLEEP: &str = "('crm_relay.setting'::regclass::oid::int, 2)";
const LEADS: &str = "('crm_relay.setting'::regclass::oid::int, 3)";

/// What found changes that nobody had announced says.
const UNANNOUNCED: &str = "no bell had announced";

fn record(number: u64) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

fn room(number: u64) -> String {
    format!("leads:{}", record(number))
}

/// Inserts leads.
fn put(count: u64) -> String {
    let insert = |number| {
        let id = record(number);
        format!("insert into leads (id, number_of_contacts) values ('{id}', 0);")
    };
    (0..count).map(insert).collect()
}

async fn leads(count: u64) -> Database {
    let database = Database::create().await;
    database.execute(&put(count)).await;
    database
}

fn count_up(number: u64) -> String {
    let id = record(number);
    format!("update leads set number_of_contacts = number_of_contacts + 1 where id = '{id}'")
}

fn contacts(event: &Value) -> u64 {
    event["data"]["number_of_contacts"].as_u64().unwrap()
}

/// Somebody who counts the rings.
struct Ear {
    session: tokio_postgres::Client,
    rings: Arc<AtomicUsize>,
    marked: Arc<Notify>,
}

impl Ear {
    async fn listen(url: &str) -> Ear {
        let server = Server::of(url).unwrap();
        let mut session = server.session("ear").await.unwrap();
        let listen = "listen crm_relay; listen marker";
        session.client.batch_execute(listen).await.unwrap();
        let (rings, marked) = (Arc::<AtomicUsize>::default(), Arc::<Notify>::default());
        let ear = (rings.clone(), marked.clone());
        tokio::spawn(async move {
            let Session { said, .. } = &mut session;
            while let Some(heard) = said.recv().await {
                let Said::Notified(heard) = heard else {
                    continue;
                };
                if heard.channel() == "marker" {
                    ear.1.notify_one();
                } else if heard.payload().contains("txid") {
                    ear.0.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        Ear {
            session: connect(url).await,
            rings,
            marked,
        }
    }

    /// How often it rang until now.
    async fn rings(&self) -> usize {
        self.session.batch_execute("notify marker").await.unwrap();
        timeout(DEADLINE, self.marked.notified()).await.unwrap();
        self.rings.load(Ordering::SeqCst)
    }
}

/// Waits until this is so.
pub async fn is_so(database: &Database, query: &str) {
    let so = async { while database.value(query).await != "t" {} };
    assert!(timeout(DEADLINE, so).await.is_ok(), "never so: {query}");
}

/// Whether somebody has, or waits for, one of the relay's locks.
pub fn lock(key: u8, granted: bool) -> String {
    format!(
        "select exists (select from pg_locks where locktype = 'advisory' and mode = 'ExclusiveLock'
           and classid = 'crm_relay.setting'::regclass::oid and objid = {key} and granted = {granted}
             and database = (select oid from pg_database where datname = current_database()))"
    )
}

/// Writers, each with a record of its own.
async fn storm(database: &Database, writers: u64, updates: u64) {
    let mut all = JoinSet::new();
    for number in 0..writers {
        let session = database.connect().await;
        all.spawn(async move {
            for _ in 0..updates {
                session.batch_execute(&count_up(number)).await.unwrap();
            }
        });
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
}

/// All changes of all records, in order, up to this many of each.
async fn sees(client: &mut Client, writers: u64, updates: u64) {
    let mut last = vec![0; writers as usize];
    while last.iter().any(|&last| last < updates) {
        let event = client.next_event().await;
        let id = event["recordId"].as_str().unwrap();
        let number: usize = id.rsplit('-').next().unwrap().parse().unwrap();
        assert_eq!(contacts(&event), last[number] + 1, "{event}");
        last[number] += 1;
    }
}

#[tokio::test]
async fn a_writer_rings_for_who_sleeps_and_for_nobody_else() {
    let database = leads(1).await;
    let ear = Ear::listen(&database.url()).await;
    database.execute(&count_up(0)).await;
    assert_eq!(ear.rings().await, 0, "nobody is there");
    let sleeper = database.connect().await;
    let sleep = format!("select pg_advisory_lock{ASLEEP}");
    sleeper.batch_execute(&sleep).await.unwrap();
    let several = format!("begin; {}; {0}; commit", count_up(0));
    database.execute(&several).await;
    assert_eq!(ear.rings().await, 1, "once for a transaction");
    let wake = format!("select pg_advisory_unlock{ASLEEP}");
    sleeper.batch_execute(&wake).await.unwrap();
    database.execute(&count_up(0)).await;
    assert_eq!(ear.rings().await, 1, "somebody is awake");
}

#[tokio::test]
async fn nobody_falls_asleep_before_those_who_did_not_ring_and_who_comes_meanwhile_rings() {
    let database = leads(2).await;
    let ear = Ear::listen(&database.url()).await;
    let idle = database.connect().await;
    let begun = format!("begin isolation level repeatable read; {}", count_up(0));
    idle.batch_execute(&begun).await.unwrap();
    let sleeper = database.connect().await;
    let falls = tokio::spawn(async move {
        let sleep = format!("select pg_advisory_lock{ASLEEP}");
        sleeper.batch_execute(&sleep).await.unwrap();
        sleeper
    });
    is_so(&database, &lock(2, false)).await;
    database.execute(&count_up(1)).await;
    assert_eq!(ear.rings().await, 1);
    // a share that is held already is enough for all of its transaction
    idle.batch_execute(&count_up(0)).await.unwrap();
    assert!(!falls.is_finished());
    idle.batch_execute("commit").await.unwrap();
    timeout(DEADLINE, falls).await.unwrap().unwrap();
    assert_eq!(ear.rings().await, 1);
}

#[tokio::test]
async fn what_was_begun_before_the_relay_came_is_told_when_it_is_committed() {
    let database = leads(2).await;
    let idle = database.connect().await;
    let begun = format!("begin; {}", count_up(0));
    idle.batch_execute(&begun).await.unwrap();
    let relay = Relay::start(&database.url()).await;
    let mut client = Client::connect(&relay).await;
    client.subscribe(&[room(0), room(1)]).await;
    is_so(&database, &lock(2, false)).await;
    database.execute(&count_up(1)).await;
    assert_eq!(client.next_event().await["recordId"], record(1));
    idle.batch_execute("commit").await.unwrap();
    assert_eq!(client.next_event().await["recordId"], record(0));
    is_so(&database, &lock(2, true)).await;
    assert!(!relay.logs().contains(UNANNOUNCED), "{}", relay.logs());
}

#[tokio::test]
async fn in_a_storm_few_ring_and_nothing_waits_for_the_safety_poll() {
    let database = leads(8).await;
    let relay = Relay::start(&database.url()).await;
    let mut client = Client::connect(&relay).await;
    let rooms: Vec<String> = (0..8).map(room).collect();
    client.subscribe(&rooms).await;
    is_so(&database, &lock(2, true)).await;
    let ear = Ear::listen(&database.url()).await;
    tokio::join!(storm(&database, 8, 250), sees(&mut client, 8, 250));
    let rung = ear.rings().await;
    assert!((1..1000).contains(&rung), "{rung} of 2000 rang");
    is_so(&database, &lock(2, true)).await;
    database.execute(&count_up(0)).await;
    assert_eq!(contacts(&client.next_event().await), 251);
    assert_eq!(ear.rings().await, rung + 1, "it sleeps again");
    assert!(!relay.logs().contains(UNANNOUNCED), "{}", relay.logs());
}

#[tokio::test]
async fn who_would_wait_for_each_other_s_flush_need_not_ring() {
    let cluster = Cluster::start().await;
    let dba = connect(&cluster.url()).await;
    dba.batch_execute(&put(4)).await.unwrap();
    for sql in [
        "alter system set commit_delay = 10000",
        "alter system set commit_siblings = 0",
        "select pg_reload_conf()",
    ] {
        dba.batch_execute(sql).await.unwrap();
    }
    let _relay = Relay::start(&cluster.url()).await;
    let asleep = lock(2, true);
    let sleeps = async { while !dba.query_one(&asleep, &[]).await.unwrap().get::<_, bool>(0) {} };
    assert!(timeout(DEADLINE, sleeps).await.is_ok(), "it never sleeps");
    let ear = Ear::listen(&cluster.url()).await;
    let mut all = JoinSet::new();
    for number in 0..4 {
        let session = connect(&cluster.url()).await;
        all.spawn(async move {
            for _ in 0..50 {
                session.batch_execute(&count_up(number)).await.unwrap();
            }
        });
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
    let rung = ear.rings().await;
    assert!((1..100).contains(&rung), "{rung} of 200 rang");
}

#[tokio::test]
async fn one_relay_leads_and_when_it_dies_another_does() {
    let database = leads(4).await;
    let operated = |command: &mut Command| {
        command.env("RELAY_ADMIN_TOKEN", "the operator's token");
    };
    let first = Relay::with(&database.url(), operated).await;
    first.logged("this relay leads").await;
    let second = Relay::with(&database.url(), operated).await;
    let rooms: Vec<String> = (0..4).map(room).collect();
    let (mut of_first, mut of_second) = (
        Client::connect(&first).await,
        Client::connect(&second).await,
    );
    of_first.subscribe(&rooms).await;
    of_second.subscribe(&rooms).await;
    tokio::join!(
        storm(&database, 4, 100),
        sees(&mut of_first, 4, 100),
        sees(&mut of_second, 4, 100)
    );
    assert!(!second.logs().contains("this relay leads"));
    for (relay, leads) in [(&first, 1), (&second, 0)] {
        let operator = "Authorization: Bearer the operator's token\r\n";
        let (_, metrics) = relay.get("/metrics", operator).await;
        assert!(
            metrics.contains(&format!("\ncrm_relay_leads {leads}\n")),
            "{metrics}"
        );
    }
    let mut last = [100; 4];
    let goes_on = async {
        storm(&database, 4, 100).await;
        second.logged("this relay leads").await;
        storm(&database, 4, 50).await;
    };
    let dies = async move {
        let _ = of_first.next_event().await;
        drop(first);
    };
    let watches = async {
        while last.iter().any(|&last| last < 250) {
            let event = of_second.next_event().await;
            let id = event["recordId"].as_str().unwrap();
            let number: usize = id.rsplit('-').next().unwrap().parse().unwrap();
            assert_eq!(contacts(&event), last[number] + 1, "{event}");
            last[number] += 1;
        }
    };
    tokio::join!(goes_on, dies, watches);
    assert!(!second.logs().contains(UNANNOUNCED), "{}", second.logs());
}

#[tokio::test]
async fn a_leader_that_is_stopped_is_led_past_and_follows_when_it_wakes() {
    let database = leads(1).await;
    let first = Relay::start(&database.url()).await;
    first.logged("this relay leads").await;
    let second = Relay::start(&database.url()).await;
    let (mut of_first, mut of_second) = (
        Client::connect(&first).await,
        Client::connect(&second).await,
    );
    of_first.subscribe(&[room(0)]).await;
    of_second.subscribe(&[room(0)]).await;
    first.signal("STOP");
    // it sleeps, so that this rings
    database.execute(&count_up(0)).await;
    assert_eq!(contacts(&of_second.next_event().await), 1);
    second
        .logged("the leading relay is silent: its session was ended")
        .await;
    second.logged("this relay leads").await;
    database.execute(&count_up(0)).await;
    assert_eq!(contacts(&of_second.next_event().await), 2);
    first.signal("CONT");
    for seen in 1..=2 {
        assert_eq!(contacts(&of_first.next_event().await), seen);
    }
    first.logged("a session of the doorbell was lost").await;
    first.ready().await;
    database.execute(&count_up(0)).await;
    assert_eq!(contacts(&of_first.next_event().await), 3);
    assert_eq!(contacts(&of_second.next_event().await), 3);
    assert!(!second.logs().contains(UNANNOUNCED), "{}", second.logs());
}

#[tokio::test]
async fn locks_that_somebody_else_holds_hold_nothing_up() {
    let database = leads(1).await;
    let other = database.connect().await;
    let held = format!("select pg_advisory_lock{LEADS}, pg_advisory_lock_shared{ASLEEP}");
    other.batch_execute(&held).await.unwrap();
    let relay = Relay::start(&database.url()).await;
    let mut client = Client::connect(&relay).await;
    client.subscribe(&[room(0)]).await;
    relay
        .logged("the leading relay is silent and cannot be ended")
        .await;
    database.execute(&count_up(0)).await;
    assert_eq!(contacts(&client.next_event().await), 1);
    // the leader's lock is free, the other is not
    let free = format!("select pg_advisory_unlock{LEADS}");
    other.batch_execute(&free).await.unwrap();
    relay.logged("this relay leads").await;
    is_so(&database, &lock(2, false)).await;
    database.execute(&count_up(0)).await;
    assert_eq!(contacts(&client.next_event().await), 2);
    assert!(!relay.logs().contains(UNANNOUNCED), "{}", relay.logs());
}

#[tokio::test]
async fn another_mode_counts_at_once() {
    let database = leads(1).await;
    let relay = Relay::start(&database.url()).await;
    let mut client = Client::connect(&relay).await;
    client.subscribe(&[room(0)]).await;
    for (count, mode) in [(1, "always"), (2, "never"), (3, "adaptive")] {
        let change = format!("update crm_relay.setting set doorbell = '{mode}'");
        database.execute(&change).await;
        database.execute(&count_up(0)).await;
        assert_eq!(contacts(&client.next_event().await), count, "{mode}");
        relay.logged("the doorbell has another mode now").await;
    }
    assert_eq!(client.ping().await["type"], json!("pong"));
}
