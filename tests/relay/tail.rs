//! `crm-relay tail`: what happens, as it happens, without a relay.

use std::process::Command;

use crate::audit::Running;
use crate::harness::{Cluster, Database, connect, crm_relay};

const ANN: &str = "00000000-0000-4000-8000-00000000000a";
const TEAM: &str = "00000000-0000-4000-8000-0000000000f1";
const OTHER: &str = "00000000-0000-4000-8000-0000000000f2";
const HOME: &str = "00000000-0000-4000-8000-000000000001";
const AWAY: &str = "00000000-0000-4000-8000-000000000002";

/// Ann's team, another one, and a listing of each.
async fn office() -> Database {
    let database = Database::create().await;
    database
        .execute(&format!(
            "insert into teams (id, name) values ('{TEAM}', 'T'), ('{OTHER}', 'U');
             insert into users (id, email, first_name, last_name, team_id) values ('{ANN}', 'ann', '', '', '{TEAM}');
             insert into listings (id, team_id, owner_id, list_price) values ('{HOME}', '{TEAM}', '{ANN}', 1), ('{AWAY}', '{OTHER}', null, 1)"
        ))
        .await;
    database
}

/// Lines without their time.
async fn lines(tail: &mut Running, count: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for _ in 0..count {
        let line = tail.line().await;
        // 2026-11-22 22:50:13.123Z
        assert!(
            line.is_char_boundary(25) && line[..25].ends_with("Z "),
            "{line}"
        );
        lines.push(line[25..].to_owned());
    }
    lines
}

