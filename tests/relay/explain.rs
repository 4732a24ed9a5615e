//! `crm-relay explain`: why somebody did or did not get an event.

use serde_json::Value;

use crate::harness::{Client, Database, Relay, crm_relay};

const ANN: &str = "00000000-0000-4000-8000-00000000000a";
const BEA: &str = "00000000-0000-4000-8000-00000000000b";
const CEM: &str = "00000000-0000-4000-8000-00000000000c";
const OFF: &str = "00000000-0000-4000-8000-00000000000d";
const WHO: &str = "00000000-0000-4000-8000-00000000000e";
const TEAM: &str = "00000000-0000-4000-8000-0000000000f1";
const OTHER: &str = "00000000-0000-4000-8000-0000000000f2";
const HOME: &str = "00000000-0000-4000-8000-000000000001";

/// Ann and Bea in a team, Cem in another, somebody inactive; a listing of Bea's and a lead.
async fn office() -> Database {
    let database = Database::create().await;
    database
        .execute(&format!(
            "insert into teams (id, name) values ('{TEAM}', 'T'), ('{OTHER}', 'U');
             insert into users (id, email, first_name, last_name, role, team_id, is_active) values
               ('{ANN}', 'ann', '', '', 'agent', '{TEAM}', true), ('{BEA}', 'bea', '', '', 'team_owner', '{TEAM}', true),
               ('{CEM}', 'cem', '', '', 'agent', '{OTHER}', true), ('{OFF}', 'off', '', '', 'agent', '{TEAM}', false);
             insert into listings (id, owner_id, team_id, list_price) values ('{HOME}', '{BEA}', '{TEAM}', 1)"
        ))
        .await;
    database
}

/// The number of the newest change.
async fn newest(database: &Database) -> String {
    database
        .value("select max(seq) from crm_relay.change")
        .await
}

/// What is explained of one change.
fn explain(url: &str, user: &str, seq: &str, more: &[&str]) -> Value {
    let arguments = [&["explain", "--user", user, "--seq", seq, "--json"], more].concat();
    let told = crm_relay(url, &arguments);
    assert!(
        told.status.success(),
        "{}",
        String::from_utf8_lossy(&told.stderr)
    );
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(told["changes"].as_array().unwrap().len(), 1, "{told}");
    assert_eq!(told["changes"][0]["seq"], seq);
    told["changes"][0].clone()
}

/// What a step found, and says.
fn step<'a>(told: &'a Value, name: &str) -> (&'a str, &'a str) {
    let steps = told["steps"].as_array().unwrap();
    let step = steps.iter().find(|step| step["step"] == name);
    let step = step.unwrap_or_else(|| panic!("no step {name}: {told:#}"));
    assert_ne!(step["evidence"], "", "{name}");
    (
        step["answer"].as_str().unwrap(),
        step["says"].as_str().unwrap(),
    )
}

/// Edits of the office, one after the other.
fn edits() -> Vec<String> {
    [
        "set list_price = 2",
        "set is_private = true",
        "set list_price = 3",
        "set is_private = false",
        &format!("set team_id = '{OTHER}', owner_id = '{CEM}'"),
        "set list_price = 4",
        "set version = version + 1",
    ]
    .iter()
    .map(|edit| format!("update listings {edit} where id = '{HOME}'"))
    .chain([
        format!("insert into leads (id, owner_id, team_id) values ('{HOME}', '{BEA}', '{TEAM}')"),
        format!("delete from listings where id = '{HOME}'"),
    ])
    .collect()
}

