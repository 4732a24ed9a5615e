//! What a client that comes back is told of the time in between.

use serde_json::{Value, json};

use crate::harness::{Client, Database, Relay};

const ONE: &str = "00000000-0000-4000-8000-000000000001";
const TEAM: &str = "00000000-0000-4000-8000-00000000000a";
const OTHER: &str = "00000000-0000-4000-8000-00000000000b";

/// A database with a lead, and the room that it is in.
async fn lead() -> (Database, String) {
    let database = Database::create().await;
    database
        .execute(&format!(
            "insert into teams (id, name) values ('{TEAM}', 'A'), ('{OTHER}', 'B');
             insert into leads (id, team_id) values ('{ONE}', '{TEAM}')"
        ))
        .await;
    (database, format!("leads:{ONE}"))
}

async fn count(database: &Database, steps: std::ops::RangeInclusive<u32>) {
    for step in steps {
        database
            .execute(&format!(
                "update leads set number_of_contacts = {step} where id = '{ONE}'"
            ))
            .await;
    }
}

/// The counts that events tell, in their order, without those that the client has.
fn counts_after(events: &[Value], mut last: u64) -> Vec<u64> {
    let mut counts = Vec::new();
    for event in events {
        let seq = event["seq"].as_str().map_or(0, |seq| seq.parse().unwrap());
        if seq > last {
            last = seq;
            counts.extend(event["data"]["number_of_contacts"].as_u64());
        }
    }
    counts
}

fn counts(events: &[Value]) -> Vec<u64> {
    counts_after(events, 0)
}

/// Lives a little: a cursor of a client that saw some changes, while others come after it.
async fn absent(database: &Database, relay: &Relay, room: &str) -> String {
    let mut client = Client::connect(relay).await;
    client.subscribe(&[room]).await;
    count(database, 1..=3).await;
    let seen = client.everything(database.client()).await;
    assert_eq!(counts(&seen), [1, 2, 3]);
    // frames carry the place where their batch began: wait for its end, so that nothing repeats
    let last: u64 = seen[2]["seq"].as_str().unwrap().parse().unwrap();
    let cursor = loop {
        let cursor = client.ping().await["cursor"].as_str().unwrap().to_owned();
        let witness = cursor.rsplit('.').next().and_then(|seq| seq.parse().ok());
        if witness >= Some(last) {
            break cursor;
        }
    };
    count(database, 4..=6).await;
    // until the relay has told it; once more, so that it is not of the last batch, which memory keeps
    client.everything(database.client()).await;
    client.everything(database.client()).await;
    cursor
}

/// Comes back with a cursor and sees to the end.
async fn come_back(database: &Database, relay: &Relay, room: &str, since: &str) -> Vec<u64> {
    let mut client = Client::connect(relay).await;
    let answer = client.resume(&[room], since).await;
    assert_eq!(answer["rooms"], json!([room]), "{answer}");
    assert!(answer.get("resync").is_none(), "{answer}\n{}", relay.logs());
    count(database, 7..=8).await;
    counts(&client.everything(database.client()).await)
}

#[tokio::test]
async fn a_client_that_comes_back_gets_what_it_missed_and_then_what_happens() {
    let (database, room) = lead().await;
    let relay = Relay::start(&database.url()).await;
    let cursor = absent(&database, &relay, &room).await;
    assert_eq!(
        come_back(&database, &relay, &room, &cursor).await,
        [4, 5, 6, 7, 8]
    );
}

#[tokio::test]
async fn any_relay_takes_any_cursor_also_after_a_restart() {
    let (database, room) = lead().await;
    let first = Relay::start(&database.url()).await;
    let other = Relay::start(&database.url()).await;
    let cursor = absent(&database, &first, &room).await;
    drop(first);
    assert_eq!(
        come_back(&database, &other, &room, &cursor).await,
        [4, 5, 6, 7, 8]
    );
    drop(other);
    let again = Relay::start(&database.url()).await;
    let mut client = Client::connect(&again).await;
    client.resume(&[&room], &cursor).await;
    let seen = counts(&client.everything(database.client()).await);
    assert_eq!(seen, [4, 5, 6, 7, 8]);
}

