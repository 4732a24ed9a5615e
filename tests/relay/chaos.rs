//! Chaos: writers storm the five tables, fifty clients watch over two relays, and every few seconds
//! something breaks. At the end nothing is lost, doubled or out of order, and every screen is right.
//!
//! `tests/chaos.sh [--minutes N] [--seed N]` runs it; the seed is printed, so that a run can be repeated.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tokio_postgres::error::SqlState;
use tokio_tungstenite::tungstenite::Message;

use crate::contract;
use crate::harness::{Cluster, Relay, connect};
use crate::proxy::{Proxy, Wire};

const CLIENTS: u64 = 50;
const WRITERS: u64 = 6;
const RECORDS: u64 = 4;

/// Each module and the column that counts its changes, as text.
pub const MODULES: [(&str, &str); 5] = [
    ("escrows", "notes"),
    ("listings", "description"),
    ("clients", "status"),
    ("leads", "notes"),
    ("appointments", "location"),
];

const TEAM: &str = "00000000-0000-4000-8000-0000000000aa";

#[derive(Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn record(module: u64, number: u64) -> String {
    format!("00000000-0000-4000-8000-{:012x}", module * 16 + number)
}

/// What all tasks share.
struct World {
    database: String,
    writing: AtomicBool,
    watching: AtomicBool,
    deliveries: AtomicU64,
    returns: AtomicU64,
    /// By reason.
    resyncs: Mutex<BTreeMap<String, u64>>,
    lost: AtomicU64,
    disorder: AtomicU64,
    complaints: Mutex<Vec<String>>,
    /// When each marker was written, and how many clients have yet to see it.
    markers: Mutex<HashMap<u64, (Instant, u64)>>,
    slowest: Mutex<Duration>,
}

