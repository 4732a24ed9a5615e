//! What a client may say, and what becomes of it when it says something else.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Client, DEADLINE, Database, Relay, bare_socket, frames, masked};

const ONE: &str = "00000000-0000-4000-8000-000000000001";

// opcodes, RFC 6455, section 5.2
const TEXT: u8 = 0x1;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;

async fn relay() -> (Database, Relay) {
    let database = Database::create().await;
    let relay = Relay::start(&database.url()).await;
    (database, relay)
}

#[tokio::test]
async fn a_welcome_tells_what_may_be_asked() {
    let (_database, relay) = relay().await;
    let mut client = Client::silent(&relay).await;
    client
        .send(json!({"type": "hello", "token": "ignored without authentication"}))
        .await;
    let welcome = client.next_frame().await;
    assert_eq!(
        (&welcome["type"], &welcome["protocol"]),
        (&json!("welcome"), &json!(1))
    );
    assert_eq!(
        welcome["limits"],
        json!({"rooms": 1000, "frameBytes": 65536})
    );
    assert!(uuid::Uuid::parse_str(welcome["session"].as_str().unwrap()).is_ok());
}

#[tokio::test]
async fn bad_frames_are_told_their_code_and_harm_nobody() {
    let (database, relay) = relay().await;
    let mut good = Client::connect(&relay).await;
    good.subscribe(&[format!("leads:{ONE}")]).await;
    let mut bad = Client::connect(&relay).await;
    for (frame, code) in [
        (Message::text("not json"), "bad_json"),
        (Message::text("[]"), "bad_frame"),
        (
            Message::text(r#"{"type":"dance","id":"x"}"#),
            "unknown_type",
        ),
        (
            Message::text(r#"{"type":"subscribe","id":7,"rooms":[null]}"#),
            "bad_frame",
        ),
        (
            Message::text(r#"{"type":"subscribe","id":7,"rooms":[],"since":"x"}"#),
            "bad_cursor",
        ),
        (Message::text(r#"{"type":"hello"}"#), "bad_frame"),
        (Message::binary(vec![1, 2, 3]), "bad_frame"),
    ] {
        bad.send_raw(frame.clone()).await;
        let error = bad.next_frame().await;
        assert_eq!(
            (&error["type"], &error["code"]),
            (&json!("error"), &json!(code)),
            "{frame}"
        );
    }
    assert_eq!(bad.ping().await["type"], "pong", "still there");
    for _ in 0..20 {
        bad.send_raw(Message::text("again")).await;
    }
    assert_eq!(bad.closed().await, 4400);
    let mut large = Client::connect(&relay).await;
    large.send_raw(Message::text("x".repeat(70_000))).await;
    assert_eq!(large.closed().await, 1009);
    database
        .execute(&format!("insert into leads (id) values ('{ONE}')"))
        .await;
    assert_eq!(good.next_event().await["type"], "LEAD_CREATED");
}

#[tokio::test]
async fn a_room_that_cannot_be_and_one_too_many_are_denied() {
    let (_database, relay) = relay().await;
    let mut client = Client::connect(&relay).await;
    let upper = format!("leads:{}", ONE.to_uppercase().replace('0', "A"));
    let answer = client
        .subscribe(&[
            "leads:",
            "leads",
            "users:1",
            "contacts:1",
            &upper,
            "leads:x",
            "team:1/nothing",
        ])
        .await;
    assert_eq!(answer["rooms"], json!([]));
    let denied = answer["denied"].as_array().unwrap();
    assert!(
        denied.len() == 7 && denied.iter().all(|denied| denied["code"] == "bad_room"),
        "{answer}"
    );
    // 10,000 rooms, as many as a frame of 64 KiB holds at a time
    let rooms: Vec<String> = (0..10_000)
        .map(|n| format!("leads:00000000-0000-4000-8000-{n:012}"))
        .collect();
    let (mut granted, mut refused) = (0, 0);
    for some in rooms.chunks(1000) {
        let answer = client.subscribe(some).await;
        granted += answer["rooms"].as_array().unwrap().len();
        let denied = answer["denied"].as_array().map_or(&[][..], Vec::as_slice);
        assert!(
            denied
                .iter()
                .all(|denied| denied["code"] == "too_many_rooms")
        );
        refused += denied.len();
    }
    assert_eq!((granted, refused), (1000, 9000));
}

#[tokio::test]
async fn a_cursor_comes_with_everything() {
    let (_database, relay) = relay().await;
    let mut client = Client::connect(&relay).await;
    let room = format!("leads:{ONE}");
    let cursor = client.subscribe(&[&room]).await["cursor"].clone();
    assert_eq!(client.ping().await["cursor"], cursor);
    client
        .send(json!({"type": "subscribe", "id": "s", "rooms": ["team:7"], "snapshot": true}))
        .await;
    assert_eq!(client.next_event().await["code"], "bad_frame");
}

#[tokio::test]
async fn hello_comes_first() {
    let (_database, relay) = relay().await;
    let mut client = Client::silent(&relay).await;
    client.send(json!({"type": "ping", "id": 1})).await;
    assert_eq!(client.next_frame().await["code"], "bad_frame");
    client.send(json!({"type": "hello"})).await;
    assert_eq!(client.next_frame().await["type"], "welcome");
}

#[tokio::test]
async fn pings_are_answered_and_a_close_is_returned() {
    let (_database, relay) = relay().await;
    let mut client = Client::connect(&relay).await;
    client.send_raw(Message::Ping("are you there".into())).await;
    assert_eq!(client.ping().await["type"], "pong");
    client.send_raw(Message::Close(None)).await;
    assert_eq!(client.closed().await, 1000);
    relay.logged("closed by the client").await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_closed_and_slows_nobody() {
    let database = Database::create().await;
    database
        .execute(&format!("insert into leads (id) values ('{ONE}')"))
        .await;
    let relay = Relay::with(&database.url(), |command| {
        command.env("RELAY_QUEUE_BYTES", "100000");
    })
    .await;
    let (mut slow, mut quick) = (Client::connect(&relay).await, Client::connect(&relay).await);
    let room = format!("leads:{ONE}");
    slow.subscribe(&[&room]).await;
    quick.subscribe(&[&room]).await;
    for step in 0..200 {
        database
            .execute(&format!(
                "update leads set notes = repeat('{step:04}', 20000)"
            ))
            .await;
        assert_eq!(
            quick.next_event().await["type"],
            "LEAD_UPDATED",
            "step {step}"
        );
    }
    relay.logged("4508 too slow").await;
    assert_eq!(slow.closed().await, 4508);
}

#[tokio::test]
async fn who_resumes_again_and_again_without_reading_is_closed_and_costs_little() {
    let database = Database::create().await;
    database
        .execute(&format!("insert into leads (id) values ('{ONE}')"))
        .await;
    let relay = Relay::with(&database.url(), |command| {
        command
            .env("RELAY_QUEUE_BYTES", "2000000")
            // each replay is read from the journal and shared with nobody
            .env("RELAY_RECENT_BYTES", "1");
    })
    .await;
    let mut before = Client::connect(&relay).await;
    let room = format!("leads:{ONE}");
    let cursor = before.subscribe(&[&room]).await["cursor"].clone();
    for step in 0..15 {
        database
            .execute(&format!(
                "update leads set notes = repeat('{step:02}', 15000)"
            ))
            .await;
    }
    before.everything(database.client()).await;
    let most_memory = relay.most_memory();

    let mut greedy = bare_socket(&relay).await;
    let resume = json!({"type": "subscribe", "id": 1, "rooms": [room], "since": cursor});
    let mut said = masked(TEXT, br#"{"type":"hello"}"#);
    for _ in 0..150 {
        said.extend(masked(TEXT, resume.to_string().as_bytes()));
    }
    greedy.write_all(&said).await.unwrap();
    relay.logged("4508 too slow").await;
    let grown = relay.most_memory().saturating_sub(most_memory);
    assert!(grown < 32_000, "{grown} KiB for a queue of 2000 KB");
}

#[tokio::test]
async fn answers_without_payload_are_not_free() {
    let database = Database::create().await;
    let relay = Relay::with(&database.url(), |command| {
        command
            .env("RELAY_QUEUE_BYTES", "5000000")
            .env("RELAY_MAX_FRAMES", "1000000");
    })
    .await;
    let (mut answers, mut pings) = bare_socket(&relay).await.into_split();
    // all their pongs together are less than a queue may hold
    let saying = tokio::spawn(async move {
        let said = masked(TEXT, br#"{"type":"hello"}"#);
        let said = [said, masked(PING, b"").repeat(2_000_000)].concat();
        let _ = pings.write_all(&said).await;
        pings
    });
    relay.logged("4508 too slow").await;
    let mut answered = Vec::new();
    tokio::time::timeout(DEADLINE, answers.read_to_end(&mut answered))
        .await
        .unwrap()
        .unwrap();
    let answered = frames(&answered);
    let (last, before) = answered.split_last().unwrap();
    assert_eq!((last.0, &last.1[..2]), (CLOSE, &4508_u16.to_be_bytes()[..]));
    assert!(before[1..].iter().all(|(opcode, _)| *opcode == PONG));
    saying.abort();
}

#[tokio::test]
async fn at_the_limit_of_connections_others_are_refused_and_health_is_still_told() {
    let database = Database::create().await;
    let relay = Relay::with(&database.url(), |command| {
        command.env("RELAY_MAX_CONNECTIONS", "2");
    })
    .await;
    let first = Client::connect(&relay).await;
    let _second = Client::connect(&relay).await;
    let refused = tokio_tungstenite::connect_async(format!("ws://{}/ws", relay.address())).await;
    match refused {
        Err(tokio_tungstenite::tungstenite::Error::Http(answer)) => {
            assert_eq!(answer.status(), 503);
            assert!(answer.headers().contains_key("retry-after"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(relay.get("/healthz", "").await.0, 200);
    drop(first);
    relay.logged("disconnected").await;
    // its place is free once its task is gone, a moment after the line
    while tokio_tungstenite::connect_async(format!("ws://{}/ws", relay.address()))
        .await
        .is_err()
    {}
}

#[tokio::test]
async fn an_id_comes_back_as_it_was_written() {
    let (_database, relay) = relay().await;
    let mut client = Client::connect(&relay).await;
    for id in ["12345678901234567890123", "1.50", "1e+400", r#""x\u0000y""#] {
        client
            .send_raw(Message::text(format!(r#"{{"type":"ping","id":{id}}}"#)))
            .await;
        assert_eq!(client.next_frame().await["id"].to_string(), id);
    }
}

#[tokio::test]
async fn handshakes_from_elsewhere_are_refused() {
    let (_database, relay) = relay().await;
    let handshake = "Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for (headers, status) in [
        (
            "Origin: https://evil.example\r\n".to_owned() + handshake,
            403,
        ),
        ("Origin: null\r\n".to_owned() + handshake, 403),
        (handshake.replace("13", "8"), 426),
        (handshake.replace("dGhlIHNhbXBsZSBub25jZQ==", "short"), 400),
        (String::new(), 426),
    ] {
        assert_eq!(relay.get("/ws", &headers).await.0, status, "{headers}");
    }
    let old = format!(
        "GET /ws HTTP/1.0\r\nHost: {}\r\n{}\r\n",
        relay.address(),
        handshake.replace("keep-alive, ", "")
    );
    assert_eq!(relay.request(old.as_bytes()).await.0, 400);
    // a name that somebody else's DNS resolves to this machine
    let mut stream = tokio::net::TcpStream::connect(relay.address())
        .await
        .unwrap();
    stream
        .write_all(format!("GET /ws HTTP/1.1\r\nHost: evil.example\r\n{handshake}\r\n").as_bytes())
        .await
        .unwrap();
    let mut answer = [0; 12];
    tokio::time::timeout(DEADLINE, stream.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&answer, b"HTTP/1.1 403");
    // the example of RFC 6455, section 1.3
    let mut stream = tokio::net::TcpStream::connect(relay.address())
        .await
        .unwrap();
    let own = format!(
        "GET /ws HTTP/1.1\r\nHost: {0}\r\nOrigin: http://{0}\r\n{handshake}\r\n",
        relay.address()
    );
    stream.write_all(own.as_bytes()).await.unwrap();
    let mut answer = vec![0; 200];
    let count = tokio::time::timeout(DEADLINE, stream.read(&mut answer))
        .await
        .unwrap()
        .unwrap();
    let answer = String::from_utf8_lossy(&answer[..count]).to_lowercase();
    assert!(
        answer.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="),
        "{answer}"
    );
}

#[tokio::test]
async fn the_relay_says_goodbye_when_it_stops() {
    let (_database, relay) = relay().await;
    assert_eq!(relay.get("/healthz", "").await.0, 200);
    assert_eq!(
        relay.get("/readyz", "").await,
        (200, r#"{"status":"ready"}"#.to_owned())
    );
    assert_eq!(relay.get("/nothing", "").await.0, 404);
    let mut client = Client::connect(&relay).await;
    relay.signal("TERM");
    assert_eq!(client.closed().await, 1001);
    drop(client);
    let status = relay.stop_signalled().await;
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn each_client_is_told_its_own_moment_to_come_back() {
    let (_database, relay) = relay().await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(Client::connect(&relay).await);
    }
    relay.signal("TERM");
    let mut moments = Vec::new();
    for client in &mut clients {
        let draining = client.next_frame().await;
        assert_eq!(draining["type"], "draining");
        moments.push(draining["reconnectAfterMs"].as_u64().unwrap());
        assert_eq!(client.closed().await, 1001);
    }
    moments.sort();
    moments.dedup();
    assert_eq!(moments.len(), 10);
    assert!(moments[9] - moments[0] >= 900, "{moments:?}");
    drop(clients);
    assert!(relay.stop_signalled().await.success());
}

#[tokio::test]
async fn who_is_silent_for_two_beats_is_gone_and_who_answers_pings_stays() {
    let database = Database::create().await;
    let relay = Relay::with(&database.url(), |command| {
        command.env("RELAY_HEARTBEAT", "1s");
    })
    .await;
    // reads nothing and so answers nothing
    let silent = Client::connect(&relay).await;
    let mut alive = Client::connect(&relay).await;
    for _ in 0..4 {
        assert_eq!(alive.next_frame().await["type"], "heartbeat");
    }
    assert!(
        relay.logs().contains("silent for two beats"),
        "{}",
        relay.logs()
    );
    assert_eq!(alive.ping().await["type"], "pong");
    drop(silent);
}

#[tokio::test]
async fn who_pings_more_often_than_the_heart_beats_gets_heartbeats_all_the_same() {
    let database = Database::create().await;
    let relay = Relay::with(&database.url(), |command| {
        command.env("RELAY_HEARTBEAT", "1s");
    })
    .await;
    let mut client = Client::connect(&relay).await;
    let mut again = tokio::time::interval(Duration::from_millis(200));
    // a browser's code does not see the pongs: to it, this is silence
    let heartbeats = async {
        let mut heartbeats = 0;
        while heartbeats < 3 {
            tokio::select! {
                frame = client.next_frame() => {
                    assert_eq!(frame["type"], "heartbeat");
                    heartbeats += 1;
                }
                _ = again.tick() => client.send_raw(Message::Ping("".into())).await,
            }
        }
    };
    let beating = tokio::time::timeout(DEADLINE, heartbeats).await;
    assert!(beating.is_ok(), "silence for those who ping");
}