#[tokio::test]
async fn a_cursor_that_many_bring_is_looked_at_once() {
    let (database, room) = lead().await;
    let first = Relay::start(&database.url()).await;
    let cursor = absent(&database, &first, &room).await;
    drop(first);
    let again = Relay::start(&database.url()).await;
    let mut client = Client::connect(&again).await;
    client.resume(&[&room], &cursor).await;
    // nobody can look now
    let dba = database.connect().await;
    let lock = "begin; lock table crm_relay.setting in access exclusive mode";
    dba.batch_execute(lock).await.unwrap();
    let mut client = Client::connect(&again).await;
    let answer = client.resume(&[&room], &cursor).await;
    assert_eq!(answer["rooms"], json!([room]), "{answer}");
    assert!(answer.get("resync").is_none(), "{answer}");
    dba.batch_execute("commit").await.unwrap();
    let seen = counts(&client.everything(database.client()).await);
    assert_eq!(seen, [4, 5, 6]);
}

#[tokio::test]
async fn what_memory_does_not_hold_is_read_from_the_journal() {
    let (database, room) = lead().await;
    let relay = Relay::with(&database.url(), |command| {
        command.env("RELAY_RECENT_BYTES", "1");
    })
    .await;
    let cursor = absent(&database, &relay, &room).await;
    let opened = "select count(*) from pg_stat_activity where application_name like 'crm-relay history %' and datname = current_database()";
    assert_eq!(database.value(opened).await, "0");
    assert_eq!(
        come_back(&database, &relay, &room, &cursor).await,
        [4, 5, 6, 7, 8]
    );
    assert_eq!(database.value(opened).await, "1");
}

#[tokio::test]
async fn who_comes_back_to_memory_does_not_ask_the_journal() {
    let (database, room) = lead().await;
    let relay = Relay::start(&database.url()).await;
    let cursor = absent(&database, &relay, &room).await;
    assert_eq!(
        come_back(&database, &relay, &room, &cursor).await,
        [4, 5, 6, 7, 8]
    );
    let opened = "select count(*) from pg_stat_activity where application_name like 'crm-relay history %' and datname = current_database()";
    assert_eq!(database.value(opened).await, "0");
}

#[tokio::test]
async fn after_very_many_changes_records_are_told_theirs_and_scopes_fetch_anew() {
    let (database, room) = lead().await;
    let relay = Relay::with(&database.url(), |command| {
        command.env("RELAY_RECENT_BYTES", "1");
    })
    .await;
    let cursor = absent(&database, &relay, &room).await;
    database
        .execute(&format!(
            "insert into listings (team_id) select '{TEAM}' from generate_series(1, 10001)"
        ))
        .await;
    // until the relay has told it, and memory has moved on
    let mut scoped = Client::connect(&relay).await;
    scoped.everything(database.client()).await;
    scoped.everything(database.client()).await;
    let team = format!("team:{TEAM}");
    let answer = scoped.resume(&[&room, &team], &cursor).await;
    let reason = "too_many_changes";
    assert_eq!(
        answer["resync"],
        json!([{"room": room, "reason": reason}, {"room": team, "reason": reason}])
    );
    assert_eq!(
        come_back(&database, &relay, &room, &cursor).await,
        [4, 5, 6, 7, 8]
    );
    // a truncate is no change of a record, and yet it must be told
    database.execute("truncate leads").await;
    let mut client = Client::connect(&relay).await;
    let answer = client.resume(&[&room], &cursor).await;
    assert_eq!(
        answer["resync"],
        json!([{"room": room, "reason": "truncated"}])
    );
}

#[tokio::test]
async fn a_transaction_that_was_open_at_the_cursor_is_not_missed() {
    for recent in ["33554432", "1"] {
        let (database, room) = lead().await;
        let relay = Relay::with(&database.url(), |command| {
            command.env("RELAY_RECENT_BYTES", recent);
        })
        .await;
        let open = database.connect().await;
        open.batch_execute("begin; select pg_current_xact_id()")
            .await
            .unwrap();
        let cursor = absent(&database, &relay, &room).await;
        open.batch_execute(&format!(
            "update leads set number_of_contacts = 100 where id = '{ONE}'; commit"
        ))
        .await
        .unwrap();
        assert_eq!(
            come_back(&database, &relay, &room, &cursor).await,
            [4, 5, 6, 100, 7, 8]
        );
    }
}

