//! Who sees what: each way in, tried.

use std::time::Duration;

use crm_relay::answers::TURN;
use crm_relay::inquiries::Inquiries;
use crm_relay::journal::{Journal, Wish};
use crm_relay::policy::Placement;
use crm_relay::postgres;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::harness::{Client, DEADLINE, Database, Relay, crm_relay, now, token, token_of};

/// The id of a person, a team or a record.
fn id(name: &str) -> String {
    let hex: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("00000000-0000-4000-8000-{hex:0>12}")
}

/// SQL in which `{name}` is an id.
fn named(sql: &str) -> String {
    let mut parts = sql.split(['{', '}']);
    let mut text = parts.next().unwrap_or_default().to_owned();
    while let (Some(name), rest) = (parts.next(), parts.next()) {
        text.push_str(&id(name));
        text.push_str(rest.unwrap_or_default());
    }
    text
}

/// Ann and Bea in team T of brokerage B, Cem in team U of brokerage C, Dan who is B's broker, an admin,
/// and who stands out; a record of each kind.
async fn office() -> Database {
    let database = Database::create().await;
    let people = "
        insert into brokers (id, name) values ('{B}', 'B'), ('{C}', 'C');
        insert into teams (id, name) values ('{T}', 'T'), ('{U}', 'U');
        insert into users (id, email, first_name, last_name, role, team_id, broker_id, is_active) values
          ('{ann}', 'ann', '', '', 'agent', '{T}', '{B}', true),
          ('{bea}', 'bea', '', '', 'team_owner', '{T}', '{B}', true),
          ('{cem}', 'cem', '', '', 'agent', '{U}', '{C}', true),
          ('{dan}', 'dan', '', '', 'broker', null, '{B}', true),
          ('{adm}', 'adm', '', '', 'system_admin', null, null, true),
          ('{off}', 'off', '', '', 'agent', '{T}', '{B}', false),
          ('{odd}', 'odd', '', '', 'intern', '{T}', '{B}', true);
        insert into listings (id, owner_id, team_id, list_price) values
          ('{home}', '{bea}', '{T}', 100), ('{away}', '{cem}', '{U}', 100);
        insert into listings (id, owner_id, team_id, is_private) values ('{secret}', '{bea}', '{T}', true);
        insert into listings (id, owner_id, team_id, access_level) values ('{own}', '{bea}', '{T}', 'personal');
        insert into leads (id, owner_id, team_id, is_private) values
          ('{hidden}', '{bea}', '{T}', true), ('{open}', '{bea}', '{T}', false);
        insert into appointments (id, title, agent_id, team_id, lead_id) values
          ('{visit}', 'before', '{bea}', '{T}', '{open}'), ('{tryst}', 'before', '{bea}', '{T}', '{hidden}');";
    database.execute(&named(people)).await;
    database
}

/// An office with a relay that asks for tokens.
async fn guarded() -> (Database, Relay) {
    let database = office().await;
    let relay = Relay::guarded(&database.url(), |_| {}).await;
    (database, relay)
}

async fn client(relay: &Relay, name: &str) -> Client {
    Client::of(relay, &id(name)).await
}

async fn run(database: &Database, sql: &str) {
    database.execute(&named(sql)).await;
}

/// A listing's price, as an event tells it.
fn price(event: &Value) -> Option<f64> {
    event["data"]["list_price"].as_f64()
}

/// The next frame that is no heartbeat.
async fn next(client: &mut Client) -> Value {
    client.next_event().await
}

