//! What happens to a record, and what those in its room see of it.

use serde_json::{Value, json};

use crate::harness::{Client, Database, Relay, crm_relay};

const ONE: &str = "00000000-0000-4000-8000-000000000001";
const TWO: &str = "00000000-0000-4000-8000-000000000002";
const ANN: &str = "00000000-0000-4000-8000-00000000000a";
const BEA: &str = "00000000-0000-4000-8000-00000000000b";

/// A database with two users and a listing, a relay on it, and a client in the listing's room.
async fn listing() -> (Database, Relay, Client) {
    let database = Database::create().await;
    database
        .execute(&format!(
            "insert into teams (id, name) values ('{ANN}', 'A'), ('{BEA}', 'B');
             insert into users (id, email, first_name, last_name)
             values ('{ANN}', 'ann@crm.example', 'Ann', 'A'), ('{BEA}', 'bea@crm.example', 'Bea', 'B');
             insert into listings (id, list_price, listing_agent_id) values ('{ONE}', 400000, '{ANN}')"
        ))
        .await;
    let relay = Relay::start(&database.url()).await;
    let mut client = Client::connect(&relay).await;
    let answer = client.subscribe(&[format!("listings:{ONE}")]).await;
    assert_eq!(answer["rooms"], json!([format!("listings:{ONE}")]));
    (database, relay, client)
}

