//! A hundred clients of a thousand do not read at all: the others do not feel it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{interval, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::contract;
use crate::harness::{DEADLINE, Database, Relay};
use crate::leak::memory;

const READING: usize = 900;
const NOT_READING: usize = 100;

const SEEN: &str = "00000000-0000-4000-8000-000000000001";
/// In the rooms of those who do not read only.
const UNREAD: &str = "00000000-0000-4000-8000-000000000002";

type Socket = WebSocketStream<TcpStream>;

/// A client in these leads' rooms; of one who does not read, the system keeps as little as it can.
async fn join(relay: &Relay, leads: &[&str], reads: bool) -> Socket {
    let socket = TcpSocket::new_v4().unwrap();
    if !reads {
        socket.set_recv_buffer_size(4096).unwrap();
    }
    let address = relay.address();
    let stream = socket.connect(address.parse().unwrap()).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(format!("ws://{address}/ws"), stream)
        .await
        .expect("a handshake");
    let rooms: Vec<_> = leads.iter().map(|lead| format!("leads:{lead}")).collect();
    let hello = json!({"type": "hello"});
    for said in [hello, json!({"type": "subscribe", "id": 1, "rooms": rooms})] {
        socket.send(Message::text(said.to_string())).await.unwrap();
    }
    assert_eq!(next(&mut socket).await["type"], "welcome");
    assert_eq!(next(&mut socket).await["type"], "subscribed");
    socket
}

async fn next(socket: &mut Socket) -> Value {
    loop {
        match timeout(DEADLINE, socket.next()).await {
            Ok(Some(Ok(Message::Text(text)))) => return contract::frame(&text),
            Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {}
            other => panic!("awaited a frame, got {other:?}"),
        }
    }
}

/// The close code, once a client reads again.
async fn closed(socket: &mut Socket) -> u16 {
    loop {
        match timeout(DEADLINE, socket.next()).await {
            Ok(Some(Ok(Message::Close(Some(close))))) => return close.code.into(),
            Ok(Some(Ok(_))) => {}
            other => panic!("ended without a close code: {other:?}"),
        }
    }
}

/// A large change that only those get who do not read.
fn filling(step: usize) -> String {
    format!("update leads set notes = repeat('{step:04} ', 10000) where id = '{UNREAD}'")
}

/// How many were found to be too slow.
fn closing(relay: &Relay) -> usize {
    let logs = relay.logs();
    let lines = logs.lines().filter(|line| line.contains("closing"));
    lines.filter(|line| line.contains("4508")).count()
}

async fn two_leads() -> Database {
    rlimit::increase_nofile_limit(4096).unwrap();
    let database = Database::create().await;
    let leads = format!("insert into leads (id) values ('{SEEN}'), ('{UNREAD}')");
    database.execute(&leads).await;
    database
}

#[tokio::test]
async fn a_hundred_who_do_not_read_are_let_go_and_nine_hundred_miss_nothing() {
    const QUEUE: usize = 200_000;
    let database = two_leads().await;
    let relay = Relay::with(&database.url(), |command| {
        command
            .env("RELAY_QUEUE_BYTES", QUEUE.to_string())
            .env("RELAY_RECENT_BYTES", "1000000");
    })
    .await;
    let mut not_reading = Vec::new();
    for _ in 0..NOT_READING {
        not_reading.push(join(&relay, &[SEEN, UNREAD], false).await);
    }
    let mut reading = Vec::new();
    for _ in 0..READING {
        reading.push(join(&relay, &[SEEN], true).await);
    }
    let before = memory(&relay);
    let mut most = before;
    let mut step = 0;
    // each change is waited for by those who read, so none of them is ever behind
    while closing(&relay) < NOT_READING {
        step += 1;
        assert!(step < 500, "some wait without bound");
        database.execute(&filling(step)).await;
        let change = format!("update leads set notes = 'step {step}' where id = '{SEEN}'");
        database.execute(&change).await;
        for frame in join_all(reading.iter_mut().map(next)).await {
            assert_eq!(frame["data"]["notes"], format!("step {step}"));
        }
        most = most.max(memory(&relay));
    }
    println!("{step} changes, {before} to {most} KiB");
    for socket in &mut not_reading {
        assert_eq!(closed(socket).await, 4508);
    }
    // what waits is shared, and bounded even if it were not
    let bound = (NOT_READING * QUEUE / 1024) as u64;
    assert!(
        most < before + bound,
        "{before} KiB at first, {most} at most"
    );
}

