//! What operators see of what passes: who sees it, what of it, and that nobody waits for them.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::harness::{Client, DEADLINE, Database, Relay, now, token, token_of};

const TOKEN: &str = "the operator of the tests";
const ADM: &str = "00000000-0000-4000-8000-0000000000ad";
const ANN: &str = "00000000-0000-4000-8000-00000000000a";
const ONE: &str = "00000000-0000-4000-8000-000000000001";

/// A relay that asks for tokens, and a database with a `system_admin`, Ann, and a lead and a user's secret of hers.
async fn office() -> (Database, Relay) {
    office_with(|_| {}).await
}

/// The same with more settings.
async fn office_with(change: impl FnOnce(&mut tokio::process::Command)) -> (Database, Relay) {
    let database = Database::create().await;
    let people = format!(
        "insert into users (id, email, first_name, last_name, role) values
           ('{ADM}', 'adm', '', '', 'system_admin'), ('{ANN}', 'ann', '', '', 'agent');
         insert into leads (id, owner_id) values ('{ONE}', '{ANN}')"
    );
    database.execute(&people).await;
    let relay = Relay::guarded(&database.url(), |command| {
        command.env("RELAY_ADMIN_TOKEN", TOKEN);
        change(command);
    })
    .await;
    (database, relay)
}

/// A console's feed.
struct Feed {
    lines: tokio::io::Lines<BufReader<TcpStream>>,
}

impl Feed {
    /// Of what this query asks for, with the token of this user, if any.
    async fn open(relay: &Relay, query: &str, user: Option<&str>) -> Feed {
        let user = user.map(token);
        Feed::with(relay, query, user.as_deref()).await
    }

    async fn with(relay: &Relay, query: &str, token: Option<&str>) -> Feed {
        let stream = TcpStream::connect(relay.address()).await.unwrap();
        Feed::over(stream, relay, query, token).await
    }