/// JSON whose numbers are what is written, digit for digit.
fn digits(json: &str) -> Value {
    serde_json::from_str(json).unwrap()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn an_edit_in_one_office_is_seen_in_the_other() {
    let (database, _relay, mut client) = listing().await;
    database
        .execute(&format!(
            "update listings set list_price = 395000, updated_at = now(), version = version + 1,
                                 last_modified_by = '{BEA}' where id = '{ONE}'"
        ))
        .await;
    let event = client.next_event().await;
    assert_eq!(event["type"], "LISTING_UPDATED");
    assert_eq!(event["module"], "listings");
    assert_eq!(event["action"], "updated");
    assert_eq!(event["recordId"], ONE);
    assert_eq!(event["data"]["list_price"].to_string(), "395000.00");
    assert_eq!(event["previous"]["list_price"].to_string(), "400000.00");
    assert_eq!(
        (&event["data"]["version"], &event["previous"]["version"]),
        (&json!(2), &json!(1))
    );
    assert_eq!(event["userId"], BEA);
    assert!(event["cursor"].is_string() && event["seq"].is_string() && event["txid"].is_string());
    let stamp = event["timestamp"].as_str().unwrap();
    assert!(stamp.len() == 24 && stamp.ends_with('Z'), "{stamp}");
    let changed: Vec<&String> = event["data"].as_object().unwrap().keys().collect();
    assert_eq!(
        changed,
        ["list_price", "version", "updated_at", "last_modified_by"]
    );
}

#[tokio::test]
async fn a_number_keeps_its_digits_on_the_wire() {
    let (database, _relay, mut client) = listing().await;
    database
        .execute("alter table listings add column exact numeric")
        .await;
    database
        .execute("update listings set exact = 1234567890123456789012345678901234567890.10")
        .await;
    assert_eq!(
        client.next_event().await["data"],
        digits(r#"{"exact": 1234567890123456789012345678901234567890.10}"#)
    );
}

#[tokio::test]
async fn what_changes_nothing_or_only_quiet_columns_is_no_event() {
    let (database, _relay, mut client) = listing().await;
    database
        .execute("update listings set list_price = list_price")
        .await;
    database
        .execute("update listings set updated_at = clock_timestamp(), version = version + 1")
        .await;
    database
        .execute(&format!("update listings set last_modified_by = '{ANN}'"))
        .await;
    database
        .execute("begin; update listings set list_price = 1; rollback")
        .await;
    database
        .execute("begin; savepoint s; update listings set list_price = 2; rollback to s; update listings set city = 'Reno'; commit")
        .await;
    let events = client.everything(database.client()).await;
    assert_eq!(kinds(&events), ["LISTING_UPDATED"]);
    assert_eq!(events[0]["data"], json!({"city": "Reno"}));
}

#[tokio::test]
async fn a_record_comes_and_goes_with_all_its_columns() {
    let (database, _relay, mut client) = listing().await;
    client.subscribe(&[format!("leads:{ONE}")]).await;
    database
        .execute(&format!(
            "insert into leads (id, first_name, created_by) values ('{ONE}', 'Zoë', '{ANN}');
             insert into leads (id, first_name) values ('{ONE}', 'Zoé') on conflict (id) do update set first_name = excluded.first_name;
             delete from leads where id = '{ONE}'"
        ))
        .await;
    let events = client.everything(database.client()).await;
    assert_eq!(
        kinds(&events),
        ["LEAD_CREATED", "LEAD_UPDATED", "LEAD_DELETED"]
    );
    assert_eq!(events[0]["userId"], ANN);
    assert_eq!(events[0]["data"]["status"], "new");
    assert!(events[0].get("previous").is_none());
    assert_eq!(events[1]["data"], json!({"first_name": "Zoé"}));
    assert_eq!(events[1]["previous"], json!({"first_name": "Zoë"}));
    assert_eq!(events[2]["data"]["first_name"], "Zoé");
    assert_eq!(events[2]["userId"], Value::Null);
}

#[tokio::test]
async fn a_new_key_is_another_record() {
    let (database, _relay, mut client) = listing().await;
    client.subscribe(&[format!("listings:{TWO}")]).await;
    database
        .execute(&format!(
            "update listings set id = '{TWO}' where id = '{ONE}'"
        ))
        .await;
    let events = client.everything(database.client()).await;
    assert_eq!(kinds(&events), ["LISTING_DELETED", "LISTING_CREATED"]);
    assert_eq!(
        (&events[0]["recordId"], &events[1]["recordId"]),
        (&json!(ONE), &json!(TWO))
    );
}

#[tokio::test]
async fn a_truncate_tells_its_modules_rooms_to_fetch_anew() {
    let (database, _relay, mut client) = listing().await;
    client
        .subscribe(&[
            format!("leads:{ONE}"),
            format!("team:{ANN}/listings"),
            format!("team:{ANN}/leads"),
        ])
        .await;
    database.execute("truncate listings").await;
    let resync = client.next_event().await;
    assert_eq!(resync["type"], "resync");
    let mut rooms: Vec<&str> = resync["rooms"]
        .as_array()
        .unwrap()
        .iter()
        .map(|told| told["room"].as_str().unwrap())
        .collect();
    rooms.sort();
    assert_eq!(
        rooms,
        [format!("listings:{ONE}"), format!("team:{ANN}/listings")]
    );
    assert_eq!(resync["rooms"][0]["reason"], "truncated");
    // still subscribed
    database
        .execute(&format!("insert into listings (id) values ('{ONE}')"))
        .await;
    assert_eq!(client.next_event().await["type"], "LISTING_CREATED");
}

#[tokio::test]
async fn a_bulk_statement_reaches_every_record_once() {
    let database = Database::create().await;
    database
        .execute(&format!(
            "insert into teams (id, name) values ('{BEA}', 'B')"
        ))
        .await;
    let relay = Relay::with(&database.url(), |command| {
        command.env("RELAY_FLOOD_CHANGES", "10000");
    })
    .await;
    database.execute("insert into leads (id, number_of_contacts) select gen_random_uuid(), n from generate_series(1, 10000) n").await;
    let mut team = Client::connect(&relay).await;
    team.subscribe(&[format!("team:{BEA}/leads")]).await;
    database
        .execute(&format!("update leads set team_id = '{BEA}'"))
        .await;
    let events = team.everything(database.client()).await;
    assert_eq!(events.len(), 10_000);
    assert!(
        events
            .iter()
            .all(|event| event["type"] == "LEAD_CREATED" && event["reason"] == "moved")
    );
    let seqs: Vec<u64> = events
        .iter()
        .map(|event| event["seq"].as_str().unwrap().parse().unwrap())
        .collect();
    assert!(seqs.is_sorted());
    relay.logged("more events in this second").await;
}

#[tokio::test]
async fn a_flood_tells_a_scope_room_to_fetch_anew_and_records_their_change() {
    let (database, relay, mut record) = listing().await;
    let mut team = Client::connect(&relay).await;
    team.subscribe(&[format!("team:{BEA}"), format!("user:{ANN}")])
        .await;
    database
        .execute(&format!(
            "insert into leads (team_id) select '{BEA}' from generate_series(1, 500)"
        ))
        .await;
    for _ in 0..500 {
        assert_eq!(team.next_event().await["type"], "LEAD_CREATED");
    }
    database
        .execute(&format!(
            "begin; insert into leads (team_id) select '{BEA}' from generate_series(1, 500);
             update listings set team_id = '{BEA}'; commit"
        ))
        .await;
    // by the user's room, which the record was in all along
    assert_eq!(team.next_event().await["type"], "LISTING_UPDATED");
    let resync = team.next_event().await;
    assert_eq!(
        resync,
        json!({"type": "resync", "rooms": [{"room": format!("team:{BEA}"), "reason": "too_many_changes"}]})
    );
    assert_eq!(record.next_event().await["type"], "LISTING_UPDATED");
    assert_eq!(team.everything(database.client()).await.len(), 0);
}

#[tokio::test]
async fn a_large_column_that_did_not_change_is_not_sent() {
    let (database, _relay, mut client) = listing().await;
    database
        .execute("update listings set description = repeat('x', 1000000), features = (select jsonb_object_agg('k' || n, n) from generate_series(1, 8000) n)")
        .await;
    let event = client.next_event().await;
    assert_eq!(
        event["data"]["description"].as_str().unwrap().len(),
        1_000_000
    );
    database.execute("update listings set list_price = 1").await;
    assert_eq!(
        client.next_event().await["data"],
        digits(r#"{"list_price": 1.00}"#)
    );
    let kept = database.value("select octet_length(new_image::text) < 3000 from crm_relay.change order by seq desc limit 1").await;
    assert_eq!(
        kept, "t",
        "the journal keeps no copy of what is large and unchanged"
    );
    database
        .execute("update listings set features = jsonb_set(features, '{k1}', '7')")
        .await;
    let event = client.next_event().await;
    assert_eq!(
        (
            &event["data"]["features"]["k1"],
            &event["previous"]["features"]["k1"]
        ),
        (&json!(7), &json!(1))
    );
    assert_eq!(event["data"].as_object().unwrap().len(), 1);
}

#[tokio::test]
async fn every_kind_of_value_arrives_as_postgres_wrote_it() {
    let (database, _relay, mut client) = listing().await;
    database
        .execute(
            "create type mood as enum ('sad', 'hap\"py');
             create domain positive as int check (value > 0);
             alter table listings add t text, add n numeric, add f float8, add d date, add ts timestamptz, add b bytea,
               add a int[], add m mood, add p positive, add g int generated always as (bedrooms * 2) stored, add j json, add i interval",
        )
        .await;
    let writer = database.connect().await;
    writer
        .batch_execute(
            "set timezone = 'Asia/Kathmandu'; set datestyle = 'SQL, DMY'; set bytea_output = 'escape'; set intervalstyle = 'iso_8601';
             update listings set t = E'quote\" back\\\\slash \\t \\u0001 😀 שלום 𝄞', n = 'NaN', f = '-Infinity', d = '0044-03-15 BC',
               ts = '2026-11-23 12:00:00+00', b = '\\xdeadbeef', a = '{1,null,3}', m = 'hap\"py', p = 7, bedrooms = 4,
               j = '{\"nul\": \"\\u0000\", \"dup\": 1, \"dup\": 2}', i = '1 day 2 hours'",
        )
        .await
        .unwrap();
    let event = client.next_event().await;
    let data = &event["data"];
    assert_eq!(data["t"], "quote\" back\\slash \t \u{1} 😀 שלום 𝄞");
    assert_eq!(
        (&data["n"], &data["f"]),
        (&json!("NaN"), &json!("-Infinity"))
    );
    assert_eq!(
        (&data["d"], &data["ts"]),
        (&json!("0044-03-15 BC"), &json!("2026-11-23T12:00:00+00:00"))
    );
    assert_eq!(
        (&data["b"], &data["a"]),
        (&json!("\\xdeadbeef"), &json!([1, null, 3]))
    );
    assert_eq!(
        (&data["m"], &data["p"], &data["g"]),
        (&json!("hap\"py"), &json!(7), &json!(8))
    );
    assert_eq!(
        (&data["j"]["nul"], &data["i"]),
        (&json!("\0"), &json!("1 day 02:00:00"))
    );
    database
        .execute("update listings set t = null, p = null")
        .await;
    let event = client.next_event().await;
    assert_eq!(event["data"], json!({"t": null, "p": null}));
    // a session that renders otherwise has changed nothing
    writer
        .batch_execute("update listings set city = 'Elko'")
        .await
        .unwrap();
    assert_eq!(client.next_event().await["data"], json!({"city": "Elko"}));
}

#[tokio::test]
async fn the_tables_definition_may_change_while_the_relay_runs() {
    let (database, _relay, mut client) = listing().await;
    database
        .execute("alter table listings add column tour text; update listings set tour = 'yes'")
        .await;
    assert_eq!(client.next_event().await["data"], json!({"tour": "yes"}));
    database
        .execute(
            "alter table listings rename column tour to visit; update listings set visit = 'no'",
        )
        .await;
    assert_eq!(client.next_event().await["data"], json!({"visit": "no"}));
    database.execute("alter table listings drop column visit, drop column mls_number; update listings set city = 'Ely'").await;
    assert_eq!(client.next_event().await["data"], json!({"city": "Ely"}));
    database.execute("alter table listings drop column version, drop column last_modified_by; update listings set city = 'Fernley'").await;
    let event = client.next_event().await;
    assert_eq!(
        (&event["data"], &event["userId"]),
        (&json!({"city": "Fernley"}), &Value::Null)
    );
}

#[tokio::test]
async fn a_trigger_of_the_crm_that_edits_the_row_again_is_told_as_one_history() {
    // before ours by name (a space sorts before "!") and after it
    for name in [" first", "zz last"] {
        let (database, _relay, mut client) = listing().await;
        database
            .execute(&format!(
                "create function again() returns trigger language plpgsql as $$
                 begin
                   if new.description is distinct from 'edited to ' || new.list_price then
                     update listings set description = 'edited to ' || new.list_price where id = new.id;
                   end if;
                   return null;
                 end $$;
                 create trigger \"{name}\" after update on listings for each row execute function again()"
            ))
            .await;
        let mut price = digits("400000.00");
        let mut description = Value::Null;
        for step in 1..=3 {
            database
                .execute(&format!("update listings set list_price = {step}"))
                .await;
            for event in client.everything(database.client()).await {
                for (column, last) in [
                    ("list_price", &mut price),
                    ("description", &mut description),
                ] {
                    if let Some(previous) = event["previous"].get(column) {
                        assert_eq!(previous, last, "{name:?} {column}: {event}");
                        *last = event["data"][column].clone();
                    }
                }
            }
            assert_eq!(price, digits(&format!("{step}.00")), "{name:?}");
            assert_eq!(
                description,
                json!(format!("edited to {step}.00")),
                "{name:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_part_is_told_as_an_update_of_the_record_it_belongs_to() {
    let (database, _relay, mut client) = listing().await;
    database
        .execute(&format!(
            "insert into contacts (id, phone) values ('{TWO}', '555-1');
             insert into clients (id, contact_id, owner_id, team_id) values ('{ONE}', '{TWO}', '{ANN}', '{BEA}')"
        ))
        .await;
    client.everything(database.client()).await;
    client.subscribe(&[format!("clients:{ONE}")]).await;
    database
        .execute("update contacts set phone = '555-2'")
        .await;
    let event = client.next_event().await;
    assert_eq!(
        (&event["type"], &event["part"]),
        (&json!("CLIENT_UPDATED"), &json!("contacts"))
    );
    assert_eq!(
        (&event["data"], &event["previous"]),
        (&json!({"phone": "555-2"}), &json!({"phone": "555-1"}))
    );
    assert_eq!(event["recordId"], ONE);
    // together with its record, in one transaction; a quiet column of the part alone is nothing
    database
        .execute("update contacts set updated_at = clock_timestamp()")
        .await;
    database
        .execute(
            "begin; update clients set status = 'past'; update contacts set city = 'Reno'; commit",
        )
        .await;
    let events = client.everything(database.client()).await;
    assert_eq!(events.len(), 2);
    assert_eq!(events[0]["txid"], events[1]["txid"]);
    assert_eq!(
        (&events[0]["data"], &events[1]["data"]),
        (&json!({"status": "past"}), &json!({"city": "Reno"}))
    );
    // the team's room has it, too
    client.subscribe(&[format!("team:{BEA}/clients")]).await;
    database
        .execute("update contacts set phone = '555-3'")
        .await;
    assert_eq!(
        client.next_event().await["rooms"],
        json!([format!("team:{BEA}/clients")])
    );
}

#[tokio::test]
async fn a_part_and_its_record_changed_at_the_same_time_keep_their_histories() {
    let (database, _relay, mut client) = listing().await;
    database
        .execute(&format!(
            "insert into contacts (id, phone) values ('{TWO}', '0');
             insert into clients (id, contact_id, status) values ('{ONE}', '{TWO}', '0')"
        ))
        .await;
    client.everything(database.client()).await;
    client.subscribe(&[format!("clients:{ONE}")]).await;
    let write = async |table: &str, column: &str| {
        let session = database.connect().await;
        for step in 1..=50 {
            let update = format!("begin; update {table} set {column} = '{step}'; commit");
            session.batch_execute(&update).await.unwrap();
        }
    };
    tokio::join!(write("contacts", "phone"), write("clients", "status"));
    let events = client.everything(database.client()).await;
    for (part, column) in [(json!("contacts"), "phone"), (Value::Null, "status")] {
        let history: Vec<&Value> = events
            .iter()
            .filter(|event| event["part"] == part)
            .collect();
        assert_eq!(history.len(), 50, "{part}");
        for (step, event) in history.iter().enumerate() {
            assert_eq!(event["previous"][column], step.to_string(), "{event}");
            assert_eq!(event["data"][column], (step + 1).to_string(), "{event}");
        }
    }
}

#[tokio::test]
async fn a_connection_gets_one_frame_however_many_of_its_rooms_a_change_is_in() {
    let (database, relay, mut client) = listing().await;
    database
        .execute(&format!("update listings set team_id = '{BEA}'"))
        .await;
    client.next_event().await;
    let scopes = [
        format!("team:{BEA}"),
        format!("team:{BEA}/listings"),
        format!("user:{ANN}"),
    ];
    client.subscribe(&scopes).await;
    let mut other = Client::connect(&relay).await;
    other.subscribe(&scopes).await;
    database.execute("update listings set city = 'Reno'").await;
    for client in [&mut client, &mut other] {
        let events = client.everything(database.client()).await;
        assert_eq!(kinds(&events), ["LISTING_UPDATED"]);
        let rooms = events[0]["rooms"].as_array().unwrap().iter();
        let mut rooms: Vec<&str> = rooms.map(|room| room.as_str().unwrap()).collect();
        rooms.sort();
        assert_eq!(rooms, scopes);
    }
}

#[tokio::test]
async fn a_record_that_moves_leaves_one_room_and_enters_the_other() {
    let (database, relay, mut stays) = listing().await;
    database
        .execute(&format!(
            "update listings set team_id = '{ANN}', city = 'Reno'"
        ))
        .await;
    stays.next_event().await;
    let (mut from, mut to, mut both) = (
        Client::connect(&relay).await,
        Client::connect(&relay).await,
        Client::connect(&relay).await,
    );
    from.subscribe(&[format!("team:{ANN}")]).await;
    to.subscribe(&[format!("team:{BEA}/listings")]).await;
    both.subscribe(&[format!("team:{ANN}"), format!("team:{BEA}")])
        .await;
    database
        .execute(&format!("update listings set team_id = '{BEA}'"))
        .await;

    let left = from.next_event().await;
    assert_eq!(
        (&left["type"], &left["reason"]),
        (&json!("LISTING_DELETED"), &json!("moved"))
    );
    assert_eq!(left["data"], json!({"id": ONE}), "the key only");
    assert_eq!(left["rooms"], json!([format!("team:{ANN}")]));
    let entered = to.next_event().await;
    assert_eq!(
        (&entered["type"], &entered["reason"]),
        (&json!("LISTING_CREATED"), &json!("moved"))
    );
    assert_eq!(
        (&entered["data"]["city"], &entered["data"]["id"]),
        (&json!("Reno"), &json!(ONE))
    );
    let stayed = stays.next_event().await;
    assert_eq!(stayed["type"], "LISTING_UPDATED");
    assert!(
        stayed.get("reason").is_none() && stayed.get("rooms").is_none(),
        "{stayed}"
    );
    assert_eq!(both.next_event().await["type"], "LISTING_UPDATED");
    // a record that becomes private leaves its team's rooms
    database
        .execute("update listings set is_private = true")
        .await;
    assert_eq!(to.next_event().await["reason"], "moved");
    assert_eq!(from.everything(database.client()).await.len(), 0);
}

#[tokio::test]
async fn a_transaction_is_one_frame_for_those_who_ask() {
    let (database, relay, mut plain) = listing().await;
    let mut whole = Client::with_transactions(&relay).await;
    whole
        .subscribe(&[format!("listings:{ONE}"), format!("leads:{ONE}")])
        .await;
    database
        .execute(&format!("begin; update listings set city = 'A'; insert into leads (id) values ('{ONE}'); update listings set city = 'B'; commit"))
        .await;
    let frame = whole.next_event().await;
    assert_eq!(frame["type"], "TRANSACTION");
    assert_eq!(
        kinds(frame["events"].as_array().unwrap()),
        ["LISTING_UPDATED", "LEAD_CREATED", "LISTING_UPDATED"]
    );
    assert!(
        frame["events"]
            .as_array()
            .unwrap()
            .iter()
            .all(|event| event["txid"] == frame["txid"])
    );
    assert_eq!(
        kinds(&plain.everything(database.client()).await),
        ["LISTING_UPDATED", "LISTING_UPDATED"]
    );
    // one event alone is no transaction
    database.execute("update listings set city = 'C'").await;
    assert_eq!(whole.next_event().await["type"], "LISTING_UPDATED");
}

#[tokio::test]
async fn nothing_of_a_room_comes_after_unsubscribed() {
    let (database, _relay, mut client) = listing().await;
    let room = format!("listings:{ONE}");
    assert_eq!(
        client.unsubscribe(&[&room, "leads:never"]).await["rooms"],
        json!([room])
    );
    database.execute("update listings set city = 'Reno'").await;
    assert_eq!(client.everything(database.client()).await.len(), 0);
}

#[tokio::test]
async fn any_other_table_can_be_watched_while_the_relay_runs() {
    let (database, relay, _client) = listing().await;
    database
        .execute(
            "create schema sales;
             create table sales.\"Big Deals\" (\"Region\" text, \"No\" bigint, \"Amount\" numeric, primary key (\"Region\", \"No\"));
             create table sales.notes (id bigint primary key, body text);
             create table sales.visits (id bigint, place text, day date, primary key (id, place)) partition by list (place);
             create table sales.visits_a partition of sales.visits for values in ('a');
             create table sales.visits_b partition of sales.visits for values in ('b')",
        )
        .await;
    for arguments in [
        &["watch", "sales.\"Big Deals\"", "--module", "deals"][..],
        &["watch", "sales.notes"],
        &["watch", "sales.visits", "--key", "id"],
    ] {
        let watched = crm_relay(&database.url(), arguments);
        assert!(
            watched.status.success(),
            "{}",
            String::from_utf8_lossy(&watched.stderr)
        );
    }
    // a change of a table that the relay has not heard of makes it look
    database
        .execute("insert into sales.notes values (1, 'new')")
        .await;
    relay.logged("NOTE_CREATED").await;
    let mut client = Client::connect(&relay).await;
    let rooms = ["deals:[\"No\\\"rth\",\"7\"]", "notes:42", "visits:1"];
    let answer = client.subscribe(&rooms).await;
    assert_eq!(answer["rooms"], json!(rooms), "{answer}");
    database
        .execute(
            "insert into sales.\"Big Deals\" values ('No\"rth', 7, 1); insert into sales.notes values (42, 'x');
             insert into sales.visits values (1, 'a', '2026-11-23'); update sales.visits set place = 'b'; update sales.visits set day = '2026-11-24'",
        )
        .await;
    let events = client.everything(database.client()).await;
    assert_eq!(
        kinds(&events),
        [
            "DEAL_CREATED",
            "NOTE_CREATED",
            "VISIT_CREATED",
            "VISIT_UPDATED",
            "VISIT_UPDATED"
        ]
    );
    assert_eq!(events[0]["data"]["Region"], "No\"rth");
    assert_eq!(
        events[3]["data"],
        json!({"place": "b"}),
        "a move between partitions"
    );
    assert_eq!(events[4]["data"], json!({"day": "2026-11-24"}));
}

#[tokio::test]
async fn copy_in_is_seen_like_any_insert() {
    let (database, _relay, mut client) = listing().await;
    client.subscribe(&[format!("leads:{TWO}")]).await;
    let url = database.url();
    let copy = "\\copy leads (id, first_name) from pstdin";
    let mut psql = std::process::Command::new("psql")
        .args(["-q", "-d", &url, "-c", copy])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(
        &mut psql.stdin.take().unwrap(),
        format!("{TWO}\tCara\n").as_bytes(),
    )
    .unwrap();
    assert!(psql.wait().unwrap().success());
    let event = client.next_event().await;
    assert_eq!(
        (&event["type"], &event["data"]["first_name"]),
        (&json!("LEAD_CREATED"), &json!("Cara"))
    );
}

#[tokio::test]
async fn a_field_that_is_edited_again_and_again_is_told_once_in_a_while() {
    let (database, _, _) = listing().await;
    let relay = Relay::with(&database.url(), |command| {
        command.env("RELAY_THROTTLE", "1s");
    })
    .await;
    let mut client = Client::connect(&relay).await;
    let room = format!("listings:{ONE}");
    client.subscribe(&[&room]).await;
    for step in 1..=20 {
        database
            .execute(&format!(
                "update listings set list_price = {step}, version = version + 1"
            ))
            .await;
    }
    let first = client.next_event().await;
    assert_eq!(first["data"], digits(r#"{"list_price":1.00,"version":2}"#));
    assert!(first.get("coalesced").is_none(), "{first}");
    let rest = client.next_event().await;
    assert_eq!(rest["coalesced"], 19);
    assert_eq!(rest["data"], digits(r#"{"list_price":20.00,"version":21}"#));
    assert_eq!(
        rest["previous"],
        digits(r#"{"list_price":1.00,"version":2}"#)
    );
    // a resume from before all of it ends in the same state
    let since = first["cursor"].as_str().unwrap();
    let mut again = Client::connect(&relay).await;
    again.resume(&[&room], since).await;
    let seen = again.everything(database.client()).await;
    assert_eq!(
        seen.last().unwrap()["data"]["list_price"].to_string(),
        "20.00"
    );
}