/// Median, 99th of a hundred and longest of microseconds, in milliseconds.
fn quantiles(mut lags: Vec<u32>) -> [f64; 3] {
    lags.sort_unstable();
    let last = lags.len() - 1;
    [last / 2, last * 99 / 100, last].map(|at| f64::from(lags[at]) / 1000.0)
}

/// For `tests/README.md`: how long a change takes to those who read, by turns with nobody who does
/// not and with a hundred.
#[ignore = "measures, for two minutes; nothing else should run"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn measure_nine_hundred_beside_a_hundred_who_do_not_read() {
    const ROUNDS: usize = 7;
    const CHANGES: u32 = 160;
    let database = two_leads().await;
    let relay = Relay::start(&database.url()).await;
    let began = Instant::now();
    let measuring = Arc::new(AtomicBool::new(false));
    let (sender, mut lags) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..READING {
        let mut socket = join(&relay, &[SEEN], true).await;
        let (sender, measuring) = (sender.clone(), measuring.clone());
        tokio::spawn(async move {
            loop {
                let frame = match socket.next().await {
                    Some(Ok(Message::Text(text))) => text,
                    Some(Ok(_)) => continue,
                    _ => return,
                };
                let now = began.elapsed().as_micros() as u64;
                if measuring.load(Ordering::Relaxed) {
                    let frame: Value = serde_json::from_str(&frame).unwrap();
                    let Some(written) = frame["data"]["first_name"].as_str() else {
                        continue;
                    };
                    let _ = sender.send((now - written.parse::<u64>().unwrap()) as u32);
                }
            }
        });
    }
    let mut figures = [Vec::new(), Vec::new()];
    measuring.store(true, Ordering::Relaxed);
    for round in 0..ROUNDS * 2 {
        let with = round % 2;
        let mut not_reading = Vec::new();
        for _ in 0..NOT_READING * with {
            not_reading.push(join(&relay, &[SEEN, UNREAD], false).await);
        }
        // whatever the system buffers is full before it counts
        for number in 0..40 * with {
            database.execute(&filling(number)).await;
        }
        let mut tick = interval(Duration::from_millis(50));
        for number in 0..CHANGES {
            tick.tick().await;
            let now = began.elapsed().as_micros();
            let change = format!(
                "update leads set first_name = '{now}', notes = repeat('{number:04} ', 100) where id = '{SEEN}'"
            );
            database.execute(&change).await;
        }
        let mut round = Vec::new();
        while round.len() < CHANGES as usize * READING {
            let lag = timeout(DEADLINE, lags.recv()).await;
            round.push(lag.expect("all get all").unwrap());
        }
        let [median, p99, longest] = quantiles(round);
        println!(
            "{} p50 {median:.2} ms, p99 {p99:.2} ms, longest {longest:.2} ms",
            ["without", "with   "][with]
        );
        figures[with].push([median, p99, longest]);
    }
    for (name, rounds) in ["without", "with"].into_iter().zip(&mut figures) {
        let of = |place: usize| {
            let mut figures: Vec<f64> = rounds.iter().map(|round| round[place]).collect();
            figures.sort_by(f64::total_cmp);
            figures[ROUNDS / 2]
        };
        println!(
            "| {name} | {:.1} ms | {:.1} ms | {:.1} ms |",
            of(0),
            of(1),
            of(2)
        );
    }
    println!("closed as too slow: {}", closing(&relay));
}