    async fn over(mut stream: TcpStream, relay: &Relay, query: &str, token: Option<&str>) -> Feed {
        let token = token.map(|token| format!("Crm-Authorization: Bearer {token}\r\n"));
        let request = format!(
            "GET /console/feed?{query} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {TOKEN}\r\n{}\r\n",
            relay.address(),
            token.unwrap_or_default(),
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        Feed {
            lines: BufReader::new(stream).lines(),
        }
    }

    /// The next line of this name, as it came.
    async fn next_raw(&mut self, name: &str) -> String {
        let wanted = format!("event:{name}");
        let mut is_it = false;
        let found = async {
            loop {
                let line = self.lines.next_line().await.unwrap();
                let line = line.expect("the feed goes on");
                if let Some(data) = line.strip_prefix("data:").filter(|_| is_it) {
                    return data.to_owned();
                }
                is_it = line == wanted;
            }
        };
        let found = timeout(DEADLINE, found).await;
        found.unwrap_or_else(|_| panic!("no {name}"))
    }

    async fn next(&mut self, name: &str) -> Value {
        serde_json::from_str(&self.next_raw(name).await).unwrap()
    }

    /// Whether values are told, and why not, once everything that is committed from now on is in it.
    async fn begin(&mut self) -> Value {
        let begin = self.next("begin").await;
        // it was entered among those who watch before this was answered
        self.next("second").await;
        begin
    }
}

async fn update(database: &Database, status: &str) {
    let update = format!("update leads set status = '{status}' where id = '{ONE}'");
    database.execute(&update).await;
}

#[tokio::test]
async fn without_the_admin_token_nothing_of_it_is_told() {
    let (_database, relay) = office().await;
    for path in [
        "/console/feed",
        "/console/verify",
        "/console/feed?module=leads",
    ] {
        for headers in [
            String::new(),
            "Authorization: Bearer the operator of the tests?\r\n".to_owned(),
            format!("Authorization: Bearer {}\r\n", token(ADM)),
            format!("Crm-Authorization: Bearer {}\r\n", token(ADM)),
        ] {
            let (status, body) = relay.get(path, &headers).await;
            assert_eq!(status, 401, "{path}: {body}");
            assert!(!body.contains("event:"), "{body}");
        }
        let in_url = format!("{path}?token={}", TOKEN.replace(' ', "%20"));
        let (status, _) = relay.get(&in_url, "").await;
        assert_eq!(status, 401, "a token has no place in a URL");
    }
    // the page asks for it and tells nothing
    let (status, page) = relay.get("/console", "").await;
    assert_eq!(status, 200);
    assert!(
        page.contains("data-login") && !page.contains("leads"),
        "{page}"
    );
    assert_eq!(relay.get("/console/console.js", "").await.0, 200);
    assert_eq!(relay.get("/console/other.js", "").await.0, 404);
}

#[tokio::test]
async fn where_there_is_no_admin_token_there_is_no_console_for_clients_and_the_operators_door_has_one()
 {
    let database = Database::create().await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = port.local_addr().unwrap().to_string();
    drop(port);
    let relay = Relay::with(&database.url(), |command| {
        command.env("RELAY_ADMIN_LISTEN", &admin);
    })
    .await;
    for path in ["/console", "/console/console.css"] {
        assert_eq!(relay.get(path, "").await.0, 404, "{path}");
    }
    assert_eq!(relay.get("/console/feed", "").await.0, 401);
    let ask = async |path: &str, host: &str| {
        let mut stream = TcpStream::connect(&admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 4096];
        let count = timeout(DEADLINE, stream.read(&mut answer))
            .await
            .unwrap()
            .unwrap();
        String::from_utf8_lossy(&answer[..count]).into_owned()
    };
    let page = ask("/console", &admin).await;
    assert!(
        page.starts_with("HTTP/1.1 200") && !page.contains("data-login"),
        "{page}"
    );
    assert!(page.contains("script-src 'self'"), "{page}");
    let feed = ask("/console/feed", &admin).await;
    assert!(feed.starts_with("HTTP/1.1 200"), "{feed}");
    // a page of a foreign name that resolves to this address
    let feed = ask("/console/feed", "elsewhere.example").await;
    assert!(feed.starts_with("HTTP/1.1 403"), "{feed}");
}

#[tokio::test]
async fn ids_and_names_are_told_to_all_operators_and_values_only_with_a_system_admin_s_token() {
    let (database, relay) = office().await;
    let foreign = token_of(&json!({"id": ADM, "exp": now() - 120}));
    let mut without = Feed::open(&relay, "", None).await;
    let mut ann = Feed::open(&relay, "", Some(ANN)).await;
    let mut expired = Feed::with(&relay, "", Some(&foreign)).await;
    let mut claims = Feed::with(
        &relay,
        "",
        Some(&token_of(
            &json!({"id": ANN, "role": "system_admin", "exp": now() + 900}),
        )),
    )
    .await;
    let mut admin = Feed::open(&relay, "", Some(ADM)).await;
    assert_eq!(without.begin().await["why"], Value::Null);
    assert!(
        ann.begin().await["why"]
            .as_str()
            .unwrap()
            .contains("system_admin")
    );
    assert!(
        expired.begin().await["why"]
            .as_str()
            .unwrap()
            .contains("expired")
    );
    // a role that only the token claims is not believed
    assert_eq!(claims.begin().await["values"], false);
    assert_eq!(admin.begin().await["values"], true);
    for sql in [
        format!("update leads set status = 'TOLDTONOBODY' where id = '{ONE}'"),
        format!("update leads set notes = repeat('TOLDTONOBODY ', 10000) where id = '{ONE}'"),
        format!("insert into leads (owner_id, notes) values ('{ANN}', 'TOLDTONOBODY')"),
        format!("delete from leads where id = '{ONE}'"),
    ] {
        database.execute(&sql).await;
        for feed in [&mut without, &mut ann, &mut expired, &mut claims] {
            let line = feed.next_raw("change").await;
            assert!(!line.contains("TOLDTONOBODY"), "{line}");
            let change: Value = serde_json::from_str(&line).unwrap();
            let data = change["frame"]["data"].as_object().unwrap();
            assert!(data.values().all(|value| value == "…"), "{line}");
            let name = if sql.contains("notes = ") {
                "notes"
            } else {
                "status"
            };
            assert!(
                data.contains_key(name) || data.is_empty() && !sql.starts_with("update"),
                "{line}"
            );
        }
        let line = admin.next_raw("change").await;
        // what is too large to be put together for a look is told by its names
        let is_small = !sql.contains("repeat") && !sql.starts_with("delete");
        assert_eq!(line.contains("TOLDTONOBODY"), is_small, "{line}");
    }
}

#[tokio::test]
async fn values_are_told_for_as_long_as_the_role_is_had() {
    let (database, relay) = office().await;
    let mut admin = Feed::open(&relay, "", Some(ADM)).await;
    assert_eq!(admin.begin().await["values"], true);
    update(&database, "first").await;
    let change = admin.next("change").await;
    assert_eq!(change["frame"]["data"]["status"], "first");
    // thrown out: at once
    let thrown_out = format!("select crm_relay.disconnect('{ADM}')");
    database.execute(&thrown_out).await;
    update(&database, "second").await;
    let change = admin.next("change").await;
    assert_eq!(change["frame"]["data"]["status"], "…");
    assert_eq!(admin.next("second").await["values"], false);
    // and with the same token not again
    let old = token_of(&json!({"id": ADM, "iat": now() - 60, "exp": now() + 900}));
    let mut again = Feed::with(&relay, "", Some(&old)).await;
    again.begin().await;
    update(&database, "third").await;
    assert_eq!(again.next("change").await["frame"]["data"]["status"], "…");
    // the role is taken away: within ten seconds
    let new = token_of(&json!({"id": ADM, "iat": now() + 1, "exp": now() + 900}));
    let mut admin = Feed::with(&relay, "", Some(&new)).await;
    assert_eq!(admin.begin().await["values"], true);
    update(&database, "fourth").await;
    assert_eq!(
        admin.next("change").await["frame"]["data"]["status"],
        "fourth"
    );
    let taken = format!("update users set role = 'agent' where id = '{ADM}'");
    database.execute(&taken).await;
    let mut seconds = 0;
    while admin.next("second").await["values"] == true {
        seconds += 1;
        assert!(seconds < 30, "values are told still");
    }
    update(&database, "fifth").await;
    assert_eq!(admin.next("change").await["frame"]["data"]["status"], "…");
}

#[tokio::test]
async fn hidden_columns_are_told_to_nobody() {
    let (database, relay) = office().await;
    let table = "create table secrets (id int primary key, password text, note text)";
    database.execute(table).await;
    let watch = ["watch", "secrets", "--hidden", "password"];
    assert!(
        crate::harness::crm_relay(&database.url(), &watch)
            .status
            .success()
    );
    let mut admin = Feed::open(&relay, "module=secrets", Some(ADM)).await;
    let mut room = Feed::open(&relay, "room=secrets:1", Some(ADM)).await;
    admin.begin().await;
    room.begin().await;
    for sql in [
        "insert into secrets values (1, 'HIDDEN', 'told')",
        "update secrets set password = 'HIDDEN TOO', note = 'told too'",
        "delete from secrets",
    ] {
        database.execute(sql).await;
        for feed in [&mut admin, &mut room] {
            let line = feed.next_raw("change").await;
            assert!(line.contains("told") && !line.contains("HIDDEN"), "{line}");
        }
    }
}

#[tokio::test]
async fn what_is_shown_is_what_was_asked_for_by_module_room_and_user() {
    let (database, relay) = office().await;
    let mut rooms = Feed::open(&relay, &format!("room=user:{ANN}/leads"), Some(ADM)).await;
    let mut module = Feed::open(&relay, "module=leads&room=&user=", None).await;
    let mut user = Feed::open(&relay, &format!("user={ANN}"), None).await;
    for feed in [&mut rooms, &mut module, &mut user] {
        feed.begin().await;
    }
    database
        .execute(&format!(
            "insert into listings (owner_id, created_by) values ('{ADM}', '{ADM}')"
        ))
        .await;
    let by_ann =
        format!("update leads set status = 'hers', last_modified_by = '{ANN}' where id = '{ONE}'");
    database.execute(&by_ann).await;
    for feed in [&mut rooms, &mut module, &mut user] {
        let change = feed.next("change").await;
        assert_eq!(change["frame"]["recordId"], ONE, "{change}");
    }
    // a room is shown as its members get it
    let moved = format!("update leads set owner_id = '{ADM}' where id = '{ONE}'");
    database.execute(&moved).await;
    let change = rooms.next("change").await;
    assert_eq!(change["frame"]["type"], "LEAD_DELETED", "{change}");
    assert_eq!(change["frame"]["reason"], "moved");
    assert_eq!(change["frame"]["data"], json!({"id": ONE}));
    assert_eq!(
        change["frame"]["rooms"],
        json!([format!("user:{ANN}/leads")])
    );
    assert_eq!(module.next("change").await["frame"]["type"], "LEAD_UPDATED");
    database.execute("truncate leads cascade").await;
    assert_eq!(module.next("change").await["frame"]["action"], "truncated");
}

#[tokio::test]
async fn rooms_and_connections_are_told_with_their_counts() {
    let (database, relay) = office().await;
    let mut client = Client::of(&relay, ANN).await;
    client
        .subscribe(&[format!("user:{ANN}"), format!("leads:{ONE}")])
        .await;
    let mut other = Client::of(&relay, ANN).await;
    other.subscribe(&[format!("user:{ANN}")]).await;
    let mut feed = Feed::open(&relay, "", None).await;
    let second = feed.next("second").await;
    assert_eq!(second["connections"], 2, "{second}");
    assert_eq!(second["rooms"], 2, "{second}");
    assert_eq!(second["subscriptions"], 3, "{second}");
    let crowded = json!([{"room": format!("user:{ANN}"), "members": 2}, {"room": format!("leads:{ONE}"), "members": 1}]);
    assert_eq!(second["crowded"], crowded);
    let present = second["present"].as_array().unwrap();
    let told: Vec<_> = present
        .iter()
        .map(|one| (one["user"].as_str().unwrap(), &one["rooms"]))
        .collect();
    assert_eq!(told, [(ANN, &json!(2)), (ANN, &json!(1))]);
    update(&database, "told").await;
    assert_eq!(feed.next("change").await["receivers"], 2);
    let mut told = feed.next("second").await;
    while told["changes"] == 0 {
        told = feed.next("second").await;
    }
    assert_eq!(
        (&told["changes"], &told["deliveries"]),
        (&json!(1), &json!(2))
    );
    assert!(told["lagMs"].as_f64().unwrap() > 0.0, "{told}");
}

#[tokio::test]
async fn of_a_second_a_hundred_are_shown_and_all_are_counted() {
    let (database, relay) = office().await;
    let mut feed = Feed::open(&relay, "module=listings", None).await;
    feed.begin().await;
    database
        .execute(
            "insert into leads (status) select 'x' from generate_series(1, 500);
                  insert into listings (city) select 'Reno' from generate_series(1, 2000)",
        )
        .await;
    let (mut passed, mut shown, mut changes) = (0, 0, 0);
    while passed < 2000 {
        let second = feed.next("second").await;
        let of = |name: &str| second[name].as_u64().unwrap();
        passed += of("passed");
        shown += of("shown") + of("missed");
        changes += of("changes");
    }
    assert_eq!((passed, changes), (2000, 2500));
    assert!((100..2000).contains(&shown), "{shown}");
}

#[tokio::test]
async fn an_operator_who_does_not_read_slows_nobody_and_is_told_what_they_missed() {
    let (database, relay) = office_with(|command| {
        command.env("RELAY_RECENT_BYTES", "1000000");
    })
    .await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let stream = socket
        .connect(relay.address().parse().unwrap())
        .await
        .unwrap();
    let mut lazy = Feed::over(stream, &relay, "", Some(&token(ADM))).await;
    assert_eq!(lazy.begin().await["values"], true);
    let mut client = Client::of(&relay, ANN).await;
    client.subscribe(&[format!("leads:{ONE}")]).await;
    let memory = relay.most_memory();
    let mut pace = Feed::open(&relay, "module=none", None).await;
    // each second or two a hundred of 14 KB: more than the sockets between them hold
    let mut slowest = Duration::ZERO;
    for step in 0..15 {
        pace.next("second").await;
        let filling = format!(
            "insert into leads (notes) select repeat('{step:04} ', 2800) from generate_series(1, 100);
             update leads set number_of_contacts = {step} + 1 where id = '{ONE}'"
        );
        let began = std::time::Instant::now();
        database.execute(&filling).await;
        assert_eq!(client.next_event().await["type"], "LEAD_UPDATED");
        slowest = slowest.max(began.elapsed());
    }
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    let more = relay.most_memory().saturating_sub(memory);
    assert!(more < 60_000, "{more} KiB more");
    // what waited comes, and then how many are not there
    let mut told = Vec::new();
    let is_missed = |second: &Value| second["missed"].as_u64().unwrap() > 0;
    while !told.last().is_some_and(is_missed) {
        let second = lazy.next("second").await;
        told.push(json!({"shown": second["shown"], "missed": second["missed"]}));
        assert!(told.len() < 40, "{told:?}");
    }
    // and it stops, though somebody watches
    relay.signal("TERM");
    assert!(relay.stop_signalled().await.success());
}

#[tokio::test]
async fn no_more_than_sixteen_watch_at_once_and_who_goes_makes_room() {
    let (_database, relay) = office().await;
    let mut feeds = Vec::new();
    for _ in 0..16 {
        let mut feed = Feed::open(&relay, "", None).await;
        feed.begin().await;
        feeds.push(feed);
    }
    let mut one_more = Feed::open(&relay, "", None).await;
    let end = one_more.next("end").await;
    assert!(end["why"].as_str().unwrap().contains("too many"), "{end}");
    feeds.pop();
    let again = async {
        loop {
            let mut feed = Feed::open(&relay, "", None).await;
            let name = async { feed.next("second").await };
            if let Ok(second) = timeout(Duration::from_secs(3), name).await {
                return second;
            }
        }
    };
    timeout(DEADLINE, again).await.expect("there is room");
}

#[tokio::test]
async fn the_trigger_check_tells_what_is_found_and_why_it_cannot() {
    let (database, relay) = office().await;
    let operator = format!("Authorization: Bearer {TOKEN}\r\n");
    let found = async || {
        let (status, body) = relay.get("/console/verify", &operator).await;
        (status, serde_json::from_str::<Value>(&body).unwrap())
    };
    database
        .execute("drop function if exists crm_relay.verify() cascade")
        .await;
    let (status, told) = found().await;
    assert_eq!(status, 503);
    assert!(
        told["error"]
            .as_str()
            .unwrap()
            .contains("crm_relay.verify()"),
        "{told}"
    );
    database
        .execute("create function crm_relay.verify() returns table (a text, b int) language sql as $$ values ('x', 1), ('y', null) $$")
        .await;
    let rows = json!({"rows": [{"a": "x", "b": 1}, {"a": "y", "b": null}]});
    assert_eq!(found().await, (200, rows));
}
