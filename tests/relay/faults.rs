//! What happens when something stops, breaks or goes away.

use std::time::Duration;

use serde_json::json;
use tokio_postgres::error::SqlState;

use crate::harness::{Client, Cluster, Database, Pooler, Relay, connect, crm_relay};

const ONE: &str = "00000000-0000-4000-8000-000000000001";

async fn lead() -> (Database, Relay, Client) {
    let database = Database::create().await;
    database
        .execute(&format!("insert into leads (id) values ('{ONE}')"))
        .await;
    let relay = Relay::start(&database.url()).await;
    let mut client = Client::connect(&relay).await;
    client.subscribe(&[format!("leads:{ONE}")]).await;
    (database, relay, client)
}

#[tokio::test]
async fn a_relay_that_is_stopped_holds_up_no_writer_and_misses_nothing() {
    let (database, relay, mut client) = lead().await;
    relay.signal("STOP");
    for step in 1..=100 {
        database
            .execute(&format!("update leads set number_of_contacts = {step}"))
            .await;
    }
    database
        .execute("insert into listings (city) select 'Reno' from generate_series(1, 10000)")
        .await;
    relay.signal("CONT");
    let events = client.everything(database.client()).await;
    let seen: Vec<_> = events
        .iter()
        .map(|event| event["data"]["number_of_contacts"].as_u64().unwrap())
        .collect();
    assert_eq!(seen, (1..=100).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_backlog_of_a_table_that_is_watched_no_more_opens_one_session() {
    let (database, relay, mut client) = lead().await;
    relay.signal("STOP");
    database
        .execute("create table notes (id int primary key); select crm_relay.watch('notes')")
        .await;
    for note in 1..=50 {
        database
            .execute(&format!("insert into notes values ({note})"))
            .await;
    }
    database
        .execute("select crm_relay.unwatch('notes'); update leads set number_of_contacts = 1")
        .await;
    let sessions = "select sessions from pg_stat_database where datname = current_database()";
    let before: u32 = database.value(sessions).await.parse().unwrap();
    relay.signal("CONT");
    assert_eq!(client.next_event().await["data"]["number_of_contacts"], 1);
    let after: u32 = database.value(sessions).await.parse().unwrap();
    // one is to learn what is watched, and some of the relay's own may have been lost meanwhile
    assert!(after - before < 10, "{before}, {after}");
}

#[tokio::test]
async fn without_a_relay_the_crm_works_on() {
    let (database, relay, _client) = lead().await;
    drop(relay);
    database.execute("update leads set number_of_contacts = 1; insert into listings (city) select 'Reno' from generate_series(1, 10000)").await;
    assert_eq!(
        database
            .value("select count(*) from crm_relay.change where module = 'listings'")
            .await,
        "10000"
    );
    // a relay that starts later begins at the present
    let relay = Relay::start(&database.url()).await;
    let mut client = Client::connect(&relay).await;
    client.subscribe(&[format!("leads:{ONE}")]).await;
    database
        .execute("update leads set number_of_contacts = 2")
        .await;
    assert_eq!(
        client.next_event().await["previous"],
        json!({"number_of_contacts": 1})
    );
}

#[tokio::test]
async fn lost_sessions_are_replaced_and_nothing_is_lost_or_doubled() {
    let (database, relay, mut client) = lead().await;
    for step in 1..=10 {
        database
            .execute(&format!(
                "update leads set number_of_contacts = {}",
                step * 2 - 1
            ))
            .await;
        database
            .execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'crm-relay %' and datname = current_database()")
            .await;
        database
            .execute(&format!(
                "update leads set number_of_contacts = {}",
                step * 2
            ))
            .await;
    }
    let events = client.everything(database.client()).await;
    let seen: Vec<_> = events
        .iter()
        .map(|event| event["data"]["number_of_contacts"].as_u64().unwrap())
        .collect();
    assert_eq!(seen, (1..=20).collect::<Vec<_>>());
    assert!(
        relay.logs().contains("not reading the journal"),
        "{}",
        relay.logs()
    );
}

#[tokio::test]
async fn a_batch_that_is_cut_off_in_the_middle_is_told_once() {
    let (database, relay, mut client) = lead().await;
    // one batch that takes a while to read: small changes that are told, between large ones
    relay.signal("STOP");
    for step in 1..=100 {
        database
            .execute(&format!(
                "update leads set number_of_contacts = {step};
                 insert into listings (description) values (repeat('x', 1000000))"
            ))
            .await;
    }
    relay.signal("CONT");
    let mut events = vec![client.next_event().await];
    database
        .execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'crm-relay reader %' and datname = current_database()")
        .await;
    events.extend(client.everything(database.client()).await);
    let seen: Vec<_> = events
        .iter()
        .map(|event| event["data"]["number_of_contacts"].as_u64().unwrap())
        .collect();
    assert_eq!(seen, (1..=100).collect::<Vec<_>>());
    relay.logged("not reading the journal").await;
}

#[tokio::test]
async fn forged_bells_command_nothing() {
    let (database, _relay, mut client) = lead().await;
    for payload in ["", "{", r#"{"txid":"99999999","module":"leads"}"#, "x"] {
        database
            .execute(&format!("notify crm_relay, '{payload}'"))
            .await;
    }
    database
        .execute("update leads set status = 'contacted'")
        .await;
    let events = client.everything(database.client()).await;
    assert_eq!(events.len(), 1);
}

#[tokio::test]
async fn without_bells_the_relay_polls() {
    let database = Database::create().await;
    database.execute(&format!("update crm_relay.setting set doorbell = 'never'; insert into leads (id) values ('{ONE}')")).await;
    let relay = Relay::start(&database.url()).await;
    let mut client = Client::connect(&relay).await;
    client.subscribe(&[format!("leads:{ONE}")]).await;
    database
        .execute("listen crm_relay; update leads set status = 'contacted'")
        .await;
    assert_eq!(
        client.next_event().await["data"],
        json!({"status": "contacted"})
    );
    assert_eq!(
        database.value("select pg_notification_queue_usage()").await,
        "0"
    );
}

#[tokio::test]
async fn when_postgres_crashes_clients_stay_and_get_what_came_after() {
    let cluster = Cluster::start().await;
    connect(&cluster.url())
        .await
        .batch_execute(&format!("insert into leads (id) values ('{ONE}')"))
        .await
        .unwrap();
    let relay = Relay::start(&cluster.url()).await;
    let mut client = Client::connect(&relay).await;
    client.subscribe(&[format!("leads:{ONE}")]).await;

    // Ids that are taken and rolled back reach the disk late. The relay has seen a snapshot above
    // them; after the crash they are handed out again.
    let mut again = false;
    for round in 1..=5 {
        let session = connect(&cluster.url()).await;
        session
            .batch_execute(&format!(
                "update leads set number_of_contacts = {}",
                round * 2 - 1
            ))
            .await
            .unwrap();
        assert_eq!(
            client.next_event().await["data"]["number_of_contacts"],
            json!(round * 2 - 1)
        );
        let mut highest = 0;
        for _ in 0..200 {
            session.batch_execute("begin").await.unwrap();
            let row = session
                .query_one("select pg_current_xact_id()::text::bigint", &[])
                .await
                .unwrap();
            highest = row.get::<_, i64>(0);
            session.batch_execute("rollback").await.unwrap();
        }
        session.batch_execute("notify crm_relay").await.unwrap();
        cluster.crash();
        relay.logged("not reading the journal").await;
        cluster.start_again();
        let session = connect(&cluster.url()).await;
        session
            .batch_execute(&format!(
                "update leads set number_of_contacts = {}",
                round * 2
            ))
            .await
            .unwrap();
        let event = client.next_event().await;
        assert_eq!(
            event["data"]["number_of_contacts"],
            json!(round * 2),
            "{event}"
        );
        again |= event["txid"].as_str().unwrap().parse::<i64>().unwrap() <= highest;
    }
    assert!(
        again,
        "no id was handed out again: the crashes were no test of it"
    );
    relay.ready().await;
}

/// What an operator of the next relay sends along.
const OPERATOR: &str = "Authorization: Bearer an operator's token\r\n";

#[tokio::test]
async fn readiness_tells_why_not() {
    let cluster = Cluster::start().await;
    let relay = Relay::with(&cluster.url(), |command| {
        command.env("RELAY_ADMIN_TOKEN", "an operator's token");
    })
    .await;
    cluster.crash();
    relay.logged("not reading the journal").await;
    let (status, body) = relay.get("/readyz", "").await;
    assert_eq!(status, 503);
    // in words that name no host and no login; those are for operators
    let public = [
        "Postgres is not reached",
        "contact with Postgres was lost, or it refused",
    ];
    let told: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(told["status"], "unready", "{body}");
    assert!(public.contains(&told["reason"].as_str().unwrap()), "{body}");
    relay
        .logged("reason=could not connect to Postgres at")
        .await;
    let (status, body) = relay.get("/readyz", OPERATOR).await;
    assert_eq!(status, 503);
    assert!(body.contains(&cluster.port().to_string()), "{body}");
    let (_, body) = relay.get("/readyz", "").await;
    assert!(body.contains("Postgres is not reached"), "{body}");
    cluster.start_again();
}

#[tokio::test]
async fn a_poll_reads_the_index_and_only_what_is_new() {
    let database = Database::create().await;
    // a transaction that stays open and has written much, and many others that were committed
    let open = database.connect().await;
    open.batch_execute(
        "begin; insert into leads (first_name) select 'open' from generate_series(1, 20000)",
    )
    .await
    .unwrap();
    for _ in 0..20 {
        database
            .execute("insert into leads (first_name) select 'done' from generate_series(1, 1000)")
            .await;
    }
    let txid = database
        .value("insert into leads (first_name) values ('new') returning pg_current_xact_id()")
        .await;
    let txid: i64 = txid.parse().unwrap();
    let read = (
        crm_relay::journal::READ,
        format!("'{{{txid}}}', '{{{}}}'", txid + 1),
    );
    let seq = database
        .value("select max(seq) from crm_relay.change")
        .await;
    let glance = (crm_relay::journal::GLANCE, format!("{txid}, {seq}, 66"));
    let mut plans = Vec::new();
    // without statistics and with them: the plan must not depend on them
    for statistics in ["", "analyze crm_relay.change"] {
        database.execute(statistics).await;
        for (statement, of) in [&read, &glance] {
            plans.push(plan(&database, statement, of).await);
        }
    }
    for plan in plans {
        assert!(!plan.contains("Seq Scan on change"), "{plan}");
        assert!(!plan.contains("Rows Removed"), "{plan}");
        assert!(plan.contains("Index Scan"), "{plan}");
        let read: u64 = plan
            .lines()
            .find_map(|line| line.trim().strip_prefix("Buffers: shared hit="))
            .and_then(|rest| rest.split(' ').next())
            .and_then(|hits| hits.parse().ok())
            .unwrap_or_else(|| panic!("{plan}"));
        // the catalogs that functions look into are most of them; the open transaction's rows are 1000 more
        assert!(read < 500, "{read} pages for one row\n{plan}");
    }
}

/// How Postgres reads the journal for the relay.
async fn plan(database: &Database, statement: &str, of: &str) -> String {
    let session = database.connect().await;
    session
        .batch_execute(crm_relay::journal::READ_SETTINGS)
        .await
        .unwrap();
    session
        .batch_execute(&format!("prepare read as {statement}"))
        .await
        .unwrap();
    let explain = format!("explain (analyze, buffers, timing off) execute read ({of})");
    let plan: Vec<String> = session
        .query(&explain, &[])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    plan.join("\n")
}

#[tokio::test]
async fn a_transaction_open_for_long_does_not_hold_back_others() {
    let (database, _relay, mut client) = lead().await;
    let open = database.connect().await;
    open.batch_execute("begin; insert into listings (city) values ('Reno')")
        .await
        .unwrap();
    for step in 1..=50 {
        database
            .execute(&format!("update leads set number_of_contacts = {step}"))
            .await;
        let event = tokio::time::timeout(Duration::from_secs(10), client.next_event())
            .await
            .unwrap();
        assert_eq!(event["data"]["number_of_contacts"], json!(step));
    }
    client.subscribe(&[format!("listings:{ONE}")]).await;
    open.batch_execute(&format!(
        "insert into listings (id) values ('{ONE}'); commit"
    ))
    .await
    .unwrap();
    assert_eq!(client.next_event().await["type"], "LISTING_CREATED");
}

#[tokio::test]
async fn the_relay_needs_no_more_rights_than_its_role() {
    let database = Database::create().await;
    let login = format!("relay_{}", uuid::Uuid::new_v4().simple());
    database
        .execute(&format!(
            "create role {login} login in role crm_relay_serve; insert into leads (id) values ('{ONE}')"
        ))
        .await;
    let relay = Relay::start(
        &database
            .url()
            .replace("//postgres@", &format!("//{login}@")),
    )
    .await;
    let mut client = Client::connect(&relay).await;
    client.subscribe(&[format!("leads:{ONE}")]).await;
    database.execute("update leads set status = 'lost'").await;
    assert_eq!(client.next_event().await["data"], json!({"status": "lost"}));
    assert!(!relay.logs().contains(TOO_MUCH), "{}", relay.logs());
    drop(relay);
    database.execute(&format!("drop role {login}")).await;
}

/// How the relay begins to say that its login has too much.
const TOO_MUCH: &str = "the relay's login has more than crm_relay_serve";

#[tokio::test]
async fn a_relay_that_was_given_more_than_it_needs_says_so_with_what_mends_it() {
    let database = Database::create().await;
    let login = format!("relay_{}", uuid::Uuid::new_v4().simple());
    let more = format!(
        "create role {login} login createrole bypassrls in role crm_relay_serve, crm_relay_audit, pg_read_all_data, pg_monitor;
         create table own (id int primary key); alter table own owner to {login};
         grant select, update on leads, clients to {login};
         select crm_relay.watch('own')"
    );
    database.execute(&more).await;
    let url = (database.url()).replace("//postgres@", &format!("//{login}@"));
    let relay = Relay::start(&url).await;
    relay.logged(TOO_MUCH).await;
    let logs = relay.logs();
    let said: Vec<&str> = logs
        .lines()
        .filter(|line| line.contains(TOO_MUCH))
        .collect();
    assert_eq!(said.len(), 1, "{logs}");
    for part in [
        "it has createrole, bypassrls;".to_owned(),
        format!("alter role {login} nocreaterole nobypassrls;"),
        "it is a member of crm_relay_audit, pg_read_all_data;".to_owned(),
        format!("revoke crm_relay_audit from {login}; revoke pg_read_all_data from {login};"),
        "it owns public.own;".to_owned(),
        "in role crm_relay_serve; /* and name it in DATABASE_URL */".to_owned(),
        "it may select, update public.clients, public.leads".to_owned(),
        format!("revoke all on public.clients, public.leads from {login};"),
    ] {
        assert!(said[0].contains(&part), "{part} is not in {}", said[0]);
    }
    drop(relay);
    // what it says mends it
    let mend = format!(
        "alter role {login} nocreaterole nobypassrls;
         revoke crm_relay_audit from {login}; revoke pg_read_all_data from {login};
         alter table own owner to postgres;
         revoke all on clients, leads from {login};"
    );
    database.execute(&mend).await;
    let relay = Relay::start(&url).await;
    assert!(!relay.logs().contains(TOO_MUCH), "{}", relay.logs());
    drop(relay);
    // a superuser needs no further accusation
    database.execute(&format!("drop role {login}")).await;
    let relay = Relay::start(&database.url()).await;
    relay.logged("it is a superuser").await;
    assert!(!relay.logs().contains("it owns"), "{}", relay.logs());
    // the demo's database is its own
    let database = Database::bare().await;
    let relay = Relay::demo(&database.url()).await;
    assert!(!relay.logs().contains(TOO_MUCH), "{}", relay.logs());
}

#[tokio::test]
async fn a_pooler_between_is_named() {
    let database = Database::create().await;
    let pooler = Pooler::start(&database).await;
    let relay = Relay::begin(&pooler.url(), |_| {});
    relay.logged("a transaction pooler such as PgBouncer").await;
}

#[tokio::test]
async fn a_server_that_is_stopped_is_noticed_and_what_it_did_after_is_told() {
    let cluster = Cluster::start().await;
    let session = connect(&cluster.url()).await;
    session
        .batch_execute(&format!("insert into leads (id) values ('{ONE}')"))
        .await
        .unwrap();
    let relay = Relay::start(&cluster.url()).await;
    let mut client = Client::connect(&relay).await;
    client.subscribe(&[format!("leads:{ONE}")]).await;
    cluster.signal("STOP");
    relay.logged("not reading the journal").await;
    assert_eq!(relay.get("/readyz", "").await.0, 503);
    cluster.signal("CONT");
    session
        .batch_execute("update leads set status = 'contacted'")
        .await
        .unwrap();
    assert_eq!(
        client.next_event().await["data"],
        json!({"status": "contacted"})
    );
    relay.ready().await;
}

#[tokio::test]
async fn a_full_disk_fails_who_writes_and_not_the_relay() {
    let Some(cluster) = Cluster::on_small_disk(100).await else {
        eprintln!("NOT TESTED: mounting a small disk needs root");
        return;
    };
    let session = connect(&cluster.url()).await;
    for sql in [
        &format!("insert into leads (id) values ('{ONE}')"),
        "alter system set restart_after_crash = off",
        "select pg_reload_conf()",
    ] {
        session.batch_execute(sql).await.unwrap();
    }
    let relay = Relay::start(&cluster.url()).await;
    let mut client = Client::connect(&relay).await;
    client.subscribe(&[format!("leads:{ONE}")]).await;
    let (mut committed, mut step) = (Vec::new(), 0);
    let mut write = async || {
        step += 1;
        let update = format!(
            "update leads set number_of_contacts = {step}, notes = repeat(md5('{step}'), 3000)"
        );
        let written = session.batch_execute(&update).await;
        committed.extend(written.is_ok().then_some(step));
        written
    };

    // no room for tables: whoever writes is told so by Postgres, and the relay reads on
    write().await.unwrap();
    cluster.fill_disk();
    let full = loop {
        if let Err(error) = write().await {
            break error;
        }
    };
    assert_eq!(full.code(), Some(&SqlState::DISK_FULL), "{full:?}");
    let why = full.as_db_error().unwrap().message();
    assert!(why.contains("No space left on device"), "{why}");
    assert_eq!(relay.get("/readyz", "").await.0, 200);
    cluster.empty_disk();
    write().await.unwrap();

    // no room for the write-ahead log: Postgres goes down
    cluster.fill_disk();
    let log = "select pg_logical_emit_message(true, 'x', repeat('x', 500000))";
    while session.batch_execute(log).await.is_ok() {}
    cluster.down().await;
    relay.logged("not reading the journal").await;
    let (status, body) = relay.get("/readyz", "").await;
    assert_eq!(status, 503);
    assert!(body.contains("\"reason\""), "{body}");
    cluster.empty_disk();
    cluster.start_again();
    let session = connect(&cluster.url()).await;
    session
        .batch_execute("update leads set number_of_contacts = -1")
        .await
        .unwrap();
    relay.ready().await;
    committed.push(-1);
    let seen: Vec<_> = client
        .everything(&session)
        .await
        .iter()
        .map(|event| event["data"]["number_of_contacts"].as_i64().unwrap())
        .collect();
    assert_eq!(seen, committed);
}

#[tokio::test]
async fn two_phase_commit_refuses_the_doorbell_and_goes_without_it() {
    let cluster = Cluster::start().await;
    let settings = "alter system set max_prepared_transactions = 5";
    connect(&cluster.url())
        .await
        .batch_execute(settings)
        .await
        .unwrap();
    cluster.crash();
    cluster.start_again();
    let crm = connect(&cluster.url()).await;
    let write = format!("begin; insert into leads (id) values ('{ONE}')");
    let rings = "update crm_relay.setting set doorbell = 'always'";
    crm.batch_execute(rings).await.unwrap();
    crm.batch_execute(&write).await.unwrap();
    let refused = crm
        .batch_execute("prepare transaction 'one'")
        .await
        .unwrap_err();
    let why = refused.as_db_error().unwrap().message().to_owned();
    assert!(
        why.contains("has executed LISTEN, UNLISTEN, or NOTIFY"),
        "{why}"
    );
    assert!(
        crm_relay(&cluster.url(), &["install", "--doorbell", "never"])
            .status
            .success()
    );
    crm.batch_execute(&write).await.unwrap();
    crm.batch_execute("prepare transaction 'one'")
        .await
        .unwrap();
    crm.batch_execute("commit prepared 'one'").await.unwrap();
}
