//! A crowd: many clients that come back at once, as after a restart; how long it takes until all are live, how
//! often Postgres is asked for them, and what memory they take once they are silent. Figures for tests/README.md,
//! which tells how to run it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;

use crate::harness::{Client, Database, Relay, masked, now, token, token_of};
use crate::sizing::used;

/// From so many addresses they come.
const ADDRESSES: usize = 100;

/// As many cursors as clients of a busy relay hold between two heartbeats.
const CURSORS: usize = 100;

/// How long one that was turned away waits.
const BEFORE_AGAIN: Duration = Duration::from_millis(100);

/// A setting of the measurement, by its environment variable.
fn given(name: &str, otherwise: usize) -> usize {
    std::env::var(name).map_or(otherwise, |value| value.parse().expect("a number"))
}

/// The relay's share of memory, in KiB (proc(5), smaps_rollup).
fn share(relay: &Relay) -> u64 {
    let path = format!("/proc/{}/smaps_rollup", relay.pid());
    let rollup = std::fs::read_to_string(path).unwrap();
    let line = rollup.lines().find(|line| line.starts_with("Pss:"));
    let size = line.and_then(|line| line.split_whitespace().nth(1));
    size.unwrap().parse().unwrap()
}

fn id(kind: usize, number: usize) -> String {
    format!("00000000-0000-4000-8{kind:03}-{number:012}")
}

/// One that comes back: in which rooms, with which token, and where it was.
struct Comer {
    from: SocketAddr,
    token: String,
    rooms: Vec<String>,
    since: Option<String>,
}

impl Comer {
    /// Comes, again where it is turned away, until it is live.
    async fn come(&self, to: SocketAddr, turned_away: &AtomicUsize) -> TcpStream {
        loop {
            if let Some(stream) = self.try_once(to).await {
                return stream;
            }
            turned_away.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(BEFORE_AGAIN).await;
        }
    }

    async fn try_once(&self, to: SocketAddr) -> Option<TcpStream> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(self.from).unwrap();
        let mut stream = socket.connect(to).await.ok()?;
        let handshake = format!(
            "GET /ws HTTP/1.1\r\nHost: {to}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36\r\n\
             Accept-Language: en-US,en;q=0.9\r\nCache-Control: no-cache\r\n\r\n"
        );
        stream.write_all(handshake.as_bytes()).await.ok()?;
        told(&mut stream, " 101 ").await?;
        let hello = json!({"type": "hello", "token": self.token});
        let hello = masked(0x1, hello.to_string().as_bytes());
        stream.write_all(&hello).await.ok()?;
        told(&mut stream, "\"welcome\"").await?;
        let mut subscribe = json!({"type": "subscribe", "id": 1, "rooms": self.rooms});
        if let Some(since) = &self.since {
            subscribe["since"] = json!(since);
        }
        let subscribe = masked(0x1, subscribe.to_string().as_bytes());
        stream.write_all(&subscribe).await.ok()?;
        let answer = told(&mut stream, "\"subscribed\"").await?;
        assert!(!answer.contains("denied"), "{answer}");
        Some(stream)
    }
}

/// What is told until this is among it; None at the end.
async fn told(stream: &mut TcpStream, what: &str) -> Option<String> {
    let mut text = Vec::new();
    let mut some = [0; 1024];
    loop {
        let count = stream
            .read(&mut some)
            .await
            .ok()
            .filter(|count| *count > 0)?;
        text.extend_from_slice(&some[..count]);
        let so_far = String::from_utf8_lossy(&text);
        if so_far.contains(what) {
            return Some(so_far.into_owned());
        }
    }
}