#[tokio::test]
async fn a_replay_tells_moves_and_transactions_as_they_would_have_been_told() {
    for recent in ["33554432", "1"] {
        let (database, _) = lead().await;
        let relay = Relay::with(&database.url(), |command| {
            command.env("RELAY_RECENT_BYTES", recent);
        })
        .await;
        let mut client = Client::connect(&relay).await;
        let team = format!("team:{TEAM}/leads");
        let cursor = client.subscribe(&[&team]).await["cursor"]
            .as_str()
            .unwrap()
            .to_owned();
        drop(client);
        database
            .execute(&format!(
                "begin; update leads set status = 'contacted'; commit;
                 begin; update leads set status = 'qualified'; update leads set status = 'lost'; commit;
                 begin; update leads set team_id = '{OTHER}'; commit"
            ))
            .await;
        let mut whole = Client::with_transactions(&relay).await;
        whole.resume(&[&team], &cursor).await;
        let seen = whole.everything(database.client()).await;
        let kinds: Vec<&Value> = seen.iter().map(|frame| &frame["type"]).collect();
        assert_eq!(
            kinds,
            ["LEAD_UPDATED", "TRANSACTION", "LEAD_DELETED"],
            "{seen:?}"
        );
        assert_eq!(seen[0]["rooms"], json!([team]));
        assert_eq!(seen[1]["events"].as_array().unwrap().len(), 2);
        assert_eq!(
            (&seen[2]["reason"], &seen[2]["data"]),
            (&json!("moved"), &json!({"id": ONE}))
        );
    }
}

#[tokio::test]
async fn a_cursor_that_claims_what_is_not_so_is_told_at_once() {
    let (database, room) = lead().await;
    let relay = Relay::start(&database.url()).await;
    let cursor = absent(&database, &relay, &room).await;
    let (epoch, rest) = cursor.split_once('.').unwrap();
    let (snapshot, witness) = rest.rsplit_once('.').unwrap();
    let witness: u64 = witness.parse().unwrap();
    let mut client = Client::connect(&relay).await;
    for (since, reason) in [
        // another database, or this one before it was restored
        (format!("00000000.{rest}"), "epoch_changed"),
        // a transaction that this server has not reached
        (
            format!("{epoch}.900000000:900000000:.{witness}"),
            "epoch_changed",
        ),
        // a row that was there and is no more
        (
            format!("{epoch}.{snapshot}.{}", witness + 1000),
            "epoch_changed",
        ),
    ] {
        let answer = client.resume(&[&room], &since).await;
        assert_eq!(
            answer["resync"],
            json!([{"room": room, "reason": reason}]),
            "{since}"
        );
        assert_eq!(answer["rooms"], json!([room]), "live all the same");
    }
    for since in [
        "",
        "x",
        &format!("{cursor}x"),
        &format!("{epoch}.5:4:."),
        &"1,".repeat(3000),
    ] {
        let error = client.resume(&[&room], since).await;
        assert_eq!(error["code"], "bad_cursor", "{since}");
    }
    database
        .execute("update crm_relay.setting set pruned_txid = (select max(txid::text::bigint)::text::xid8 from crm_relay.change)")
        .await;
    let early = format!("{epoch}.5:5:.");
    let answer = client.resume(&[&room], &early).await;
    assert_eq!(
        answer["resync"],
        json!([{"room": room, "reason": "cursor_too_old"}])
    );
    // from before everything, while everything is still there: all of it
    database
        .execute("update crm_relay.setting set pruned_txid = '0'")
        .await;
    let mut other = Client::connect(&relay).await;
    other.resume(&[&room], &early).await;
    let seen = other.everything(database.client()).await;
    assert_eq!(seen[0]["type"], "LEAD_CREATED");
    assert_eq!(counts(&seen[1..]), [1, 2, 3, 4, 5, 6]);
}

