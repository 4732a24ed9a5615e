//! When what was read is not what happened: a journal that was emptied or restored, commits that were
//! lost in a crash or a failover. Nobody may be left believing that they are current: not the relay,
//! not a client that is there, not one that comes back with any cursor it ever had.

use std::time::Duration;

use crm_relay::journal::{Journal, JournalError};
use crm_relay::snapshot::Position;
use serde_json::{Value, json};

use crate::harness::{Client, Cluster, DEADLINE, Database, Relay, connect, crm_relay};

const ONE: &str = "00000000-0000-4000-8000-000000000001";

fn room() -> String {
    format!("leads:{ONE}")
}

async fn execute(cluster: &Cluster, sql: &str) {
    let session = connect(&cluster.url()).await;
    session.batch_execute(sql).await.unwrap();
}

async fn set_status(cluster: &Cluster, status: &str) {
    execute(cluster, &format!("update leads set status = '{status}'")).await;
}

/// Takes transaction ids that nothing is done with.
async fn take_ids(cluster: &Cluster, count: u32) {
    let take = format!(
        "do $$ begin for id in 1..{count} loop perform pg_current_xact_id(); commit; end loop; end $$"
    );
    execute(cluster, &take).await;
}

/// Waits until a query finds a row.
async fn is_so(session: &tokio_postgres::Client, query: &str) {
    let found = async { while session.query(query, &[]).await.unwrap().is_empty() {} };
    // other tests may have transactions open meanwhile
    let found = tokio::time::timeout(DEADLINE * 3, found).await;
    assert!(found.is_ok(), "never so: {query}");
}

fn cursor(frame: &Value) -> String {
    frame["cursor"].as_str().unwrap().to_owned()
}

/// A client sees a lead come and change, and keeps every cursor that it is told.
async fn see(client: &mut Client, database: &tokio_postgres::Client) -> Vec<String> {
    let mut cursors = vec![cursor(&client.subscribe(&[room()]).await)];
    for sql in [
        &format!("insert into leads (id) values ('{ONE}')"),
        "update leads set status = 'contacted'",
    ] {
        database.batch_execute(sql).await.unwrap();
        cursors.push(cursor(&client.next_event().await));
    }
    cursors.push(cursor(&client.ping().await));
    cursors
}

/// The relay has noticed and told it.
async fn all_fetch_anew(relay: &Relay, client: &mut Client, cursors: &[String]) {
    all_are_told("epoch_changed", relay, client, cursors).await;
    relay
        .logged("history is another than the one that was read")
        .await;
}

/// Those who are there, and those who come back.
async fn all_are_told(reason: &str, relay: &Relay, client: &mut Client, cursors: &[String]) {
    let anew = json!([{"room": room(), "reason": reason}]);
    let resync = client.next_event().await;
    assert_eq!(resync["rooms"], anew, "{resync}");
    for since in cursors {
        let mut back = Client::connect(relay).await;
        let answer = back.resume(&[room()], since).await;
        assert_eq!(answer["resync"], anew, "{since} of {cursors:?}: {answer}");
    }
}

#[tokio::test]
async fn a_journal_emptied_by_hand_is_another_history() {
    // also where the next change comes before anybody has looked
    for goes_on in ["", "update leads set status = 'new'"] {
        let database = Database::create().await;
        let relay = Relay::start(&database.url()).await;
        let mut client = Client::connect(&relay).await;
        // the first of them is from before the journal's first row
        let cursors = see(&mut client, database.client()).await;
        database
            .execute(&format!("truncate crm_relay.change; {goes_on}"))
            .await;
        all_fetch_anew(&relay, &mut client, &cursors).await;
        database.execute("update leads set status = 'lost'").await;
        assert_eq!(client.next_event().await["data"], json!({"status": "lost"}));
    }
}

