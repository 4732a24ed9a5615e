//! How it ends when it is told to, and what it tells systemd.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixDatagram};
use tokio::time::timeout;

use crate::harness::{Client, DEADLINE, Database, Relay, bare_socket, masked};

const NOBODY: &str = "postgresql://relay@127.0.0.1:1/crm";
const ONE: &str = "00000000-0000-4000-8000-000000000001";

/// Where systemd would listen.
struct Systemd {
    socket: UnixDatagram,
    path: std::path::PathBuf,
}

impl Systemd {
    fn new() -> Systemd {
        let path = std::env::temp_dir().join(format!("crm-relay-systemd-{}", uuid::Uuid::new_v4()));
        let socket = UnixDatagram::bind(&path).unwrap();
        Systemd { socket, path }
    }

    async fn told(&self) -> String {
        let mut told = [0; 1000];
        let count = timeout(DEADLINE, self.socket.recv(&mut told)).await;
        let count = count.expect("systemd is told something").unwrap();
        String::from_utf8_lossy(&told[..count]).trim().to_owned()
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[tokio::test]
async fn systemd_is_told_that_it_is_ready_that_it_lives_and_that_it_stops() {
    let database = Database::create().await;
    let systemd = Systemd::new();
    let relay = Relay::with(&database.url(), |command| {
        command
            .env("NOTIFY_SOCKET", &systemd.path)
            .env("WATCHDOG_USEC", "300000");
    })
    .await;
    let (mut ready, mut fed) = (0, Vec::new());
    while fed.len() < 10 {
        match systemd.told().await.as_str() {
            "READY=1" => ready += 1,
            "WATCHDOG=1" => fed.push(Instant::now()),
            other => panic!("{other}"),
        }
    }
    assert_eq!(ready, 1);
    let hungry = fed[9] - fed[0];
    assert!(hungry < Duration::from_micros(9 * 300_000), "{hungry:?}");
    relay.signal("TERM");
    loop {
        match systemd.told().await.as_str() {
            "WATCHDOG=1" => {}
            told => break assert_eq!(told, "STOPPING=1"),
        }
    }
    assert!(relay.stop_signalled().await.success());
}

#[tokio::test]
async fn a_relay_that_waits_for_postgres_lives_is_not_ready_and_stops_when_it_is_told() {
    let systemd = Systemd::new();
    let relay = Relay::begin(NOBODY, |command| {
        command
            .env("RELAY_LISTEN", "127.0.0.1:0")
            .env("NOTIFY_SOCKET", &systemd.path)
            .env("WATCHDOG_USEC", "300000");
    });
    relay.logged("again_in_ms=400").await;
    relay.signal("INT");
    let mut told = Vec::new();
    while told.last().is_none_or(|told| told != "STOPPING=1") {
        told.push(systemd.told().await);
    }
    let (_, before) = told.split_last().unwrap();
    assert!(
        before.len() > 1 && before.iter().all(|told| told == "WATCHDOG=1"),
        "{told:?}"
    );
    assert!(relay.stop_signalled().await.success());
}

/// A relay with clients that hold up its end: one that is too slow and does not read why, and one whose
/// request does not end.
async fn held_up() -> (Database, Relay, [TcpStream; 2]) {
    let database = Database::create().await;
    database
        .execute(&format!("insert into leads (id) values ('{ONE}')"))
        .await;
    let relay = Relay::with(&database.url(), |command| {
        command.env("RELAY_QUEUE_BYTES", "100000");
    })
    .await;
    let mut deaf = bare_socket(&relay).await;
    let subscribe = json!({"type": "subscribe", "id": 1, "rooms": [format!("leads:{ONE}")]});
    for said in [json!({"type": "hello"}), subscribe] {
        deaf.write_all(&masked(0x1, said.to_string().as_bytes()))
            .await
            .unwrap();
    }
    relay.logged("subscribed").await;
    for step in 0..40 {
        database
            .execute(&format!(
                "update leads set notes = repeat('{step:04}', 50000)"
            ))
            .await;
    }
    relay.logged("4508 too slow").await;
    let mut unfinished = TcpStream::connect(relay.address()).await.unwrap();
    unfinished.write_all(b"GET /heal").await.unwrap();
    (database, relay, [deaf, unfinished])
}

#[tokio::test]
async fn clients_that_do_not_read_hold_up_its_end_for_no_more_than_five_seconds() {
    let (_database, relay, _clients) = held_up().await;
    let mut client = Client::connect(&relay).await;
    let signalled = Instant::now();
    relay.signal("TERM");
    // others are told at once
    assert_eq!(client.closed().await, 1001);
    drop(client);
    relay.logged("left behind").await;
    let status = relay.stop_signalled().await;
    assert_eq!(status.code(), Some(0));
    let took = signalled.elapsed();
    assert!(took < Duration::from_secs(7), "{took:?}");
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let (_database, relay, _clients) = held_up().await;
    relay.signal("INT");
    relay.logged("stopping").await;
    relay.signal("INT");
    // of itself it would have ended with 0
    assert_eq!(relay.stop_signalled().await.code(), Some(130));
}

#[tokio::test]
async fn a_hangup_ends_nothing() {
    let database = Database::create().await;
    let relay = Relay::start(&database.url()).await;
    let mut client = Client::connect(&relay).await;
    relay.signal("HUP");
    assert_eq!(client.ping().await["type"], "pong");
    assert_eq!(relay.get("/readyz", "").await.0, 200);
}