#[tokio::test]
async fn what_is_asked_while_a_resume_is_looked_up_is_answered_after_it() {
    let (database, room) = lead().await;
    let relay = Relay::with(&database.url(), |command| {
        command.env("RELAY_RECENT_BYTES", "1");
    })
    .await;
    let cursor = absent(&database, &relay, &room).await;
    let mut client = Client::connect(&relay).await;
    client
        .send(json!({"type": "subscribe", "id": 1, "rooms": [room], "since": cursor}))
        .await;
    client.send(json!({"type": "ping", "id": 2})).await;
    client
        .send(json!({"type": "unsubscribe", "id": 3, "rooms": [room]}))
        .await;
    let mut frames = Vec::new();
    for _ in 0..6 {
        frames.push(client.next_event().await);
    }
    let kinds: Vec<&Value> = frames.iter().map(|frame| &frame["type"]).collect();
    assert_eq!(
        kinds,
        [
            "subscribed",
            "LEAD_UPDATED",
            "LEAD_UPDATED",
            "LEAD_UPDATED",
            "pong",
            "unsubscribed"
        ]
    );
}

#[tokio::test]
async fn a_client_that_comes_and_goes_in_a_storm_sees_everything_once() {
    let (database, room) = lead().await;
    let relays = [
        Relay::start(&database.url()).await,
        Relay::start(&database.url()).await,
    ];
    let session = database.connect().await;
    let storm = tokio::spawn(async move {
        for step in 1..=900 {
            session
                .batch_execute(&format!(
                    "update leads set number_of_contacts = {step} where id = '{ONE}'"
                ))
                .await
                .unwrap();
        }
    });
    let mut client = Client::connect(&relays[0]).await;
    let mut cursor = client.subscribe(&[&room]).await["cursor"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut seen: Vec<u64> = Vec::new();
    let mut last_seq = 0;
    let mut returns = 0;
    while seen.last() != Some(&900) {
        // Long enough to come past a batch: all of its events carry the place where it began, so who
        // is cut off inside of one, again and again, begins it again and again.
        let from = cursor.clone();
        let mut frames = 0;
        while seen.last() != Some(&900) && (frames < 60 || cursor == from) {
            frames += 1;
            let frame = client.next_event().await;
            if let Some(told) = frame["cursor"].as_str() {
                cursor = told.to_owned();
            }
            let Some(seq) = frame["seq"].as_str() else {
                continue;
            };
            let seq: u64 = seq.parse().unwrap();
            if seq > last_seq {
                last_seq = seq;
                seen.push(frame["data"]["number_of_contacts"].as_u64().unwrap());
            }
        }
        if seen.last() != Some(&900) {
            returns += 1;
            client = Client::connect(&relays[returns % 2]).await;
            let answer = client.resume(&[&room], &cursor).await;
            assert!(answer.get("resync").is_none(), "{answer}");
        }
    }
    storm.await.unwrap();
    // those before the first subscription were nobody's
    let first = seen[0];
    assert_eq!(seen, (first..=900).collect::<Vec<_>>());
    assert!(returns > 3, "{returns}");
}

#[tokio::test]
async fn a_snapshot_is_the_record_and_what_follows_is_what_came_after() {
    let (database, room) = lead().await;
    let relay = Relay::start(&database.url()).await;
    database
        .execute(&format!(
            "update leads set notes = repeat('x', 5000), first_name = 'Zoë' where id = '{ONE}'"
        ))
        .await;
    let never = format!("leads:{OTHER}");
    let mut client = Client::connect(&relay).await;
    let answer = client.snapshot(&[&room, &never]).await;
    assert_eq!(answer["rooms"], json!([room, never]), "{answer}");
    let (found, none) = (client.next_event().await, client.next_event().await);
    assert_eq!(
        (&found["type"], &found["room"]),
        (&json!("snapshot"), &json!(room))
    );
    assert_eq!(
        (&found["module"], &found["recordId"]),
        (&json!("leads"), &json!(ONE))
    );
    assert_eq!(found["data"]["first_name"], "Zoë");
    assert_eq!(found["data"]["notes"].as_str().unwrap().len(), 5000);
    let seq = database
        .value("select max(seq) from crm_relay.change")
        .await;
    assert_eq!(found["seq"], seq);
    assert_eq!(
        (&none["room"], &none["data"], &none["seq"]),
        (&json!(never), &Value::Null, &Value::Null)
    );
    count(&database, 1..=2).await;
    assert_eq!(counts(&client.everything(database.client()).await), [1, 2]);
    database
        .execute(&format!("insert into leads (id) values ('{OTHER}')"))
        .await;
    assert_eq!(client.next_event().await["type"], "LEAD_CREATED");
}

#[tokio::test]
async fn a_snapshot_tells_no_secret_and_every_kind_of_key() {
    let database = Database::create().await;
    database
        .execute(
            "create table vaults (region text, no bigint, code text, api_token text, primary key (region, no));
             insert into vaults values ('a\"b', 7, 'open', 'secret');
             create domain short as text check (length(value) < 5);
             create table shorts (id short primary key, n numeric);
             insert into shorts values ('ab', 1.50);
             alter table leads enable row level security;
             alter table leads force row level security;
             select crm_relay.watch('vaults'), crm_relay.watch('shorts')",
        )
        .await;
    database
        .execute(&format!(
            "insert into leads (id, first_name) values ('{ONE}', 'seen')"
        ))
        .await;
    let relay = Relay::start(&database.url()).await;
    let mut client = Client::connect(&relay).await;
    let lead = format!("leads:{ONE}");
    let rooms = [
        r#"vaults:["a\"b","7"]"#,
        r#"vaults:["x","nonsense"]"#,
        "shorts:ab",
        "shorts:far too long",
        &lead,
    ];
    assert_eq!(client.snapshot(&rooms).await["rooms"], json!(rooms));
    let mut data = Vec::new();
    for _ in rooms {
        data.push(client.next_event().await["data"].clone());
    }
    assert_eq!(data[0], json!({"region": "a\"b", "no": 7, "code": "open"}));
    assert_eq!(data[1], Value::Null);
    assert_eq!(data[2].to_string(), r#"{"id":"ab","n":1.50}"#);
    assert_eq!(data[3], Value::Null);
    assert_eq!(
        data[4]["first_name"], "seen",
        "row level security does not empty it"
    );
}

#[tokio::test]
async fn a_session_in_which_a_records_owner_prepared_a_statement_is_not_used_again() {
    let database = Database::create().await;
    // such as one in the place of the relay's own, which no rollback would bring back
    let trap = "
        create type bait as enum ('x');
        create function prepare(bait) returns json language plpgsql as
          $$ begin execute 'prepare mine as select 1'; return '\"x\"'; end $$;
        create cast (bait as json) with function prepare(bait);
        create table traps (id int primary key, bait bait);
        insert into traps values (1, 'x');
        select crm_relay.watch('traps')";
    database.execute(trap).await;
    let relay = Relay::start(&database.url()).await;
    let mut client = Client::connect(&relay).await;
    for _ in 0..3 {
        // the second time in one session it would raise
        let answer = client.snapshot(&["traps:1"]).await;
        assert_eq!(answer["rooms"], json!(["traps:1"]), "{answer}");
        assert_eq!(client.next_event().await["data"]["bait"], "x");
    }
    relay
        .logged("prepared a statement in the relay's session")
        .await;
}

/// Four of five changes of a lead; with somebody who was told the first.
async fn held_back(throttle: &str) -> (Database, String, Relay, Client) {
    let (database, room) = lead().await;
    let relay = Relay::with(&database.url(), |command| {
        command.env("RELAY_THROTTLE", throttle);
    })
    .await;
    let mut first = Client::connect(&relay).await;
    first.subscribe(&[&room]).await;
    count(&database, 1..=5).await;
    assert_eq!(first.next_event().await["data"]["number_of_contacts"], 1);
    (database, room, relay, first)
}

#[tokio::test]
async fn what_a_throttle_held_back_does_not_come_again_after_a_snapshot_that_has_it() {
    let (database, room, relay, mut first) = held_back("1s").await;
    let mut client = Client::connect(&relay).await;
    client.snapshot(&[&room]).await;
    let snapshot = client.next_event().await;
    assert_eq!(snapshot["data"]["number_of_contacts"], 5);
    let held = first.next_event().await;
    assert_eq!(
        (&held["coalesced"], &held["seq"]),
        (&json!(4), &snapshot["seq"])
    );
    count(&database, 6..=6).await;
    assert_eq!(client.next_event().await["data"]["number_of_contacts"], 6);
}

#[tokio::test]
async fn who_left_and_came_again_without_a_snapshot_is_told_what_a_throttle_held_back() {
    let (_database, room, relay, _first) = held_back("3s").await;
    let mut clients = Vec::new();
    for leaves in [true, false] {
        let mut client = Client::connect(&relay).await;
        client.snapshot(&[&room]).await;
        let snapshot = client.next_event().await;
        assert_eq!(snapshot["data"]["number_of_contacts"], 5);
        if leaves {
            client.unsubscribe(&[&room]).await;
        }
        client.subscribe(&[&room]).await;
        clients.push((client, snapshot["seq"].clone()));
    }
    for (mut client, seq) in clients {
        assert_eq!(client.next_event().await["seq"], seq);
    }
}

#[tokio::test]
async fn in_a_storm_a_snapshot_and_its_changes_fit_without_a_gap() {
    let (database, room) = lead().await;
    let relay = Relay::start(&database.url()).await;
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let session = database.connect().await;
    let storm = tokio::spawn(async move {
        let mut step = 0;
        while stopped.try_recv().is_err() {
            step += 1;
            let update = format!("update leads set number_of_contacts = {step} where id = '{ONE}'");
            session.batch_execute(&update).await.unwrap();
        }
    });
    let mut live = Client::connect(&relay).await;
    live.subscribe(&[format!("leads:{OTHER}")]).await;
    for round in 0..30 {
        let mut client = Client::connect(&relay).await;
        let answer = client.snapshot(&[&room]).await;
        assert!(answer.get("resync").is_none(), "{answer}");
        let snapshot = client.next_event().await;
        let first = snapshot["data"]["number_of_contacts"].as_u64().unwrap();
        let mut seq: u64 = snapshot["seq"].as_str().unwrap().parse().unwrap();
        for count in first..first + 10 {
            let event = client.next_event().await;
            assert_eq!(
                event["data"]["number_of_contacts"],
                count + 1,
                "round {round}: {event}"
            );
            let next = event["seq"].as_str().unwrap().parse().unwrap();
            assert!(next > seq, "round {round}: {event}");
            seq = next;
        }
    }
    stop.send(()).unwrap();
    storm.await.unwrap();
}

#[tokio::test]
async fn what_one_client_is_told_from_the_journal_is_bounded_over_all_its_rooms() {
    let (database, room) = lead().await;
    let relay = Relay::with(&database.url(), |command| {
        command.env("RELAY_RECENT_BYTES", "1");
        command.env("RELAY_QUEUE_BYTES", "67108864");
    })
    .await;
    let id = |number: usize| format!("00000000-0000-4000-8000-{number:012}");
    database
        .execute("insert into listings (id) select ('00000000-0000-4000-8000-' || lpad(i::text, 12, '0'))::uuid from generate_series(1, 11) i")
        .await;
    let cursor = absent(&database, &relay, &room).await;
    // of none as many as one room may have missed
    database
        .execute(
            "do $$ begin for i in 1..950 loop update listings set list_price = i; end loop; end $$",
        )
        .await;
    let mut client = Client::connect(&relay).await;
    client.everything(database.client()).await;
    client.everything(database.client()).await;
    let rooms: Vec<String> = (1..=11)
        .map(|number| format!("listings:{}", id(number)))
        .collect();
    let answer = client.resume(&rooms[..10], &cursor).await;
    assert_eq!(answer["resync"], json!(null), "9,500 changes: {answer}");
    let mut client = Client::connect(&relay).await;
    let answer = client.resume(&rooms, &cursor).await;
    let reason = |room: &String| json!({"room": room, "reason": "too_many_changes"});
    let resync: Vec<_> = rooms.iter().map(reason).collect();
    assert_eq!(answer["resync"], json!(resync), "10,450 changes");
}