#[tokio::test]
async fn explain_says_what_a_real_relay_does() {
    let database = office().await;
    let relay = Relay::guarded(&database.url(), |_| {}).await;
    let rooms = [
        format!("listings:{HOME}"),
        format!("leads:{HOME}"),
        format!("team:{TEAM}"),
        format!("team:{OTHER}"),
        format!("user:{BEA}"),
        format!("user:{CEM}"),
    ];
    let mut clients = Vec::new();
    for user in [ANN, BEA, CEM, OFF] {
        clients.push((user, Client::of(&relay, user).await));
    }
    let session = database.connect().await;
    let mut seen = [0, 0];
    for edit in edits() {
        for (_, client) in &mut clients {
            client.subscribe(&rooms).await;
        }
        database.execute(&edit).await;
        let seq = newest(&database).await;
        for (user, client) in &mut clients {
            // somebody inactive has no room to be told the end of it in
            let got = match *user {
                OFF => Vec::new(),
                _ => client.everything(&session).await,
            };
            let told = explain(&database.url(), user, &seq, &["--throttle", "0"]);
            let expected = match got.is_empty() {
                true => "nothing",
                false => "if_subscribed",
            };
            assert_eq!(
                told["outcome"], expected,
                "{edit} for {user}: {got:?}\n{told:#}"
            );
            // and which frames
            for frame in &got {
                let told = told["why"].as_str().unwrap();
                let wanted = match frame["type"].as_str().unwrap() {
                    "revoked" => "revoked in listings",
                    _ => frame["action"].as_str().unwrap(),
                };
                assert!(told.contains(wanted), "{frame}\n{told}");
                seen[usize::from(wanted == "revoked in listings")] += 1;
            }
        }
    }
    assert!(seen[0] >= 10 && seen[1] >= 2, "{seen:?}");
}

#[tokio::test]
async fn flood_and_throttle_are_explained_as_a_relay_does_them() {
    let database = office().await;
    let relay = Relay::guarded(&database.url(), |command| {
        command.envs([("RELAY_FLOOD_CHANGES", "3"), ("RELAY_THROTTLE", "300ms")]);
    })
    .await;
    let settings = ["--flood-changes", "3", "--throttle", "300ms"];
    let mut client = Client::of(&relay, ANN).await;
    client.subscribe(&[format!("team:{TEAM}")]).await;
    // two updates in one moment of the throttle, if the machine is quick enough for that
    let edit = format!("update listings set list_price = list_price + 1 where id = '{HOME}'");
    database.execute(&format!("{edit}; commit; {edit}")).await;
    let last = newest(&database).await;
    while client.next_event().await["seq"] != last {}
    let told = explain(&database.url(), ANN, &last, &settings);
    assert_eq!(told["outcome"], "if_subscribed", "{told:#}");
    let apart = database
        .value("select max(changed_at) - min(changed_at) < '300ms' from crm_relay.change where action = 'updated'")
        .await;
    let held = match apart.as_str() {
        "t" => "maybe",
        _ => "no",
    };
    assert_eq!(step(&told, "throttle").0, held, "{told:#}");
    for (leads, outcome, frame) in [
        (3, "if_subscribed", "LEAD_CREATED"),
        (4, "resync", "resync"),
    ] {
        database
            .execute(&format!(
                "insert into leads (team_id, owner_id) select '{TEAM}', '{BEA}' from generate_series(1, {leads})"
            ))
            .await;
        let told = explain(&database.url(), ANN, &newest(&database).await, &settings);
        assert_eq!(told["outcome"], outcome, "{told:#}");
        assert_eq!(client.next_event().await["type"], frame);
        if frame == "LEAD_CREATED" {
            client.next_event().await;
            client.next_event().await;
        }
    }
}