async fn guarded(database: &Database) -> Relay {
    Relay::guarded(&database.url(), |command| {
        command
            .env("RELAY_MAX_CONNECTIONS", "30000")
            .env("RELAY_MAX_CONNECTIONS_PER_ADDRESS", "30000")
            .env("RELAY_MAX_CONNECTIONS_PER_USER", "30000")
            .env(
                "RELAY_LOG",
                std::env::var("RELAY_LOG").unwrap_or("warn".to_owned()),
            );
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "a measurement"]
async fn measure_a_crowd_that_comes_back() {
    let clients = given("CROWD", 10_000);
    let users = given("CROWD_USERS", clients);
    let rooms = given("CROWD_ROOMS", 1);
    let resume = given("CROWD_RESUMES", 1) > 0;
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let database = Database::create().await;
    let insert = format!(
        "insert into users (id, email, first_name, last_name, role, is_active)
         select ('00000000-0000-4000-8001-' || lpad(n::text, 12, '0'))::uuid, 'u' || n, '', '', 'agent', true
           from generate_series(0, {users} - 1) n;
         insert into leads (id, owner_id, first_name)
         select ('00000000-0000-4000-8' || lpad(k::text, 3, '0') || '-' || lpad(n::text, 12, '0'))::uuid,
                ('00000000-0000-4000-8001-' || lpad((n % {users})::text, 12, '0'))::uuid, ''
           from generate_series(0, {clients} - 1) n, generate_series(2, 1 + {rooms}) k;
         analyze"
    );
    database.execute(&insert).await;

    let relay = guarded(&database).await;
    let mut cursors = Vec::new();
    let mut one = Client::of(&relay, &id(1, 0)).await;
    for step in 0..CURSORS {
        let changed = id(2, step % clients);
        let edit = format!("update leads set notes = '{step}' where id = '{changed}'");
        database.execute(&edit).await;
        one.everything(database.client()).await;
        let pong = one.ping().await;
        cursors.push(pong["cursor"].as_str().unwrap().to_owned());
    }
    drop(one);
    relay.signal("TERM");
    assert!(relay.stop_signalled().await.success());
    database
        .execute("update leads set notes = 'while it was away' where ctid in (select ctid from leads limit 100)")
        .await;
    let libraries = database.value("show shared_preload_libraries").await;
    let counts = libraries.contains("pg_stat_statements");
    if counts {
        database
            .execute("create extension if not exists pg_stat_statements")
            .await;
    }

    let comers: Vec<Comer> = (0..clients)
        .map(|number| Comer {
            from: SocketAddr::new(
                IpAddr::V4(Ipv4Addr::new(127, 0, 1, (number % ADDRESSES) as u8)),
                0,
            ),
            token: match given("CROWD_CLAIMS", 1) > 0 {
                false => token(&id(1, number % users)),
                true => token_of(&json!({
                    "id": id(1, number % users), "email": format!("u{}@crm.example", number % users),
                    "role": "agent", "iat": now(), "exp": now() + 900,
                })),
            },
            rooms: (2..2 + rooms)
                .map(|kind| format!("leads:{}", id(kind, number)))
                .collect(),
            since: resume.then(|| cursors[number * CURSORS / clients].clone()),
        })
        .collect();
    let relay = guarded(&database).await;
    let alone = share(&relay);
    if counts {
        database.execute("select pg_stat_statements_reset()").await;
    }
    let to: SocketAddr = relay.address().parse().unwrap();
    let turned_away = Arc::new(AtomicUsize::new(0));
    let at_once = Arc::new(Semaphore::new(given("CROWD_AT_ONCE", clients)));
    let began = Instant::now();
    let coming: Vec<_> = comers
        .into_iter()
        .map(|comer| {
            let (turned_away, at_once) = (turned_away.clone(), at_once.clone());
            tokio::spawn(async move {
                let _place = at_once.acquire().await;
                let stream = comer.come(to, &turned_away).await;
                (stream, began.elapsed())
            })
        })
        .collect();
    let mut open = Vec::new();
    let mut times = Vec::new();
    for one in coming {
        let (stream, time) = one.await.unwrap();
        open.push(stream);
        times.push(time);
    }
    times.sort_unstable();
    println!(
        "{clients} clients of {users} users, {rooms} rooms each, {}: half live after {:.2} s, all after {:.2} s; {} times turned away",
        if resume {
            "with a cursor"
        } else {
            "without a cursor"
        },
        times[clients / 2].as_secs_f64(),
        times[clients - 1].as_secs_f64(),
        turned_away.load(Ordering::Relaxed)
    );
    println!(
        "{:.2} s of processor for the relay",
        used(&relay).as_secs_f64()
    );
    let full = share(&relay);
    println!(
        "memory: {alone} KiB alone, {full} KiB with them: {:.2} KiB each",
        (full - alone) as f64 / clients as f64
    );
    if counts {
        let statements = database
            .client()
            .query(
                "select calls, round(total_exec_time)::bigint, regexp_replace(left(query, 110), '\\s+', ' ', 'g')
                   from pg_stat_statements s join pg_database d on d.oid = s.dbid
                  where d.datname = current_database() and toplevel order by calls desc limit 14",
                &[],
            )
            .await
            .unwrap();
        for row in statements {
            let (calls, time, query): (i64, i64, String) = (row.get(0), row.get(1), row.get(2));
            println!("{calls:>6} {time:>6} ms  {query}");
        }
    }
    if let Ok(seconds) = std::env::var("CROWD_STAYS") {
        println!("relay {} stays", relay.pid());
        tokio::time::sleep(Duration::from_secs(seconds.parse().unwrap())).await;
        println!(
            "memory after: {} KiB: {:.2} each",
            share(&relay),
            (share(&relay) - alone) as f64 / clients as f64
        );
    }
    println!("{} lines logged", relay.logs().lines().count());
}