/// What was denied, by room.
fn denied(answer: &Value) -> Vec<(String, String)> {
    let denied = answer["denied"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let each = denied
        .iter()
        .map(|one| (text(&one["room"]), text(&one["code"])));
    each.collect()
}

/// Rooms that somebody wants, and those of them that they get.
async fn gets(relay: &Relay, name: &str, rooms: &str) -> String {
    let mut client = client(relay, name).await;
    let all: Vec<String> = rooms.split(' ').map(named).collect();
    let answer = client.subscribe(&all).await;
    let got = answer["rooms"].as_array().unwrap();
    for (_, code) in denied(&answer) {
        assert_eq!(code, "forbidden", "{answer}");
    }
    let rooms = rooms.split(' ').zip(&all);
    let got = rooms.filter(|(_, room)| got.contains(&json!(room)));
    got.map(|(room, _)| room).collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn each_gets_the_rooms_that_are_theirs_and_no_other() {
    let (database, relay) = guarded().await;
    let records = "listings:{home} listings:{away} listings:{secret} listings:{own} leads:{hidden} leads:{open} appointments:{visit} appointments:{tryst} leads:{lost}";
    for (name, theirs) in [
        ("ann", "listings:{home} leads:{open} appointments:{visit}"),
        (
            "bea",
            "listings:{home} listings:{secret} listings:{own} leads:{hidden} leads:{open} appointments:{visit} appointments:{tryst}",
        ),
        ("cem", "listings:{away}"),
        ("dan", "listings:{home} leads:{open} appointments:{visit}"),
        (
            "adm",
            "listings:{home} listings:{away} listings:{secret} listings:{own} leads:{hidden} leads:{open} appointments:{visit} appointments:{tryst}",
        ),
        ("off", ""),
        ("odd", ""),
        ("who", ""),
    ] {
        assert_eq!(gets(&relay, name, records).await, theirs, "{name}");
    }
    let scopes = "user:{ann} user:{bea} team:{T} team:{U} team:{T}/leads broker:{B} broker:{C}";
    for (name, theirs) in [
        ("ann", "user:{ann} team:{T} team:{T}/leads"),
        ("cem", "team:{U}"),
        ("dan", "broker:{B}"),
        ("adm", scopes),
        ("off", ""),
        ("who", ""),
    ] {
        assert_eq!(gets(&relay, name, scopes).await, theirs, "{name}");
    }
    // an array of roles, as some CRMs have it: the first counts
    run(&database, "alter table users alter role drop default, alter role type jsonb using to_jsonb(array[role])").await;
    crm_relay(&database.url(), &["install"]);
    assert_eq!(gets(&relay, "dan", scopes).await, "broker:{B}");
    run(
        &database,
        r#"update users set role = '["agent", "system_admin"]' where id = '{cem}'"#,
    )
    .await;
    assert_eq!(gets(&relay, "cem", records).await, "listings:{away}");
}

#[tokio::test]
async fn what_is_no_record_has_no_room_for_anybody() {
    let (database, relay) = guarded().await;
    run(
        &database,
        "insert into contacts (id) values ('{card}');
         insert into clients (id, contact_id, owner_id) values ('{buyer}', '{card}', '{adm}')",
    )
    .await;
    // a row of a module that only decides who sees what, one of another's part, and what is no module
    let rooms = [
        "users:{ann}",
        "contacts:{card}",
        "brokers:{B}",
        "clients",
        "clients:{buyer}",
    ]
    .map(named);
    let mut adm = client(&relay, "adm").await;
    let answer = adm.subscribe(&rooms).await;
    assert_eq!(answer["rooms"], json!(rooms[4..]), "{answer}");
    // nor does the policy grant one to a relay that does not look at its name, today or when it is gone
    let place = postgres::Database::of(&database.url()).unwrap();
    let journal = Journal::open(place.session("test").await.unwrap()).await;
    let journal = journal.unwrap();
    let claims = json!({"id": id("adm")}).to_string();
    for change in [
        "",
        "delete from users where id = '{ann}'; delete from clients; delete from contacts",
    ] {
        run(&database, change).await;
        let wishes = rooms.each_ref().map(|room| Wish {
            claims: &claims,
            room,
            replays: true,
        });
        let (granted, _) = journal.grants(&wishes).await.unwrap();
        assert_eq!(
            granted,
            [false, false, false, false, true],
            "after {change:?}"
        );
    }
}

#[tokio::test]
async fn what_is_not_there_and_what_is_forbidden_look_the_same() {
    let (_database, relay) = guarded().await;
    let mut ann = client(&relay, "ann").await;
    let rooms = [named("listings:{away}"), named("listings:{lost}")];
    let plain = ann.subscribe(&rooms).await;
    let cursor = plain["cursor"].as_str().unwrap().to_owned();
    for answer in [
        plain,
        ann.snapshot(&rooms).await,
        ann.resume(&rooms, &cursor).await,
    ] {
        assert_eq!(answer["rooms"], json!([]));
        let forbidden = rooms.clone().map(|room| (room, "forbidden".to_owned()));
        assert_eq!(denied(&answer), forbidden);
    }
    let pong = ann.ping().await;
    assert_eq!(pong["type"], "pong", "nothing came between: {pong}");
}

#[tokio::test]
async fn without_a_good_token_nothing_is_told() {
    let (_database, relay) = guarded().await;
    let mut forged = token(&id("ann"))
        .split('.')
        .map(str::to_owned)
        .collect::<Vec<_>>();
    forged[0] = "eyJhbGciOiJub25lIn0".to_owned();
    let unsigned = format!("{}.{}.", forged[0], forged[1]);
    let old = token_of(&json!({"id": id("ann"), "exp": now() - 60}));
    let endless = token_of(&json!({"id": id("ann")}));
    for (given, reason) in [
        (None, "missing"),
        (Some(String::new()), "malformed"),
        (Some("x".to_owned()), "malformed"),
        (Some(unsigned), "algorithm"),
        (Some(old), "expired"),
        (Some(endless), "expired"),
        (Some("x".repeat(10_000)), "too_long"),
    ] {
        let mut stranger = Client::silent(&relay).await;
        let mut hello = json!({"type": "hello"});
        if let Some(token) = &given {
            hello["token"] = json!(token);
        }
        stranger.send(hello).await;
        // what comes right behind it is not looked at
        let room = named("listings:{home}");
        stranger
            .send(json!({"type": "subscribe", "id": 1, "rooms": [room]}))
            .await;
        let (code, frames) = stranger.end().await;
        assert_eq!((code, frames), (4401, vec![]), "{reason}");
        relay.logged(&format!("reason=\"{reason}\"")).await;
    }
}

#[tokio::test]
async fn a_token_comes_by_header_or_by_subprotocol_and_never_by_url() {
    let (_database, relay) = guarded().await;
    let ann = token(&id("ann"));
    let ask = |change: &dyn Fn(&mut tokio_tungstenite::tungstenite::http::HeaderMap),
               query: &str| {
        let url = format!("ws://{}/ws{query}", relay.address());
        let mut request = url.into_client_request().unwrap();
        change(request.headers_mut());
        request
    };
    let header = format!("Bearer {ann}");
    let offers = format!("crm-relay.1, crm-relay.bearer.{ann}");
    let by_header = ask(
        &|headers| drop(headers.insert("authorization", header.parse().unwrap())),
        "",
    );
    let by_offer = ask(
        &|headers| drop(headers.insert("sec-websocket-protocol", offers.parse().unwrap())),
        "",
    );
    for (request, selected) in [(by_header, None), (by_offer, Some("crm-relay.1"))] {
        let (mut client, answer) = Client::by(&relay, request).await;
        let protocol = answer.headers().get("sec-websocket-protocol");
        assert_eq!(protocol.map(|value| value.to_str().unwrap()), selected);
        client.send(json!({"type": "hello"})).await;
        let welcome = client.next_frame().await;
        assert_eq!(welcome["userId"], id("ann"));
    }
    for query in [format!("?token={ann}"), format!("?access_token={ann}")] {
        let (mut client, _) = Client::by(&relay, ask(&|_| {}, &query)).await;
        client.send(json!({"type": "hello"})).await;
        assert_eq!(client.end().await, (4401, vec![]));
    }
    let told = relay.logs();
    let secret = ann.rsplit('.').next().unwrap();
    assert!(!told.contains(secret), "a token in the log: {told}");
}

#[tokio::test]
async fn a_token_is_renewed_on_the_open_connection_and_its_end_is_the_connection_s() {
    let (database, relay) = guarded().await;
    // good for two seconds more, by the leeway of five
    let short = |user: &str| token_of(&json!({"id": id(user), "exp": now() - 3}));
    let mut ann = Client::silent(&relay).await;
    ann.send(json!({"type": "hello", "token": short("ann")}))
        .await;
    assert_eq!(next(&mut ann).await["type"], "welcome");
    ann.subscribe(&[named("listings:{home}")]).await;
    assert_eq!(next(&mut ann).await["type"], "token_expiring");
    ann.send(json!({"type": "token", "token": token(&id("ann"))}))
        .await;
    let accepted = next(&mut ann).await;
    assert_eq!(accepted["type"], "token_accepted");
    assert!(accepted["expiresAt"].is_string(), "{accepted}");

    let mut bea = Client::silent(&relay).await;
    bea.send(json!({"type": "hello", "token": short("bea")}))
        .await;
    assert_eq!(next(&mut bea).await["type"], "welcome");
    let (code, frames) = bea.end().await;
    assert_eq!(code, 4401);
    assert_eq!(frames.len(), 1, "{frames:?}");
    assert_eq!(frames[0]["type"], "token_expiring");

    // Ann's own end is over by now: the fresh token counts
    run(
        &database,
        "update listings set list_price = 7 where id = '{home}'",
    )
    .await;
    assert_eq!(next(&mut ann).await["data"]["list_price"], 7.0);
    ann.send(json!({"type": "token", "token": token(&id("bea"))}))
        .await;
    assert_eq!(ann.end().await, (4403, vec![]), "another user's token");
    let mut cem = client(&relay, "cem").await;
    cem.send(json!({"type": "token", "token": "x"})).await;
    assert_eq!(cem.end().await, (4401, vec![]), "a bad one");
}

#[tokio::test]
async fn who_loses_a_record_gets_revoked_and_nothing_of_what_it_became() {
    let (database, relay) = guarded().await;
    let mut ann = client(&relay, "ann").await;
    let mut bea = client(&relay, "bea").await;
    let mut cem = client(&relay, "cem").await;
    let mut dan = client(&relay, "dan").await;
    let room = named("listings:{home}");
    ann.subscribe(&[room.as_str(), &named("team:{T}")]).await;
    bea.subscribe(&[&room]).await;
    cem.subscribe(&[named("team:{U}")]).await;
    dan.subscribe(&[room.as_str(), &named("broker:{B}")]).await;
    run(&database, "update listings set team_id = '{U}', owner_id = '{cem}', list_price = 31415926 where id = '{home}'").await;
    for client in [&mut ann, &mut dan] {
        let left = next(client).await;
        assert_eq!(
            (&left["action"], &left["reason"]),
            (&json!("deleted"), &json!("moved"))
        );
        assert_eq!(left["data"], json!({"id": id("home")}));
        let revoked = next(client).await;
        assert_eq!(
            revoked,
            json!({"type": "revoked", "rooms": [room], "reason": "access_lost"})
        );
    }
    assert_eq!(
        next(&mut bea).await["type"],
        "revoked",
        "not even who owned it"
    );
    let entered = next(&mut cem).await;
    assert_eq!(
        (&entered["action"], &entered["reason"]),
        (&json!("created"), &json!("moved"))
    );
    assert_eq!(entered["data"]["list_price"], 31415926.0);
    // and nothing that happens to it from then on
    run(
        &database,
        "update listings set list_price = 31415928 where id = '{home}'",
    )
    .await;
    for client in [&mut ann, &mut bea, &mut dan] {
        let seen = client.everything(database.client()).await;
        let told = serde_json::to_string(&seen).unwrap();
        assert!(
            !told.contains(&id("home")) && !told.contains("3141592"),
            "{told}"
        );
    }
    // nor can it be had back
    assert_eq!(denied(&ann.subscribe(&[&room]).await).len(), 1);
}

#[tokio::test]
async fn a_record_that_becomes_private_is_its_owner_s_alone() {
    let (database, relay) = guarded().await;
    let mut ann = client(&relay, "ann").await;
    let mut bea = client(&relay, "bea").await;
    let room = named("listings:{home}");
    ann.subscribe(&[named("team:{T}/listings")]).await;
    bea.subscribe(&[room.as_str(), &named("team:{T}")]).await;
    for set in [
        "is_private = true",
        "access_level = 'personal', is_private = false",
    ] {
        run(
            &database,
            &format!(
                "update listings set {set}, list_price = list_price + 1 where id = '{{home}}'"
            ),
        )
        .await;
        assert_eq!(next(&mut bea).await["action"], "updated", "{set}");
    }
    run(
        &database,
        "update listings set access_level = 'team' where id = '{home}'",
    )
    .await;
    let told = [next(&mut ann).await, next(&mut ann).await];
    assert_eq!(
        (&told[0]["action"], &told[0]["data"]),
        (&json!("deleted"), &json!({"id": id("home")}))
    );
    assert_eq!(told[1]["action"], "created");
    assert_eq!(told[1]["data"]["list_price"], 102.0);
}

#[tokio::test]
async fn a_private_lead_takes_its_appointments_with_it() {
    let (database, relay) = guarded().await;
    let mut ann = client(&relay, "ann").await;
    let mut bea = client(&relay, "bea").await;
    let rooms = [
        named("appointments:{visit}"),
        named("team:{T}/appointments"),
    ];
    ann.subscribe(&rooms).await;
    bea.subscribe(&rooms).await;
    // in one transaction, the appointment first and last
    run(
        &database,
        "begin;
         update appointments set title = 'between' where id = '{visit}';
         update leads set is_private = true where id = '{open}';
         update appointments set title = 'after' where id = '{visit}';
         commit",
    )
    .await;
    let mut told = Vec::new();
    while told.len() < 2 {
        told.push(next(&mut ann).await);
    }
    told.extend(ann.everything(database.client()).await);
    let text = serde_json::to_string(&told).unwrap();
    assert!(
        !text.contains("between") && !text.contains("after"),
        "{text}"
    );
    let is = |kind: &str| told.iter().any(|frame| frame["type"] == kind);
    assert!(is("revoked") && is("resync"), "{text}");
    let seen = bea.everything(database.client()).await;
    let titles: Vec<_> = seen
        .iter()
        .filter_map(|event| event["data"]["title"].as_str())
        .collect();
    assert_eq!(titles, ["between", "after"], "its owner sees all of it");

    // the lead's owner changes: the new one sees the appointment, which is another's
    run(
        &database,
        "update leads set owner_id = '{ann}' where id = '{open}'",
    )
    .await;
    let got = ann.snapshot(&[&rooms[0]]).await;
    assert_eq!(got["rooms"], json!([rooms[0]]), "{got}");
}

#[tokio::test]
async fn what_changes_about_a_user_changes_what_they_see_at_once() {
    let (database, relay) = guarded().await;
    let mut ann = client(&relay, "ann").await;
    let home = named("listings:{home}");
    let away = named("listings:{away}");
    ann.subscribe(&[home.as_str(), &named("user:{ann}"), &named("team:{T}")])
        .await;
    run(
        &database,
        "update users set last_login_at = now(), email = 'x' where id = '{ann}'",
    )
    .await;
    run(
        &database,
        "update users set team_id = '{U}' where id = '{ann}'",
    )
    .await;
    run(
        &database,
        "update listings set list_price = 31415926 where id = '{home}'",
    )
    .await;
    // the team's other members fetch anew, and so does who is still taken for one
    let changed = |room: &str| json!([{"room": named(room), "reason": "access_changed"}]);
    assert_eq!(next(&mut ann).await["rooms"], changed("team:{T}"));
    // what she lost: by the review, or by the listing's change where that is judged first
    let mut lost = Vec::new();
    let last = loop {
        let frame = next(&mut ann).await;
        if frame["type"] != "revoked" {
            break frame;
        }
        lost.extend(frame["rooms"].as_array().unwrap().clone());
    };
    assert_eq!(lost, [json!(home), json!(named("team:{T}"))]);
    assert_eq!(last["rooms"], changed("user:{ann}"));
    assert_eq!(ann.subscribe(&[&away, &home]).await["rooms"], json!([away]));
    run(
        &database,
        "update users set role = 'system_admin' where id = '{ann}'",
    )
    .await;
    assert_eq!(next(&mut ann).await["type"], "resync");
    assert_eq!(ann.subscribe(&[&home]).await["rooms"], json!([home]));
    run(
        &database,
        "update users set is_active = false where id = '{ann}'",
    )
    .await;
    let gone = next(&mut ann).await;
    assert_eq!(gone["rooms"].as_array().unwrap().len(), 3, "{gone}");
    run(&database, "update listings set list_price = 31415928").await;
    assert_eq!(ann.ping().await["type"], "pong");
    assert_eq!(denied(&ann.subscribe(&[&home]).await).len(), 1);
    let journaled = database
        .value("select string_agg(distinct old_image::text || new_image, '') from crm_relay.change where module = 'users'")
        .await;
    assert!(
        !journaled.contains("email") && !journaled.contains("login"),
        "{journaled}"
    );
}

#[tokio::test]
async fn a_record_s_owner_who_changes_brokerage_takes_it_along() {
    let (database, relay) = guarded().await;
    let mut dan = client(&relay, "dan").await;
    let home = named("listings:{home}");
    dan.subscribe(&[home.as_str(), &named("broker:{B}")]).await;
    run(
        &database,
        "update users set broker_id = '{C}' where id = '{bea}'",
    )
    .await;
    run(
        &database,
        "update listings set list_price = 31415926 where id = '{home}'",
    )
    .await;
    let seen = dan.everything(database.client()).await;
    let text = serde_json::to_string(&seen).unwrap();
    assert!(!text.contains("3141592"), "{text}");
    let is = |kind: &str| seen.iter().any(|frame| frame["type"] == kind);
    assert!(is("revoked") && is("resync"), "{text}");
}

#[tokio::test]
async fn whoever_throws_out_somebody_whom_nobody_knows_is_told() {
    let database = office().await;
    let said = |user: &str| {
        let disconnect = format!("select crm_relay.disconnect('{user}')");
        let told = std::process::Command::new("psql")
            .args(["-d", &database.url(), "-c", &disconnect])
            .output()
            .unwrap();
        String::from_utf8(told.stderr).unwrap()
    };
    let unknown = said("ann@crm.example");
    assert!(
        unknown.contains(
            "no user ann@crm.example in the table users; their tokens are refused all the same"
        ),
        "{unknown}"
    );
    assert!(said(&id("zoe")).contains("no user"));
    assert_eq!(said(&id("ann").to_uppercase()), "");
    // who is not active is known
    assert_eq!(said(&id("off")), "");
}

#[tokio::test]
async fn whom_an_administrator_throws_out_is_out_everywhere_and_stays_out() {
    let (database, relay) = guarded().await;
    let other = Relay::guarded(&database.url(), |_| {}).await;
    let mut here = client(&relay, "ann").await;
    let mut there = client(&other, "ann").await;
    let mut bea = client(&relay, "bea").await;
    bea.subscribe(&[named("listings:{home}")]).await;
    let before = token(&id("ann"));
    // anybody may notify: it commands nothing
    run(
        &database,
        r#"notify crm_relay, '{"txid":"1","module":"crm_relay","user":"{ann}"}'"#
            .replace("{ann}", &id("ann"))
            .as_str(),
    )
    .await;
    assert_eq!(here.ping().await["type"], "pong");
    // nor may just anybody do it
    let refused = database
        .client()
        .batch_execute(&named(
            "set role crm_relay_serve; select crm_relay.disconnect('{ann}')",
        ))
        .await;
    assert!(refused.is_err());
    run(
        &database,
        "reset role; set role crm_relay_audit; select crm_relay.disconnect(upper('{ann}')); reset role",
    )
    .await;
    let began = std::time::Instant::now();
    assert_eq!(here.end().await, (4403, vec![]));
    assert_eq!(there.end().await, (4403, vec![]));
    assert!(
        began.elapsed().as_secs_f64() < 1.0 * 10.0,
        "within a second on a quiet machine"
    );
    let fresh = token_of(&json!({"id": id("ann"), "iat": now() + 2, "exp": now() + 900}));
    let silent = token_of(&json!({"id": id("ann"), "exp": now() + 900}));
    let late = Relay::guarded(&database.url(), |_| {}).await;
    for relay in [&relay, &other, &late] {
        for (token, comes_in) in [(&before, false), (&silent, false), (&fresh, true)] {
            let mut again = Client::silent(relay).await;
            again.send(json!({"type": "hello", "token": token})).await;
            if comes_in {
                assert_eq!(again.next_frame().await["type"], "welcome");
            } else {
                assert_eq!(again.end().await, (4403, vec![]));
            }
        }
    }
    run(
        &database,
        "update listings set list_price = 7 where id = '{home}'",
    )
    .await;
    assert_eq!(
        next(&mut bea).await["data"]["list_price"],
        7.0,
        "the others stay"
    );
}

#[tokio::test]
async fn what_a_throttle_held_back_is_judged_again_when_it_is_sent() {
    let database = office().await;
    let relay = Relay::guarded(&database.url(), |command| {
        command.env("RELAY_THROTTLE", "1s");
    })
    .await;
    let mut ann = client(&relay, "ann").await;
    let mut bea = client(&relay, "bea").await;
    let room = named("listings:{home}");
    ann.subscribe(&[&room]).await;
    bea.subscribe(&[&room]).await;
    for price in [7, 31415926] {
        run(
            &database,
            &format!("update listings set list_price = {price} where id = '{{home}}'"),
        )
        .await;
    }
    assert_eq!(next(&mut ann).await["data"]["list_price"], 7.0);
    run(
        &database,
        "update users set team_id = '{U}' where id = '{ann}'",
    )
    .await;
    assert_eq!(next(&mut ann).await["type"], "revoked");
    for price in [7.0, 31415926.0] {
        assert_eq!(next(&mut bea).await["data"]["list_price"], price);
    }
    assert_eq!(ann.everything(database.client()).await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_token_that_ends_while_an_update_is_held_back_ends_without_it() {
    let database = office().await;
    let relay = Relay::guarded(&database.url(), |command| {
        command.env("RELAY_THROTTLE", "4s");
    })
    .await;
    let mut ann = Client::silent(&relay).await;
    let short = token_of(&json!({"id": id("ann"), "exp": now() - 3}));
    ann.send(json!({"type": "hello", "token": short})).await;
    let mut bea = client(&relay, "bea").await;
    let room = named("listings:{home}");
    ann.subscribe(&[&room]).await;
    bea.subscribe(&[&room]).await;
    for price in [7, 31415926] {
        run(
            &database,
            &format!("update listings set list_price = {price} where id = '{{home}}'"),
        )
        .await;
    }
    let (code, frames) = ann.end().await;
    assert_eq!(code, 4401);
    let told = serde_json::to_string(&frames).unwrap();
    assert!(told.contains("7.0") && !told.contains("3141592"), "{told}");
    for price in [7.0, 31415926.0] {
        assert_eq!(next(&mut bea).await["data"]["list_price"], price);
    }
}

/// A client's cursor now, after all that was committed.
async fn cursor(client: &mut Client, database: &Database) -> String {
    client.everything(database.client()).await;
    client.ping().await["cursor"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_replay_tells_nothing_of_a_time_when_the_record_was_private() {
    // from the memory of a relay, and from the journal by another one
    for recent in ["1000000", "1"] {
        let database = office().await;
        let relay = Relay::guarded(&database.url(), |command| {
            command.env("RELAY_RECENT_BYTES", recent);
        })
        .await;
        let mut ann = client(&relay, "ann").await;
        let since = cursor(&mut ann, &database).await;
        for set in [
            "list_price = 1",
            "is_private = true, list_price = 31415926",
            "list_price = 31415927",
            "is_private = false, list_price = 2",
            "list_price = 3",
        ] {
            run(
                &database,
                &format!("update listings set {set} where id = '{{home}}'"),
            )
            .await;
        }
        // the relay has read it all
        cursor(&mut ann, &database).await;
        let rooms = [named("listings:{home}"), named("team:{T}/listings")];
        let answer = ann.resume(&rooms, &since).await;
        assert_eq!(answer["resync"], Value::Null, "{answer}");
        let told = ann.everything(database.client()).await;
        let text = serde_json::to_string(&told).unwrap();
        assert!(!text.contains("3141592"), "{recent}: {text}");
        let prices: Vec<_> = told
            .iter()
            .map(|event| (event["action"].as_str(), price(event)))
            .collect();
        let expected = [
            (Some("updated"), Some(1.0)),
            (Some("deleted"), None),
            (Some("created"), Some(2.0)),
            (Some("updated"), Some(3.0)),
        ];
        assert_eq!(prices, expected, "{recent}: {text}");
    }
}

#[tokio::test]
async fn somebody_else_s_cursor_and_one_from_before_one_s_access_open_nothing() {
    let (database, relay) = guarded().await;
    let mut cem = client(&relay, "cem").await;
    let mut ann = client(&relay, "ann").await;
    let since = cursor(&mut ann, &database).await;
    run(
        &database,
        "update listings set list_price = 31415926 where id = '{home}'",
    )
    .await;
    run(
        &database,
        "update listings set list_price = 27182818 where id = '{away}'",
    )
    .await;
    run(&database, "update listings set team_id = '{T}', owner_id = '{ann}', list_price = 5 where id = '{away}'").await;
    run(
        &database,
        "update listings set list_price = 6 where id = '{away}'",
    )
    .await;
    let rooms = [
        named("listings:{home}"),
        named("team:{T}"),
        named("team:{U}/listings"),
    ];
    let answer = cem.resume(&rooms, &since).await;
    assert_eq!(answer["rooms"], json!([rooms[2]]), "{answer}");
    let told = serde_json::to_string(&cem.everything(database.client()).await).unwrap();
    assert!(
        told.contains("27182818") && !told.contains("3141592"),
        "{told}"
    );
    // Ann's team got it only lately
    let answer = ann.resume(&[named("listings:{away}")], &since).await;
    assert_eq!(denied(&answer), vec![]);
    let told = ann.everything(database.client()).await;
    let prices: Vec<_> = told.iter().map(price).collect();
    assert_eq!(prices, [Some(5.0), Some(6.0)], "{told:?}");
    assert_eq!(told[0]["previous"], Value::Null, "{told:?}");
}

#[tokio::test]
async fn a_deleted_record_is_told_to_its_end_to_those_who_saw_it() {
    let (database, relay) = guarded().await;
    let mut ann = client(&relay, "ann").await;
    let mut cem = client(&relay, "cem").await;
    let room = named("listings:{home}");
    ann.subscribe(&[&room]).await;
    let since = cursor(&mut ann, &database).await;
    run(&database, "delete from listings where id = '{home}'").await;
    assert_eq!(next(&mut ann).await["action"], "deleted");
    let mut back = client(&relay, "ann").await;
    assert_eq!(back.resume(&[&room], &since).await["rooms"], json!([room]));
    assert_eq!(next(&mut back).await["action"], "deleted");
    assert_eq!(
        denied(&back.subscribe(&[named("listings:{home}")]).await).len(),
        1,
        "it is not there"
    );
    assert_eq!(denied(&cem.resume(&[&room], &since).await).len(), 1);
}

#[tokio::test]
async fn rules_of_the_crm_s_owner_count_and_outlast_an_upgrade() {
    let (database, relay) = guarded().await;
    run(
        &database,
        "create or replace function crm_relay.may_see_row(principal jsonb, module text, image json) returns boolean
           language sql stable as 'select module = ''leads'' and crm_relay.usual_may_see_row(principal, module, image)'",
    )
    .await;
    let rooms = "listings:{home} leads:{open}";
    assert_eq!(gets(&relay, "ann", rooms).await, "leads:{open}");
    let again = crm_relay(&database.url(), &["install"]);
    assert!(again.status.success());
    assert_eq!(gets(&relay, "ann", rooms).await, "leads:{open}");
    // one that raises opens nothing, and stops nobody
    let mut bea = client(&relay, "bea").await;
    bea.subscribe(&[named("leads:{open}")]).await;
    run(
        &database,
        "create or replace function crm_relay.may_see_row(principal jsonb, module text, image json) returns boolean
           language plpgsql stable as $$ begin if principal ->> 'user' = '{ann}' then raise 'no'; end if; return true; end $$",
    )
    .await;
    assert_eq!(gets(&relay, "ann", rooms).await, "");
    run(
        &database,
        "update leads set notes = 'x' where id = '{open}'",
    )
    .await;
    assert_eq!(next(&mut bea).await["data"]["notes"], "x");
}

/// Moves the clock, and lets it go on from there.
async fn after(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn where_a_record_is_counts_for_a_while_and_is_asked_again_beside() {
    let database = office().await;
    let place = postgres::Database::of(&database.url()).unwrap();
    let journal = Journal::open(place.session("test").await.unwrap()).await;
    let journal = journal.unwrap();
    let registry = journal.registry().await.unwrap();
    let present = journal.present().await.unwrap();
    run(
        &database,
        "update listings set list_price = 1 where id = '{home}'",
    )
    .await;
    let mut batch = journal.read(&present).await.unwrap();
    let change = batch.next().await.unwrap().unwrap();
    let placement = Placement::new(Inquiries::new(place, "placement", 2));
    let placed = async || {
        let mut changes = [change.clone()];
        placement.place(&mut changes, &registry).await.unwrap();
        let [change] = changes;
        assert_eq!(change.before, change.after);
        change.after.unwrap()
    };
    let rule = async |rooms: &str| {
        let rooms = format!(
            "create or replace function crm_relay.rooms_of(module text, image json) returns text[]
               language sql stable as $$ select '{rooms}'::text[] $$"
        );
        database.execute(&rooms).await;
    };
    rule("{team:1}").await;
    let first = placed().await;
    assert_eq!(first.scopes[..], ["team:1", "team:1/listings"]);
    let mut known = first;
    for rooms in ["team:2", "team:4"] {
        // it has not to be waited for
        rule(&format!("{{{rooms}}}")).await;
        after(TURN).await;
        assert_eq!(placed().await.number, known.number);
        // and then another
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while placed().await.scopes[0] != rooms {
            let is_late = tokio::time::Instant::now() >= deadline;
            assert!(!is_late, "nobody asked again where it is");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let before = std::mem::replace(&mut known, placed().await);
        assert_ne!(known.number, before.number);
    }
    // what was not needed for long is asked before it is told
    rule("{team:3}").await;
    after(TURN * 2).await;
    assert_eq!(placed().await.scopes[0], "team:3");
}

#[tokio::test]
async fn no_text_of_a_client_is_ever_sql() {
    let (database, relay) = guarded().await;
    let evil = [
        "' or true --",
        "'; drop table leads; --",
        "\\'; drop table leads; --",
        "$1",
        "\u{0}",
        "%s",
        "{\"a\":1}",
        "\u{202e}\u{1f600}",
    ];
    let mut adm = client(&relay, "adm").await;
    run(
        &database,
        "create table notes (id text primary key, body text)",
    )
    .await;
    let watched = crm_relay(&database.url(), &["watch", "notes"]);
    assert!(watched.status.success());
    for text in evil {
        let rooms = [
            format!("notes:{text}"),
            format!("team:{text}"),
            format!("user:{text}/leads"),
            format!("{text}:1"),
        ];
        for room in rooms {
            let answer = adm.subscribe(&[&room]).await;
            assert_eq!(answer["type"], "subscribed", "{answer}");
        }
        for claims in [
            json!({"id": text, "exp": now() + 60}),
            json!({"id": id("ann"), "exp": now() + 60, "role": text, text: text, "team_id": {"x": [text]}}),
        ] {
            let mut client = Client::silent(&relay).await;
            client
                .send(json!({"type": "hello", "token": token_of(&claims)}))
                .await;
            client
                .send(json!({"type": "subscribe", "id": 1, "rooms": [named("listings:{away}")]}))
                .await;
            let first = client.next_or_end().await;
            if first
                .as_ref()
                .is_some_and(|frame| frame["type"] == "welcome")
            {
                let answer = next(&mut client).await;
                assert_eq!(answer["rooms"], json!([]), "{claims}: {answer}");
            }
        }
    }
    assert_eq!(database.value("select count(*) from leads").await, "2");
    let mut ann = client(&relay, "ann").await;
    ann.subscribe(&[named("listings:{home}")]).await;
    run(
        &database,
        "update listings set list_price = 7 where id = '{home}'",
    )
    .await;
    assert_eq!(next(&mut ann).await["data"]["list_price"], 7.0);
}

#[tokio::test]
async fn while_postgres_is_away_nobody_gets_what_nobody_could_grant() {
    let cluster = crate::harness::Cluster::start().await;
    let url = cluster.url();
    let session = crate::harness::connect(&url).await;
    session
        .batch_execute(&named(
            "insert into users (id, email, first_name, last_name, role) values ('{ann}', '', '', '', 'agent');
             insert into leads (id, owner_id) values ('{open}', '{ann}'), ('{hidden}', null)",
        ))
        .await
        .unwrap();
    let relay = Relay::guarded(&url, |_| {}).await;
    cluster.crash();
    let mut ann = client(&relay, "ann").await;
    let rooms = [named("leads:{open}"), named("leads:{hidden}")];
    ann.send(json!({"type": "subscribe", "id": 1, "rooms": rooms}))
        .await;
    relay.logged("a subscription waits").await;
    cluster.start_again();
    let answer = next(&mut ann).await;
    assert_eq!(answer["rooms"], json!([rooms[0]]), "{answer}");
}

#[tokio::test]
async fn records_that_depend_on_others_and_cannot_be_looked_up_stop_nobody() {
    let (database, relay) = guarded().await;
    let mut bea = client(&relay, "bea").await;
    let mut ann = client(&relay, "ann").await;
    bea.subscribe(&[named("leads:{open}")]).await;
    ann.subscribe(&[named("appointments:{visit}")]).await;
    run(
        &database,
        "alter table appointments rename lead_id to about;
         update leads set is_private = true where id = '{open}';
         update appointments set title = 'after' where id = '{visit}'",
    )
    .await;
    assert_eq!(next(&mut bea).await["data"]["is_private"], true);
    // nothing of it, but that there is something
    let told = next(&mut ann).await;
    assert_eq!(told["rooms"][0]["reason"], "truncated", "{told}");
    assert!(!relay.logs().contains("not reading the journal"));
}

#[tokio::test]
async fn a_column_that_is_renamed_opens_nothing_and_is_named() {
    let (database, relay) = guarded().await;
    let mut ann = client(&relay, "ann").await;
    ann.subscribe(&[named("team:{T}/listings")]).await;
    run(
        &database,
        "alter table listings rename is_private to is_closed",
    )
    .await;
    run(
        &database,
        "update listings set list_price = 31415926 where id = '{secret}'",
    )
    .await;
    assert_eq!(next(&mut ann).await["rooms"][0]["reason"], "truncated");
    relay.logged("the table lacks columns").await;
    assert_eq!(gets(&relay, "bea", "listings:{secret}").await, "");
    // which column decides now, somebody must say
    for arguments in [&["watch", "listings"][..], &["install"]] {
        let refused = crm_relay(&database.url(), arguments);
        assert_eq!(refused.status.code(), Some(1));
        let told = String::from_utf8_lossy(&refused.stderr);
        assert!(
            told.contains("is_private") && told.contains("renamed"),
            "{told}"
        );
    }
    for (is, was) in [("is_closed", "is_closed"), ("is_private", "is_closed")] {
        run(&database, &format!(
            "alter table listings rename {was} to passing; alter table listings rename passing to {is};
             select crm_relay.watch('listings', access_columns => array['owner_id', 'team_id', '{is}'])"
        ))
        .await;
    }
    run(
        &database,
        "update listings set list_price = 31415926 where id = '{secret}'",
    )
    .await;
    run(
        &database,
        "update listings set list_price = 5 where id = '{home}'",
    )
    .await;
    let told = ann.everything(database.client()).await;
    let prices: Vec<_> = told.iter().filter_map(price).collect();
    assert_eq!(prices, [5.0], "{told:?}");
}

/// Rooms, and what somebody is told who resumes them: from memory, from the journal, and from what it has of their
/// records after very many changes.
async fn resumes(name: &str, steps: &[&str], rooms: &[&str]) -> String {
    let mut all = String::new();
    for (recent, others) in [("1000000", 0), ("1", 0), ("1", 10_001)] {
        let database = office().await;
        let relay = Relay::guarded(&database.url(), |command| {
            command.env("RELAY_RECENT_BYTES", recent);
        })
        .await;
        let since = cursor(&mut client(&relay, name).await, &database).await;
        for step in steps {
            run(&database, step).await;
        }
        let others =
            format!("insert into listings (list_price) select generate_series(1, {others})");
        run(&database, &others).await;
        cursor(&mut client(&relay, name).await, &database).await;
        for room in rooms {
            let mut back = client(&relay, name).await;
            let answer = back.resume(&[named(room)], &since).await;
            let told = back.everything(database.client()).await;
            all.push_str(&format!("{recent} {room}: {answer} {told:?}\n"));
        }
    }
    all
}

#[tokio::test]
async fn a_replay_tells_nothing_of_an_appointment_while_its_lead_was_private() {
    let steps = [
        "update leads set is_private = true where id = '{open}'",
        "update appointments set title = 'S3CRET' where id = '{visit}'",
        "update appointments set title = 'harmless' where id = '{visit}'",
        "update leads set is_private = false where id = '{open}'",
    ];
    let rooms = ["appointments:{visit}", "team:{T}/appointments", "team:{T}"];
    let told = resumes("ann", &steps, &rooms).await;
    assert!(!told.contains("S3CRET"), "{told}");
    assert_eq!(told.matches("access_changed").count(), 6, "{told}");
}

#[tokio::test]
async fn a_cursor_from_before_one_s_own_access_opens_nothing_of_that_time() {
    let steps = [
        "update listings set list_price = 31415926 where id = '{home}'",
        "update listings set list_price = 5 where id = '{home}'",
        "update users set team_id = '{T}' where id = '{cem}'",
        "update listings set list_price = 6 where id = '{home}'",
    ];
    let told = resumes("cem", &steps, &["listings:{home}"]).await;
    assert!(!told.contains("31415926"), "{told}");
    assert_eq!(told.matches("access_changed").count(), 3, "{told}");
}

#[tokio::test]
async fn what_was_held_back_while_a_lead_was_private_is_not_told_when_it_no_longer_is() {
    let database = office().await;
    let relay = Relay::guarded(&database.url(), |command| {
        command.env("RELAY_THROTTLE", "2s");
    })
    .await;
    let mut ann = client(&relay, "ann").await;
    ann.everything(database.client()).await;
    for sql in [
        "update appointments set title = 'S3CRET' where id = '{tryst}'",
        "update appointments set title = 'harmless' where id = '{tryst}'",
        "update leads set is_private = false where id = '{hidden}'",
    ] {
        run(&database, sql).await;
    }
    let answer = ann.subscribe(&[named("appointments:{tryst}")]).await;
    assert_eq!(denied(&answer), vec![]);
    // held back for as long as anything would be
    run(&database, "update appointments set title = 'one' where id = '{tryst}'; update appointments set title = 'two' where id = '{tryst}'").await;
    let mut told = vec![next(&mut ann).await];
    while told.last().unwrap()["data"]["title"] != "two" {
        told.push(next(&mut ann).await);
    }
    assert!(!format!("{told:?}").contains("S3CRET"), "{told:?}");
}

#[tokio::test]
async fn a_column_that_is_hidden_from_now_on_is_told_of_no_time() {
    let database = office().await;
    let relay = Relay::guarded(&database.url(), |_| {}).await;
    let mut ann = client(&relay, "ann").await;
    let since = cursor(&mut ann, &database).await;
    ann.subscribe(&[named("listings:{home}")]).await;
    run(
        &database,
        "update listings set description = 'S3CRET', list_price = 1 where id = '{home}'",
    )
    .await;
    assert_eq!(next(&mut ann).await["data"]["description"], "S3CRET");
    let hide = "select crm_relay.watch('listings', hidden_columns => array['description'])";
    run(&database, hide).await;
    // also of what this relay remembers
    let anew = json!([{"room": named("listings:{home}"), "reason": "epoch_changed"}]);
    assert_eq!(next(&mut ann).await["rooms"], anew);
    run(
        &database,
        "update listings set list_price = 6 where id = '{home}'",
    )
    .await;
    assert_eq!(price(&next(&mut ann).await), Some(6.0));
    let other = Relay::guarded(&database.url(), |_| {}).await;
    for relay in [&relay, &other] {
        let mut back = client(relay, "ann").await;
        let answer = back.resume(&[named("listings:{home}")], &since).await;
        assert_eq!(answer["resync"], anew, "{answer}");
    }
    let secret = "select count(*) from crm_relay.change c where c::text like '%S3CRET%'";
    assert_eq!(database.value(secret).await, "0");
    let kept =
        "select count(*) from crm_relay.audit where field = 'list_price' and action = 'updated'";
    assert_eq!(database.value(kept).await, "2");
}

#[tokio::test]
async fn a_bulk_is_asked_about_as_a_whole_and_not_record_by_record() {
    let database = office().await;
    // the server counts calls, from the next session on
    let count = format!(
        "alter database \"{}\" set track_functions = 'all'",
        database.name()
    );
    run(&database, &count).await;
    let relay = Relay::guarded(&database.url(), |_| {}).await;
    let mut bea = client(&relay, "bea").await;
    bea.subscribe(&[named("leads:{open}")]).await;
    let import = "insert into leads (id, owner_id, team_id)
        select md5(i::text)::uuid, '{bea}', '{T}' from generate_series(1, 1500) i";
    let visits = "insert into appointments (id, title, agent_id, team_id, lead_id)
        select md5(i::text)::uuid, 'x', '{bea}', '{T}', md5(i::text)::uuid from generate_series(1, 1500) i";
    for sql in [
        visits,
        import,
        "update leads set is_private = true where id <> '{hidden}'",
    ] {
        run(&database, sql).await;
    }
    assert_eq!(next(&mut bea).await["data"]["is_private"], true);
    let calls =
        "select coalesce(sum(calls), 0)::bigint from pg_stat_user_functions where funcname = $1";
    let calls_of = async |function: &str| -> i64 {
        let row = database.client().query_one(calls, &[&function]).await;
        row.unwrap().get(0)
    };
    // told when the session has rested for a moment; once it was asked about the office itself
    let told = async { while calls_of("heirs_of").await < 5 {} };
    let told = timeout(DEADLINE, told).await;
    assert!(told.is_ok(), "asked {} times", calls_of("heirs_of").await);
    let calls = calls_of("heirs_of").await;
    assert_eq!(calls, 5, "of twice 1500 leads, a thousand at a time");
    let placed = calls_of("placed").await;
    assert!(
        placed < 1600,
        "rooms of 1500 appointments and of few kinds of leads: {placed}"
    );
}

#[tokio::test]
async fn who_asks_for_much_keeps_nobody_else_waiting() {
    let database = office().await;
    // a policy that takes as long as the test likes
    run(
        &database,
        "create or replace function crm_relay.may_enter(principal jsonb, room text) returns boolean language plpgsql stable
           as 'begin perform pg_advisory_lock_shared(4711); return false; end'",
    )
    .await;
    let slow = database.connect().await;
    slow.batch_execute("select pg_advisory_lock(4711)")
        .await
        .unwrap();
    let asking = "select count(*)::text from pg_stat_activity
                   where wait_event = 'advisory' and datname = current_database()";
    let relay = Relay::guarded(&database.url(), |_| {}).await;
    let mut ann = client(&relay, "ann").await;
    ann.subscribe(&[named("listings:{home}")]).await;
    let mut greedy = Vec::new();
    for (name, at_most) in [("cem", "1"), ("dan", "2"), ("odd", "3"), ("adm", "4")] {
        for _ in 0..6 {
            let mut one = client(&relay, name).await;
            one.send(json!({"type": "subscribe", "id": 1, "rooms": [named("team:{T}")]}))
                .await;
            greedy.push(one);
        }
        let ask = async { while database.value(asking).await != at_most {} };
        let ask = timeout(DEADLINE, ask).await;
        assert!(
            ask.is_ok(),
            "{} and not {at_most}",
            database.value(asking).await
        );
        if name != "adm" {
            let mut bea = client(&relay, "bea").await;
            let answer = bea.subscribe(&[named("listings:{home}")]).await;
            assert_eq!(answer["rooms"], json!([named("listings:{home}")]));
        }
    }
    // all who are asked about subscriptions are busy: what is to be told is judged by others
    run(
        &database,
        "update listings set list_price = 5, owner_id = '{ann}' where id = '{home}'",
    )
    .await;
    assert_eq!(price(&next(&mut ann).await), Some(5.0));
    let told = relay.logs();
    assert!(
        !told.contains("a subscription waits"),
        "it took as long as an answer may: {told}"
    );
    slow.batch_execute("select pg_advisory_unlock(4711)")
        .await
        .unwrap();
}

#[tokio::test]
async fn nobody_is_asked_about_more_rooms_than_a_connection_may_have() {
    let database = office().await;
    let relay = Relay::guarded(&database.url(), |command| {
        command.env("RELAY_MAX_ROOMS", "2");
    })
    .await;
    let mut ann = client(&relay, "ann").await;
    let rooms =
        ["{secret}", "{away}", "{home}", "{own}"].map(|id| named(&format!("listings:{id}")));
    let answer = ann.subscribe(&rooms).await;
    let codes: Vec<String> = denied(&answer).into_iter().map(|(_, code)| code).collect();
    let [forbidden, too_many] = ["forbidden", "too_many_rooms"];
    assert_eq!(codes, [too_many, too_many, forbidden, forbidden]);
    let answer = ann.subscribe(&rooms[2..]).await;
    assert_eq!(answer["rooms"], json!([rooms[2]]));
}

#[tokio::test]
async fn a_link_without_an_index_is_named() {
    let database = office().await;
    let says = || {
        let installed = crm_relay(&database.url(), &["install"]);
        assert!(installed.status.success());
        let told = [installed.stdout, installed.stderr].concat();
        String::from_utf8(told).unwrap()
    };
    let notice = "no index of public.appointments begins with lead_id";
    assert!(says().contains(notice), "{}", says());
    run(&database, "create index on appointments (lead_id)").await;
    assert!(!says().contains(notice), "{}", says());
}