#[tokio::test]
async fn each_step_tells_what_it_found() {
    let database = office().await;
    let url = database.url();
    let run = async |edit: String| {
        database.execute(&edit).await;
        newest(&database).await
    };
    // seen
    let seq = run(format!(
        "update listings set list_price = 2 where id = '{HOME}'"
    ))
    .await;
    let told = explain(&url, ANN, &seq, &[]);
    assert_eq!(step(&told, "policy").0, "yes");
    assert!(step(&told, "policy").1.contains("before: yes; after: yes"));
    assert_eq!(step(&told, "throttle").0, "no");
    assert_eq!(step(&told, "connection").0, "unknown");
    let why = told["why"].as_str().unwrap();
    assert!(
        why.contains(&format!(
            "updated in listings:{HOME}; updated in team:{TEAM}"
        )),
        "{why}"
    );
    // the id as another client may write it
    let told = explain(&url, &ANN.to_uppercase(), &seq, &[]);
    assert_eq!(told["outcome"], "if_subscribed");

    // a throttled one
    let seq = run(format!(
        "update listings set list_price = 3 where id = '{HOME}'"
    ))
    .await;
    let told = explain(&url, ANN, &seq, &["--throttle", "1h"]);
    assert_eq!(step(&told, "throttle").0, "maybe", "{told:#}");
    assert!(
        told["why"]
            .as_str()
            .unwrap()
            .ends_with("as the throttle says")
    );
    let told = explain(&url, ANN, &seq, &["--throttle", "0"]);
    assert_eq!(step(&told, "throttle"), ("no", "it is off"));

    // somebody else's
    let told = explain(&url, CEM, &seq, &[]);
    assert!(step(&told, "policy").1.contains("before: no; after: no"));
    let (_, others) = step(&told, "rooms").1.split_once("to others: ").unwrap();
    assert!(others.contains(&format!("team:{TEAM}")), "{others}");
    assert_eq!(told["outcome"], "nothing");

    // lost, and gained
    let seq = run(format!(
        "update listings set team_id = '{OTHER}' where id = '{HOME}'"
    ))
    .await;
    let told = explain(&url, ANN, &seq, &[]);
    assert!(step(&told, "policy").1.contains("before: yes; after: no"));
    assert!(
        told["why"]
            .as_str()
            .unwrap()
            .contains("revoked in listings")
    );
    assert!(
        told["why"]
            .as_str()
            .unwrap()
            .contains(&format!("deleted, moved in team:{TEAM}"))
    );
    let told = explain(&url, CEM, &seq, &[]);
    assert!(step(&told, "policy").1.contains("before: no; after: yes"));
    assert!(
        told["why"]
            .as_str()
            .unwrap()
            .contains(&format!("created, moved in team:{OTHER}"))
    );

    // nobody
    for user in [OFF, WHO, "not even a uuid'"] {
        let told = explain(&url, user, &seq, &[]);
        assert_eq!(step(&told, "principal").0, "no");
        assert_eq!(told["outcome"], "nothing");
    }
    // somebody who was another when it happened
    database
        .execute(&format!(
            "update users set team_id = '{TEAM}' where id = '{CEM}'"
        ))
        .await;
    let told = explain(&url, CEM, &seq, &[]);
    assert!(step(&told, "principal").1.contains("has changed since"));

    // no event
    let seq = run(format!(
        "update listings set version = 9 where id = '{HOME}'"
    ))
    .await;
    assert_eq!(step(&explain(&url, BEA, &seq, &[]), "event").0, "no");
    let seq = newest(&database).await;
    assert_eq!(explain(&url, BEA, &seq, &[])["outcome"], "nothing");
    // one that another of its transaction took in
    database
        .execute(
            "create function again() returns trigger language plpgsql as $$
             begin if new.bedrooms = 1 then update listings set bedrooms = 2 where id = new.id; end if; return null; end $$;
             create trigger \"!again\" after update on listings for each row execute function again()",
        )
        .await;
    run(format!(
        "update listings set bedrooms = 1 where id = '{HOME}'"
    ))
    .await;
    let both = database
        .value("select string_agg(seq::text, ' ' order by seq desc) from crm_relay.change where txid = (select txid from crm_relay.change order by seq desc limit 1)")
        .await;
    let (last, first) = both.split_once(' ').unwrap();
    let told = [last, first].map(|seq| explain(&url, BEA, seq, &[])["outcome"].clone());
    assert_eq!(told, ["if_subscribed", "nothing"]);
    let told = explain(&url, BEA, first, &[]);
    assert!(step(&told, "event").1.contains(&format!("seq {last}")));
    // a part's
    let client = "00000000-0000-4000-8000-000000000009";
    run(format!(
        "insert into contacts (id, phone) values ('{client}', '1');
         insert into clients (id, contact_id, owner_id, team_id) values ('{client}', '{client}', '{BEA}', '{TEAM}')"
    ))
    .await;
    let seq = run("update contacts set phone = '2'".to_owned()).await;
    let told = explain(&url, ANN, &seq, &[]);
    let why = told["why"].as_str().unwrap();
    assert!(
        why.contains(&format!("updated in clients:{client}")),
        "{why}"
    );
    assert!(step(&told, "change").1.ends_with(": phone"), "{told:#}");
    // everything
    let seq = run("truncate listings".to_owned()).await;
    assert_eq!(explain(&url, BEA, &seq, &[])["outcome"], "resync");
    // too much for a room
    let seq = run(format!(
        "insert into leads (team_id, owner_id) select '{TEAM}', '{BEA}' from generate_series(1, 20)"
    ))
    .await;
    let told = explain(&url, BEA, &seq, &["--flood-changes", "19"]);
    assert_eq!(step(&told, "flood").0, "yes", "{told:#}");
    assert!(step(&told, "flood").1.contains(&format!("team:{TEAM}")));
    assert_eq!(told["outcome"], "resync");
    let why = told["why"].as_str().unwrap();
    let wanted = format!("resync, too_many_changes, in team:{TEAM};");
    assert!(why.contains(&wanted), "{why}");
    let told = explain(&url, BEA, &seq, &["--flood-changes", "20"]);
    assert_eq!(told["outcome"], "if_subscribed");
    assert_eq!(step(&told, "flood").0, "no");
    // more than is looked through for one user
    let seq = run(format!(
        "insert into leads (team_id, owner_id) select '{TEAM}', '{BEA}' from generate_series(1, 10001)"
    ))
    .await;
    let told = explain(&url, BEA, &seq, &[]);
    assert_eq!(step(&told, "flood").0, "maybe", "{told:#}");
}