#[tokio::test]
async fn a_journal_dropped_under_the_relay_s_feet_is_told_and_a_new_one_is_another_history() {
    let database = Database::create().await;
    let relay = Relay::start(&database.url()).await;
    let mut client = Client::connect(&relay).await;
    let cursors = see(&mut client, database.client()).await;
    database.execute("drop schema crm_relay cascade").await;
    // other sessions say so, too
    relay
        .logged("reason=schema crm_relay is not installed")
        .await;
    let (status, body) = relay.get("/readyz", "").await;
    assert_eq!(status, 503);
    assert!(body.contains("run: crm-relay install"), "{body}");
    assert_eq!(client.ping().await["type"], "pong", "clients stay");
    // nobody is told of what nobody captures
    database.execute("update leads set status = 'lost'").await;
    let installed = crm_relay(&database.url(), &["install"]);
    assert!(installed.status.success(), "{installed:?}");
    relay
        .logged("history is another than the one that was read: everybody fetches anew")
        .await;
    // tables are watched one after the other: a relay that looked meanwhile looks again after five seconds
    let mut other = Client::connect(&relay).await;
    let is_known = async {
        while !other.subscribe(&[room()]).await["denied"].is_null() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let known = tokio::time::timeout(DEADLINE, is_known).await;
    assert!(known.is_ok(), "leads are not known again");
    all_fetch_anew(&relay, &mut client, &cursors).await;
    database.execute("update leads set status = 'new'").await;
    let event = client.next_event().await;
    assert_eq!(event["previous"]["status"], "lost");
    // (what it reads first is told before it says that it is ready)
    relay.ready().await;
}

/// A crash takes back a commit that was seen before it was on the disk; perhaps one that began later stands.
async fn crashed(a_later_stands: bool) {
    let cluster = Cluster::start().await;
    let relay = Relay::start(&cluster.url()).await;
    let mut client = Client::connect(&relay).await;
    let session = connect(&cluster.url()).await;
    let mut cursors = see(&mut client, &session).await;
    let slow = "alter system set wal_writer_delay = '10s'";
    session.batch_execute(slow).await.unwrap();
    let reload = "select pg_reload_conf()";
    session.batch_execute(reload).await.unwrap();
    let is_slow = "select where current_setting('wal_writer_delay') = '10s'";
    is_so(&connect(&cluster.url()).await, is_slow).await;
    session
        .batch_execute("begin; update leads set status = 'qualified'")
        .await
        .unwrap();
    if a_later_stands {
        client.everything(&connect(&cluster.url()).await).await;
        cursors.push(cursor(&client.ping().await));
    }
    session
        .batch_execute("set local synchronous_commit = off; commit")
        .await
        .unwrap();
    // the cursor of a change is from before it, where history is still the same
    let seen = client.next_event().await;
    assert_eq!(seen["data"]["status"], "qualified");
    cursors.push(cursor(&seen));
    cursors.push(cursor(&client.ping().await));
    cluster.crash();
    cluster.start_again();
    all_fetch_anew(&relay, &mut client, &cursors).await;
    // it is told once: what was taken back is not looked for after the next loss of contact
    let lose = "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'crm-relay%'";
    execute(&cluster, lose).await;
    set_status(&cluster, "lost").await;
    let event = client.next_event().await;
    assert_eq!(
        event["previous"]["status"], "contacted",
        "the crash took nothing back: it was no test"
    );
    assert_eq!(event["data"]["status"], "lost");
}

#[tokio::test]
async fn what_a_crash_took_back_is_another_history() {
    crashed(false).await;
}

#[tokio::test]
async fn also_where_a_later_transaction_was_committed_before_it_and_stands() {
    crashed(true).await;
}

/// A standby takes over, with all commits or without the last one.
async fn promoted(with_all: bool) {
    let cluster = Cluster::start().await;
    let standby = cluster.standby();
    // the standby comes first and must not be read
    let relay = Relay::start(&standby.url_with(&cluster)).await;
    let mut client = Client::connect(&relay).await;
    let session = connect(&cluster.url()).await;
    let mut cursors = see(&mut client, &session).await;
    let follower = connect(&standby.url()).await;
    is_so(&follower, "select from leads where status = 'contacted'").await;
    if !with_all {
        for sql in [
            "alter system set primary_conninfo = ''",
            "select pg_reload_conf()",
        ] {
            follower.batch_execute(sql).await.unwrap();
        }
        let deaf = "select where not exists (select from pg_stat_wal_receiver)";
        is_so(&follower, deaf).await;
    }
    set_status(&cluster, "qualified").await;
    let seen = client.next_event().await;
    assert_eq!(seen["data"]["status"], "qualified");
    cursors.push(cursor(&seen));
    cursors.push(cursor(&client.ping().await));
    if with_all {
        is_so(&follower, "select from leads where status = 'qualified'").await;
    }
    cluster.crash();
    standby.promote();
    all_fetch_anew(&relay, &mut client, &cursors).await;
    set_status(&standby, "lost").await;
    let event = client.next_event().await;
    let last = if with_all { "qualified" } else { "contacted" };
    assert_eq!(event["previous"]["status"], last);
    assert_eq!(event["data"]["status"], "lost");
}

#[tokio::test]
async fn a_promoted_standby_is_another_history() {
    promoted(true).await;
}

#[tokio::test]
async fn a_promoted_standby_that_lacks_commits_is_another_history() {
    promoted(false).await;
}

#[tokio::test]
async fn a_dump_restored_into_a_younger_server_is_another_history() {
    let (source, target) = (Cluster::start().await, Cluster::bare());
    take_ids(&source, 3000).await;
    let relay = Relay::start(&source.url_with(&target)).await;
    let mut client = Client::connect(&relay).await;
    let session = connect(&source.url()).await;
    let cursors = see(&mut client, &session).await;
    target.restore(&source, &[]);
    source.crash();
    all_fetch_anew(&relay, &mut client, &cursors).await;
    relay
        .logged("the journal held transactions that this server has not come to")
        .await;
    set_status(&target, "qualified").await;
    assert_eq!(client.next_event().await["data"]["status"], "qualified");
    // it comes to the ids of what was told long ago
    take_ids(&target, 6000).await;
    set_status(&target, "lost").await;
    let session = connect(&target.url()).await;
    let events = client.everything(&session).await;
    let told: Vec<_> = events
        .iter()
        .map(|event| &event["data"]["status"])
        .collect();
    assert_eq!(told, ["lost"]);
}

#[tokio::test]
async fn a_dump_restored_without_owners_into_an_older_server_is_another_history() {
    let (source, target) = (Cluster::start().await, Cluster::bare());
    take_ids(&target, 3000).await;
    let relay = Relay::start(&source.url_with(&target)).await;
    let mut client = Client::connect(&relay).await;
    let session = connect(&source.url()).await;
    let cursors = see(&mut client, &session).await;
    target.restore(&source, &["--no-owner"]);
    source.crash();
    all_fetch_anew(&relay, &mut client, &cursors).await;
    // functions that belong to whoever restored do not render rows, and yet nobody who writes is refused
    set_status(&target, "qualified").await;
    let told = client.next_event().await;
    assert_eq!(told["rooms"][0]["reason"], "truncated", "{told}");
    let installed = crm_relay(&target.url(), &["install"]);
    assert!(installed.status.success());
    set_status(&target, "lost").await;
    assert_eq!(client.next_event().await["data"], json!({"status": "lost"}));
    // and what the journal says of the past is still there
    let session = connect(&target.url()).await;
    let old =
        "select new_value::text from crm_relay.audit where field = 'status' order by seq limit 2";
    let old = session.query(old, &[]).await.unwrap();
    assert_eq!(old[1].get::<_, &str>(0), "\"contacted\"");
}

#[tokio::test]
async fn a_relay_that_was_away_for_longer_than_the_journal_lasts_says_so() {
    let database = Database::create().await;
    let relay = Relay::start(&database.url()).await;
    let mut client = Client::connect(&relay).await;
    let cursors = see(&mut client, database.client()).await;
    stop_between_looks(&relay, database.client()).await;
    database
        .execute("update leads set status = 'qualified'")
        .await;
    // and another relay prunes
    eight_days_pass(&database).await;
    // once no transaction of another test is open that is older
    is_so(database.client(), "select from crm_relay.prune()").await;
    relay.signal("CONT");
    database.execute("update leads set status = 'lost'").await;
    all_are_told("cursor_too_old", &relay, &mut client, &cursors).await;
    database
        .execute("update leads set status = 'contacted'")
        .await;
    assert_eq!(client.next_event().await["previous"]["status"], "lost");
}

/// Stops a relay that asks Postgres nothing.
async fn stop_between_looks(relay: &Relay, database: &tokio_postgres::Client) {
    let busy = "select from pg_stat_activity
                 where datname = current_database() and pid <> pg_backend_pid() and state <> 'idle'";
    let stopped = async {
        relay.signal("STOP");
        while !database.query(busy, &[]).await.unwrap().is_empty() {
            relay.signal("CONT");
            relay.signal("STOP");
        }
    };
    tokio::time::timeout(DEADLINE, stopped).await.unwrap();
}

/// For what is in the journal.
async fn eight_days_pass(database: &Database) {
    database
        .execute(
            "update crm_relay.change
                set changed_at = changed_at - interval '8 days',
                    slot = crm_relay.slot(changed_at - interval '8 days', '7 days')",
        )
        .await;
}

#[tokio::test]
async fn what_a_look_may_see_is_not_truncated_before_it_is_read() {
    let database = Database::create().await;
    database
        .execute(&format!("insert into leads (id) values ('{ONE}')"))
        .await;
    eight_days_pass(&database).await;
    let same = crm_relay::postgres::Database::of(&database.url()).unwrap();
    let journal = Journal::open(same.session("test").await.unwrap());
    let journal = journal.await.unwrap();
    let over = "select where (select txid from crm_relay.change) < pg_snapshot_xmin(pg_current_snapshot())";
    is_so(database.client(), over).await;
    // truncating heeds no snapshot: a look that has one, and has read nothing yet, must be waited for
    let now = database.value("select pg_current_snapshot()").await;
    let nothing_new = Position {
        snapshot: now.parse().unwrap(),
        witness: None,
    };
    let batch = journal.read(&nothing_new).await.unwrap();
    let prune = "select from crm_relay.prune()";
    let pruned = database.client().query(prune, &[]).await.unwrap();
    assert!(pruned.is_empty());
    batch.end().await.unwrap();
    is_so(database.client(), prune).await;
}

#[tokio::test]
async fn a_relay_prunes_nothing_that_it_has_yet_to_read() {
    let database = Database::create().await;
    let same = crm_relay::postgres::Database::of(&database.url()).unwrap();
    let journal = Journal::open(same.session("test").await.unwrap());
    let journal = journal.await.unwrap();
    let before = journal.present().await.unwrap();
    // of a transaction that was open for longer than the journal keeps anything
    database
        .execute(&format!("insert into leads (id) values ('{ONE}')"))
        .await;
    eight_days_pass(&database).await;
    assert!(journal.prune(&before).await.unwrap().is_none());
    let read = journal.read(&before).await.unwrap();
    let after = read.end().await.unwrap();
    assert!(
        journal.prune(&after).await.unwrap().is_none(),
        "none of it was taken"
    );
    // once no transaction of another test is open that is older
    let pruned = async {
        let mut reached = before.clone();
        while journal.prune(&reached).await.unwrap().is_none() {
            let mut read = journal.read(&reached).await.unwrap();
            while read.next().await.unwrap().is_some() {}
            reached = read.end().await.unwrap();
        }
    };
    let pruned = tokio::time::timeout(DEADLINE, pruned).await;
    assert!(pruned.is_ok(), "what was read is pruned");
    // who was vouched for before that and reads after it
    let missed = journal.read_records(&before.snapshot, &[("leads", ONE)], 10, 10);
    assert!(matches!(missed.await, Err(JournalError::Pruned)));
}

#[tokio::test]
async fn what_a_relay_remembers_of_before_it_began_is_bounded() {
    let database = Database::create().await;
    let same = crm_relay::postgres::Database::of(&database.url()).unwrap();
    let journal = Journal::open(same.session("test").await.unwrap());
    let journal = journal.await.unwrap();
    // so that all that comes is above what everything below is seen of
    let open = database.connect().await;
    open.batch_execute("begin; insert into leads default values")
        .await
        .unwrap();
    database
        .execute("insert into leads select from generate_series(1, 30)")
        .await;
    let until = journal.present().await.unwrap();
    let bounds = [
        (15, usize::MAX, true),
        (14, usize::MAX, false),
        (15, 1000, false),
    ];
    for (most, most_bytes, is_enough) in bounds {
        let (since, changes) = journal.past(&until, most, most_bytes).await.unwrap();
        assert_eq!(
            changes.len(),
            if is_enough { 30 } else { 0 },
            "{most} {most_bytes}"
        );
        assert_eq!(since == until, !is_enough);
    }
    let nothing_new = journal.read(&until).await.unwrap();
    nothing_new.end().await.unwrap();
}