/// Whether it has begun to listen.
async fn listens(database: &Database) {
    let sessions = "select count(*) from pg_stat_activity where datname = current_database() and application_name like 'crm-relay follow %'";
    while database.value(sessions).await == "0" {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn tail_prints_a_line_for_each_event() {
    let database = office().await;
    let mut tail = Running::start(&database.url(), &["tail"]);
    listens(&database).await;
    for edit in [
        format!(
            "update listings set list_price = 2, version = version + 1, last_modified_by = '{ANN}' where id = '{HOME}'"
        ),
        // nothing but what changes with everything
        format!("update listings set version = version + 1 where id = '{HOME}'"),
        // a hostile value, and nobody known
        format!(
            "update listings set property_address = U&'\\009b2J', list_price = 3 where id = '{HOME}'"
        ),
        "truncate leads".to_owned(),
        format!(
            "delete from users where id = '{AWAY}'; insert into leads (id, first_name, created_at, updated_at) values ('{HOME}', 'Bo', '2026-11-01Z', '2026-11-01Z')"
        ),
    ] {
        database.execute(&edit).await;
    }
    assert_eq!(
        lines(&mut tail, 4).await,
        [
            format!("listings:{HOME} updated {ANN} list_price 1.00 -> 2.00"),
            format!(
                r#"listings:{HOME} updated - property_address null -> "\u009b2J", list_price 2.00 -> 3.00"#
            ),
            "leads truncated -".to_owned(),
            format!(
                r#"leads:{HOME} created - id "{HOME}", first_name "Bo", status "new", tags [], number_of_contacts 0, is_private false, access_level "team", created_at "2026-11-01T00:00:00+00:00", is_archived false"#
            ),
        ]
    );
    assert_eq!(tail.signalled("INT").await.code(), Some(130));
}

#[tokio::test]
async fn tail_tells_what_happens_in_its_rooms_alone() {
    let database = office().await;
    let edits = format!(
        "update listings set list_price = 2 where id = '{HOME}';
         update listings set list_price = 3 where id = '{AWAY}';
         insert into leads (id, team_id) values ('{AWAY}', '{TEAM}');
         update listings set team_id = '{OTHER}' where id = '{HOME}';
         update listings set list_price = 4 where id = '{HOME}';
         truncate leads;
         insert into clients (id) values ('{HOME}');"
    );
    for edit in edits.split_inclusive(';') {
        database.execute(edit).await;
    }
    let (home, team) = (format!("listings:{HOME}"), format!("team:{TEAM}"));
    let (team_leads, user) = (format!("team:{TEAM}/leads"), format!("user:{ANN}"));
    for (rooms, seqs) in [
        (&["listings"][..], "1 2 3 4 6 7"),
        (&[home.as_str()], "1 3 6 7"),
        // what left it is told, and what may have
        (&[team.as_str()], "1 3 5 6 8"),
        (&[team_leads.as_str()], "5 8"),
        (&[user.as_str()], "1 3 6 7 8"),
        (&["clients", &home], "1 3 6 7 9"),
        (&[], "0 1 2 3 4 5 6 7 8 9"),
    ] {
        let arguments = [&["tail", "--since", "1h", "--json"], rooms].concat();
        let mut tail = Running::start(&database.url(), &arguments);
        let mut told = Vec::new();
        for _ in seqs.split(' ') {
            let line: serde_json::Value = serde_json::from_str(&tail.line().await).unwrap();
            let seq: i64 = line["seq"].as_str().unwrap().parse().unwrap();
            // the first is Ann herself
            told.push((seq - 1).to_string());
        }
        assert_eq!(told.join(" "), seqs, "{rooms:?}");
        assert_eq!(tail.signalled("INT").await.code(), Some(130));
    }
}

#[tokio::test]
async fn tail_comes_back_after_postgres_and_misses_nothing() {
    let cluster = Cluster::start().await;
    let session = connect(&cluster.url()).await;
    let insert = async |session: &tokio_postgres::Client, name: &str| {
        let insert = format!("insert into leads (first_name) values ('{name}')");
        session.batch_execute(&insert).await.unwrap();
    };
    insert(&session, "before").await;
    let mut tail = Running::start(&cluster.url(), &["tail", "leads", "--since", "1h"]);
    assert!(tail.line().await.contains(r#"first_name "before""#));
    drop(session);
    cluster.crash();
    tail.complains("not reading the journal").await;
    cluster.start_again();
    let session = connect(&cluster.url()).await;
    insert(&session, "while away").await;
    tail.complains("reading the journal again").await;
    insert(&session, "after").await;
    assert!(tail.line().await.contains(r#"first_name "while away""#));
    assert!(tail.line().await.contains(r#"first_name "after""#));
}

#[tokio::test]
async fn tail_says_so_when_what_it_read_is_gone() {
    let cluster = Cluster::start().await;
    let session = connect(&cluster.url()).await;
    let lead = "insert into leads (first_name) values ('seen')";
    session.batch_execute(lead).await.unwrap();
    let mut tail = Running::start(&cluster.url(), &["tail", "--since", "1h"]);
    tail.line().await;
    drop(session);
    cluster.crash();
    tail.complains("not reading the journal").await;
    cluster.start_again();
    let session = connect(&cluster.url()).await;
    session
        .batch_execute("truncate crm_relay.change")
        .await
        .unwrap();
    // it may have come back before that
    session
        .batch_execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'crm-relay %'",
        )
        .await
        .unwrap();
    tail.complains("what came between is not told").await;
}

#[tokio::test]
async fn tail_needs_the_rights_of_an_audit_and_a_room_that_can_be() {
    let database = office().await;
    let name = format!("dba_{}", uuid::Uuid::new_v4().simple());
    database.execute(&format!("create role {name} login")).await;
    let url = database.url().replace("//postgres@", &format!("//{name}@"));
    let refused = crm_relay(&url, &["tail"]);
    assert_eq!(refused.status.code(), Some(1));
    let mend = format!("grant crm_relay_audit to {name}");
    let why = String::from_utf8(refused.stderr).unwrap();
    assert!(why.contains(&mend), "{why}");
    database.execute(&mend).await;
    let mut tail = Running::start(&url, &["tail", &format!("team:{TEAM}"), "--since", "1h"]);
    assert!(tail.line().await.contains(HOME));
    drop(tail);
    for (room, wanted) in [
        ("listing", "a watched module (appointments, clients, "),
        ("listings:7", "a uuid in lower case"),
        ("contacts", "part of other records"),
        ("users:7", "name the module, users"),
        ("team:", "team:7/leads"),
    ] {
        let refused = crm_relay(&url, &["tail", room]);
        let why = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{room}: {why}");
        assert!(why.contains(wanted), "{why}");
    }
    let away = crm_relay("postgresql://relay@127.0.0.1:1/crm", &["tail"]);
    assert_eq!(away.status.code(), Some(3));
    database
        .execute(&format!("drop owned by {name}; drop role {name}"))
        .await;
}

#[tokio::test]
async fn tail_ends_with_its_reader() {
    let database = office().await;
    let script = format!(
        "set -o pipefail; {} tail --since 1h | head -n 1",
        env!("CARGO_BIN_EXE_crm-relay")
    );
    let told = Command::new("bash")
        .args(["-c", &script])
        .env("DATABASE_URL", database.url())
        .output()
        .unwrap();
    assert!(told.status.success(), "{told:?}");
    assert!(told.stderr.is_empty(), "{told:?}");
}