#[tokio::test]
async fn what_is_not_in_the_journal_is_said_with_why() {
    let database = office().await;
    let txid = async |end: &str| {
        let session = database.connect().await;
        session
            .batch_execute("begin; update listings set list_price = 9")
            .await
            .unwrap();
        let row = session
            .query_one("select pg_current_xact_id()::text", &[])
            .await;
        let txid: String = row.unwrap().get(0);
        session.batch_execute(end).await.unwrap();
        (txid, session)
    };
    let (aborted, _one) = txid("rollback").await;
    let (open, _other) = txid("select 1").await;
    let unwatched = database
        .value("insert into teams (name) values ('V') returning pg_current_xact_id()")
        .await;
    for (arguments, wanted) in [
        (["--txid", &aborted], "rolled back"),
        (["--txid", &open], "still open"),
        (["--txid", "900000000000"], "no transaction of this server"),
        (["--txid", &unwatched], "nothing that is watched"),
        (["--seq", "900000"], "no change with this number"),
    ] {
        let all = [&["explain", "--user", ANN], &arguments[..]].concat();
        let told = crm_relay(&database.url(), &all);
        let why = String::from_utf8(told.stderr).unwrap();
        assert_eq!(told.status.code(), Some(1), "{why}");
        assert!(why.contains(wanted), "{why}");
    }
    let told = crm_relay(&database.url(), &["explain", "--user", ANN]);
    assert_eq!(told.status.code(), Some(2));
}

#[tokio::test]
async fn people_read_an_explanation_step_by_step_with_an_audits_rights() {
    let database = office().await;
    database
        .execute(&format!(
            "update listings set list_price = 2 where id = '{HOME}'"
        ))
        .await;
    let txid = database
        .value("select txid from crm_relay.change order by seq desc limit 1")
        .await;
    let name = format!("dba_{}", uuid::Uuid::new_v4().simple());
    database
        .execute(&format!(
            "create role {name} login; grant crm_relay_audit to {name}"
        ))
        .await;
    let url = database.url().replace("//postgres@", &format!("//{name}@"));
    let told = crm_relay(&url, &["explain", "--user", ANN, "--txid", &txid]);
    let text = String::from_utf8(told.stdout).unwrap();
    assert!(
        told.status.success(),
        "{}",
        String::from_utf8_lossy(&told.stderr)
    );
    let steps = [
        "change",
        "event",
        "principal",
        "rooms",
        "policy",
        "flood",
        "throttle",
        "connection",
        "so:",
    ];
    let mut rest = text.as_str();
    for step in steps {
        let (_, after) = rest
            .split_once(&format!("\n  {step}"))
            .unwrap_or_else(|| panic!("{step}\n{text}"));
        rest = after;
    }
    // what it says to look at can be looked at
    let seen = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("see: "));
    let mut tried = 0;
    for sql in seen.filter(|sql| sql.starts_with("select ")) {
        database.value(sql).await;
        tried += 1;
    }
    assert!(tried >= 4, "{text}");
    database
        .execute(&format!("drop owned by {name}; drop role {name}"))
        .await;
}