async fn write(world: Arc<World>, mut random: Random) -> u64 {
    let mut committed = 0;
    let mut session = None;
    while world.writing.load(Ordering::Relaxed) {
        let client = match session.take() {
            Some(client) => client,
            None => match tokio_postgres::connect(&world.database, tokio_postgres::NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    client
                }
                Err(_) => {
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let mut sql = String::from("begin;");
        for _ in 0..=random.below(3) {
            let module = random.below(5);
            let (table, column) = MODULES[module as usize];
            let id = record(module, random.below(RECORDS));
            let update = format!(
                "update {table} set {column} = ({column}::int + 1)::text, version = version + 1 where id = '{id}';"
            );
            match random.below(6) {
                0 => sql.push_str(&format!("savepoint s; {update} rollback to s;")),
                _ => sql.push_str(&update),
            }
        }
        sql.push_str(if random.below(10) > 0 {
            "commit"
        } else {
            "rollback"
        });
        match client.batch_execute(&sql).await {
            Ok(()) => {
                committed += 1;
                session = Some(client);
            }
            // a deadlock, or a server that went away: what was not committed is nobody's
            Err(_) if !client.is_closed() && client.batch_execute("rollback").await.is_ok() => {
                session = Some(client);
            }
            Err(_) => {}
        }
        sleep(Duration::from_millis(2 + random.below(10))).await;
    }
    committed
}

/// What a client knows of a record.
#[derive(Default)]
struct Known {
    seq: u64,
    value: Option<String>,
    seen: HashSet<u64>,
}

struct Watcher {
    world: Arc<World>,
    rooms: Vec<String>,
    cursor: Option<String>,
    known: HashMap<(String, String), Known>,
    /// The last marker that it saw.
    marked: u64,
    addresses: [String; 2],
    random: Random,
    number: u64,
}

impl Watcher {
    async fn run(mut self) -> Watcher {
        while self.world.watching.load(Ordering::Relaxed) {
            let place = self.random.below(2) as usize;
            let address = self.addresses[place].clone();
            let attempt = timeout(
                Duration::from_secs(5),
                tokio_tungstenite::connect_async(format!("ws://{address}/ws")),
            );
            if let Ok(Ok((socket, _))) = attempt.await {
                self.world.returns.fetch_add(1, Ordering::Relaxed);
                self.watch(socket).await;
            }
            sleep(Duration::from_millis(50 + self.random.below(300))).await;
        }
        self
    }

    async fn watch(
        &mut self,
        mut socket: tokio_tungstenite::WebSocketStream<
            tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>,
        >,
    ) {
        let mut subscribe = json!({"type": "subscribe", "id": 1, "rooms": self.rooms});
        if let Some(cursor) = &self.cursor {
            subscribe["since"] = json!(cursor);
        }
        for frame in [json!({"type": "hello"}), subscribe] {
            if socket.send(Message::text(frame.to_string())).await.is_err() {
                return;
            }
        }
        let mut subscribed = false;
        while self.world.watching.load(Ordering::Relaxed) {
            // a heartbeat comes every second: silence is a dead connection
            let frame = match timeout(Duration::from_secs(4), socket.next()).await {
                Ok(Some(Ok(Message::Text(text)))) => contract::frame(&text),
                Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => continue,
                _ => return,
            };
            subscribed |= frame["type"] == "subscribed";
            if !frame["denied"].is_null() {
                let complaint = format!("client {} was denied its rooms: {frame}", self.number);
                self.world.complaints.lock().unwrap().push(complaint);
            }
            let told = match frame["type"].as_str() {
                Some("subscribed") => frame["resync"].as_array(),
                Some("resync") => frame["rooms"].as_array(),
                _ => None,
            };
            let first = self.cursor.is_none() && frame["type"] == "subscribed";
            if first || told.is_some_and(|told| !told.is_empty()) {
                let reason = |told: &Value| told["reason"] == "epoch_changed";
                let forget = told.is_some_and(|told| told.iter().any(reason));
                for told in told.into_iter().flatten() {
                    let mut resyncs = self.world.resyncs.lock().unwrap();
                    *resyncs.entry(told["reason"].to_string()).or_default() += 1;
                }
                if !self.fetch(forget).await {
                    return;
                }
            }
            if frame["seq"].is_string() {
                self.apply(&frame);
            }
            if subscribed && let Some(cursor) = frame["cursor"].as_str() {
                self.cursor = Some(cursor.to_owned());
            }
        }
    }

    /// Every record anew, from the CRM; false if it cannot be reached.
    async fn fetch(&mut self, forget: bool) -> bool {
        if forget {
            self.known.clear();
        }
        let connecting = tokio_postgres::connect(&self.world.database, tokio_postgres::NoTls);
        let Ok((client, connection)) = connecting.await else {
            self.cursor = None;
            return false;
        };
        tokio::spawn(connection);
        // of one moment: whoever knows the marker has read everything that was written before it, and whoever
        // has read the marker's record knows the marker
        let one_moment = "begin isolation level repeatable read read only";
        if client.batch_execute(one_moment).await.is_err() {
            self.cursor = None;
            return false;
        }
        let sql = format!("select first_name from leads where id = '{}'", record(3, 0));
        let Ok(marker) = client.query_one(&sql, &[]).await else {
            self.cursor = None;
            return false;
        };
        for (number, (table, column)) in MODULES.iter().enumerate() {
            let sql = format!(
                "select t.id::text, t.{column}, coalesce((select max(c.seq) from crm_relay.change c where c.module = '{table}' and c.record_id = t.id::text), 0) from {table} t"
            );
            let Ok(rows) = client.query(&sql, &[]).await else {
                self.cursor = None;
                return false;
            };
            for row in rows {
                let key = (MODULES[number].0.to_owned(), row.get(0));
                let known = self.known.entry(key).or_default();
                known.seq = known.seq.max(row.get::<_, i64>(2) as u64);
                known.value = row.get(1);
            }
        }
        if let Some(marker) = marker.get::<_, Option<String>>(0) {
            self.mark(marker.parse().unwrap());
        }
        true
    }

    fn apply(&mut self, event: &Value) {
        let module = event["module"].as_str().unwrap();
        let Some((_, column)) = MODULES.iter().find(|(name, _)| *name == module) else {
            return;
        };
        let key = (
            module.to_owned(),
            event["recordId"].as_str().unwrap().to_owned(),
        );
        let seq: u64 = event["seq"].as_str().unwrap().parse().unwrap();
        let known = self.known.entry(key).or_default();
        self.world.deliveries.fetch_add(1, Ordering::Relaxed);
        if seq <= known.seq {
            return;
        }
        known.seq = seq;
        known.seen.insert(seq);
        let (was, is) = (&event["previous"][column], &event["data"][column]);
        if let Some(value) = &known.value
            && was.as_str() != Some(value)
        {
            let (was, value) = (was.as_str().unwrap_or("0"), value.as_str());
            let jump = was.parse::<i64>().unwrap_or(0) - value.parse::<i64>().unwrap_or(0);
            let kind = if jump > 0 {
                &self.world.lost
            } else {
                &self.world.disorder
            };
            kind.fetch_add(1, Ordering::Relaxed);
            let complaint = format!("client {} knew {value}: {event}", self.number);
            self.world.complaints.lock().unwrap().push(complaint);
        }
        known.value = is.as_str().map(str::to_owned);
        if let Some(marker) = event["data"]["first_name"].as_str() {
            self.mark(marker.parse().unwrap());
        }
    }

    /// Sees a marker, and all before it.
    fn mark(&mut self, marker: u64) {
        if marker <= self.marked {
            return;
        }
        self.marked = marker;
        let mut markers = self.world.markers.lock().unwrap();
        let done = |(written, left): &mut (Instant, u64)| {
            *left = left.saturating_sub(1);
            (*left == 0).then(|| written.elapsed())
        };
        if let Some(lag) = markers.get_mut(&marker).and_then(done) {
            let mut slowest = self.world.slowest.lock().unwrap();
            *slowest = (*slowest).max(lag);
            markers.remove(&marker);
        }
    }
}

pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

#[ignore = "tests/chaos.sh runs it, for as long as it is told"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_chaos_nothing_is_lost_doubled_or_out_of_order() {
    let seconds = setting("CHAOS_SECONDS", 120);
    let now = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap()
        .as_secs();
    let seed = setting("CHAOS_SEED", now);
    println!("chaos of {seconds} s, seed {seed}");
    let mut random = Random::new(seed);

    let cluster = Cluster::start().await;
    let session = connect(&cluster.url()).await;
    session
        .batch_execute(&format!(
            "insert into teams (id, name) values ('{TEAM}', 'A')"
        ))
        .await
        .unwrap();
    for (module, (table, column)) in MODULES.iter().enumerate() {
        for number in 0..RECORDS {
            let id = record(module as u64, number);
            session
                .batch_execute(&format!(
                    "insert into {table} (id, team_id, {column}) values ('{id}', '{TEAM}', '0')"
                ))
                .await
                .unwrap();
        }
    }
    drop(session);

    let towards = format!("127.0.0.1:{}", cluster.port());
    let databases = [
        Proxy::start(towards.clone()).await,
        Proxy::start(towards).await,
    ];
    let url = |proxy: &Proxy| format!("postgresql://postgres@127.0.0.1:{}/postgres", proxy.port());
    let start = async |number: usize, listen: Option<String>| {
        let relay = Relay::begin(&url(&databases[number]), |command| {
            command
                .env("RELAY_HEARTBEAT", "1s")
                .env("RELAY_LOG", "warn");
            if let Some(listen) = listen {
                command.env("RELAY_LISTEN", listen);
            }
        });
        // how quick it is is measured at the end; here it only has to come back
        relay.begun_within(Duration::from_secs(120)).await
    };
    let mut relays = [Some(start(0, None).await), Some(start(1, None).await)];
    let listen = relays
        .each_ref()
        .map(|relay| relay.as_ref().unwrap().address().to_owned());
    let fronts = [
        Proxy::start(listen[0].clone()).await,
        Proxy::start(listen[1].clone()).await,
    ];

    let world = Arc::new(World {
        database: cluster.url(),
        writing: AtomicBool::new(true),
        watching: AtomicBool::new(true),
        deliveries: AtomicU64::new(0),
        returns: AtomicU64::new(0),
        resyncs: Mutex::default(),
        lost: AtomicU64::new(0),
        disorder: AtomicU64::new(0),
        complaints: Mutex::default(),
        markers: Mutex::default(),
        slowest: Mutex::default(),
    });
    let marker_record = record(3, 0);
    let watchers: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let mut rooms: Vec<String> = (0..5)
                .map(|module| {
                    format!(
                        "{}:{}",
                        MODULES[module as usize].0,
                        record(module, random.below(RECORDS))
                    )
                })
                .collect();
            if number % 3 == 0 {
                rooms = vec![format!("team:{TEAM}")];
            }
            rooms.push(format!("leads:{marker_record}"));
            tokio::spawn(
                Watcher {
                    world: world.clone(),
                    rooms,
                    cursor: None,
                    known: HashMap::new(),
                    marked: 0,
                    addresses: fronts.each_ref().map(Proxy::address),
                    random: Random::new(seed + 100 + number),
                    number,
                }
                .run(),
            )
        })
        .collect();
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| tokio::spawn(write(world.clone(), Random::new(seed + number))))
        .collect();

    let mut faults: HashMap<&str, u32> = HashMap::new();
    let until = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < until {
        let pause = Duration::from_millis(1000 + random.below(3000));
        sleep(pause).await;
        let which = random.below(2) as usize;
        let a_while = Duration::from_millis(500 + random.below(5000));
        let fault = match random.below(11) {
            0 => {
                drop(relays[which].take());
                sleep(a_while / 4).await;
                relays[which] = Some(start(which, Some(listen[which].clone())).await);
                "relay killed"
            }
            1 => {
                if let Some(relay) = relays[which].take() {
                    relay.signal("TERM");
                    relay.ended_within(Duration::from_secs(120)).await;
                }
                relays[which] = Some(start(which, Some(listen[which].clone())).await);
                "relay stopped"
            }
            2 => {
                cluster.crash();
                sleep(a_while / 4).await;
                cluster.start_again();
                "Postgres crashed"
            }
            3 => {
                if let Ok((client, connection)) =
                    tokio_postgres::connect(&world.database, tokio_postgres::NoTls).await
                {
                    tokio::spawn(connection);
                    let end = "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'crm-relay %'";
                    // the server may be on its way up
                    let _ = client.batch_execute(end).await;
                }
                "sessions terminated"
            }
            wire => {
                let (proxies, place) = if wire % 2 == 0 {
                    (&databases, "Postgres")
                } else {
                    (&fronts, "clients")
                };
                let kind =
                    [Wire::Cut, Wire::Frozen, Wire::Slow, Wire::Split][random.below(4) as usize];
                proxies[which].set(kind);
                sleep(a_while).await;
                proxies[which].set(Wire::Whole);
                match (kind, place) {
                    (Wire::Cut, "Postgres") => "wire to Postgres cut",
                    (Wire::Frozen, "Postgres") => "wire to Postgres frozen",
                    (Wire::Slow, "Postgres") => "wire to Postgres slowed",
                    (_, "Postgres") => "wire to Postgres split",
                    (Wire::Cut, _) => "wire to clients cut",
                    (Wire::Frozen, _) => "wire to clients frozen",
                    (Wire::Slow, _) => "wire to clients slowed",
                    _ => "wire to clients split",
                }
            }
        };
        *faults.entry(fault).or_default() += 1;
        // how long until all know what is written now
        let marker = u64::from(faults.values().sum::<u32>());
        world
            .markers
            .lock()
            .unwrap()
            .insert(marker, (Instant::now(), CLIENTS));
        let mark = format!(
            "update leads set first_name = '{marker}', notes = (notes::int + 1)::text where id = '{marker_record}'"
        );
        if let Ok((client, connection)) =
            tokio_postgres::connect(&world.database, tokio_postgres::NoTls).await
        {
            tokio::spawn(connection);
            // the writers' transactions may deadlock with this one, as a CRM's may
            let mut marked = client.batch_execute(&mark).await;
            while matches!(&marked, Err(error) if error.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED))
            {
                marked = client.batch_execute(&mark).await;
            }
            marked.expect("the CRM writes on whatever the relay does");
        }
    }

    world.writing.store(false, Ordering::Relaxed);
    let mut committed = 0;
    for writer in writers {
        committed += writer.await.unwrap();
    }
    // the last word on each record, which everybody must come to know
    let session = connect(&cluster.url()).await;
    let healed = Instant::now();
    sleep(Duration::from_secs(1)).await;
    let last = u64::MAX >> 1;
    world
        .markers
        .lock()
        .unwrap()
        .insert(last, (Instant::now(), CLIENTS));
    session
        .batch_execute(&format!("update leads set first_name = '{last}', notes = (notes::int + 1)::text where id = '{marker_record}'"))
        .await
        .unwrap();
    let everybody = async {
        while world.markers.lock().unwrap().contains_key(&last) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let in_time = timeout(Duration::from_secs(60), everybody).await.is_ok();
    let right_again = healed.elapsed();
    world.watching.store(false, Ordering::Relaxed);

    let mut wrong = Vec::new();
    let mut table: HashMap<(String, String), String> = HashMap::new();
    let mut journal: HashMap<(String, String), HashSet<u64>> = HashMap::new();
    for (name, column) in MODULES {
        for row in session
            .query(&format!("select id::text, {column} from {name}"), &[])
            .await
            .unwrap()
        {
            table.insert((name.to_owned(), row.get(0)), row.get(1));
        }
    }
    let changes = session
        .query(
            "select module, record_id, seq from crm_relay.change where action = 'updated'",
            &[],
        )
        .await
        .unwrap();
    for row in &changes {
        let key = (row.get(0), row.get(1));
        journal
            .entry(key)
            .or_default()
            .insert(row.get::<_, i64>(2) as u64);
    }
    for watcher in watchers {
        let watcher = watcher.await.unwrap();
        for (key, value) in &table {
            let room = format!("{}:{}", key.0, key.1);
            let watches = watcher.rooms.contains(&room) || watcher.rooms[0].starts_with("team:");
            let Some(known) = watcher.known.get(key).filter(|_| watches) else {
                continue;
            };
            if known.value.as_ref() != Some(value) {
                wrong.push(format!(
                    "client {}: {room} is {:?}, not {value}",
                    watcher.number, known.value
                ));
            }
            let unknown = |seq: &&u64| !journal.get(key).is_some_and(|known| known.contains(seq));
            if let Some(seq) = known.seen.iter().find(unknown) {
                wrong.push(format!(
                    "client {}: {room} was told change {seq}, which never was",
                    watcher.number
                ));
            }
        }
    }
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let mut faults: Vec<_> = faults.into_iter().collect();
    faults.sort();
    println!("faults: {faults:?}");
    println!(
        "transactions {committed}, changes {}, deliveries {}, returns {}, rooms fetched anew {:?}",
        changes.len(),
        count(&world.deliveries),
        count(&world.returns),
        world.resyncs.lock().unwrap()
    );
    println!(
        "lost {}, out of order {}, wrong at the end {}",
        count(&world.lost),
        count(&world.disorder),
        wrong.len()
    );
    println!(
        "longest until everybody knew what was written after a fault: {:.1} s; after the last one: {:.1} s",
        world.slowest.lock().unwrap().as_secs_f64(),
        right_again.as_secs_f64()
    );
    let complaints = world.complaints.lock().unwrap();
    assert!(
        complaints.is_empty(),
        "{}",
        complaints[..complaints.len().min(5)].join("\n")
    );
    assert!(
        wrong.is_empty(),
        "{}",
        wrong[..wrong.len().min(5)].join("\n")
    );
    assert!(in_time, "not everybody knew the last change in time");
}
