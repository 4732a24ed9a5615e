//! Soak: an hour of a working day. Writers at a steady pace, clients that stay, clients that come and
//! go in every way, a journal whose ring turns every few minutes. At the end every screen of those who
//! stayed is right, and the relay's memory is what it was.
//!
//! `tests/soak.sh [--minutes N]` runs it, prints a line a minute and leaves `soak.csv` and `soak.svg`.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{interval, sleep, timeout, timeout_at};
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::error::SqlState;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::chaos::{MODULES, Random, setting};
use crate::harness::{DEADLINE, Database, Relay, connect};
use figures::{HEADER, Sample, Watch, by_quarters, cpu, mean, number, open_files, plot};

mod figures;

/// Clients that stay to the end, and are compared with the tables.
const STAYING: u64 = 300;
/// Clients that come and go.
const PASSING: u64 = 300;
const WRITERS: u64 = 6;
/// Records of each module that stay, some of which change all the time.
const RECORDS: u64 = 200;
const HOT: u64 = 4;
const TEAMS: u64 = 10;
const USERS: u64 = 20;
/// Leads whose updates carry the moment at which they were written, by turns, so seldom each that
/// nothing throttles them.
const PROBES: u64 = 100;
const PROBE_EVERY: Duration = Duration::from_millis(50);
/// Leads of one more team that all change at once, too many for a scope room.
const FLOOD: u64 = 600;
const FLOOD_EVERY: Duration = Duration::from_secs(60);
const SAMPLE_EVERY: Duration = Duration::from_secs(5);
/// How much more memory than in the second quarter there may be in the last one.
const TOLERANCE: f64 = 1.05;

/// Probes are changed by nobody else, or the throttle would hold them back.
const NO_PROBE: &str = "id::text not like '0000000d%'";
/// Sessions that the relay opens when somebody asks for what was.
const SESSIONS: usize = 4;

const LEADS: u64 = 3;

fn id(kind: u64, number: u64) -> String {
    format!("{kind:08x}-0000-4000-8000-{number:012x}")
}

fn record(module: u64, number: u64) -> String {
    id(module, number)
}

fn team(number: u64) -> String {
    id(0xa, number)
}

fn user(number: u64) -> String {
    id(0xb, number)
}

fn contact(number: u64) -> String {
    id(0xc, number)
}

fn probe(number: u64) -> String {
    id(0xd, number)
}

/// What all tasks share.
struct World {
    database: String,
    relay: String,
    began: Instant,
    writing: AtomicBool,
    watching: AtomicBool,
    connected: AtomicU64,
    visits: AtomicU64,
    changes: AtomicU64,
    deadlocks: AtomicU64,
    deliveries: AtomicU64,
    resumes: AtomicU64,
    resyncs: AtomicU64,
    snapshots: AtomicU64,
    ended_by_relay: AtomicU64,
    complaints: Mutex<Vec<String>>,
    /// Since the last sample, from before the writer's statement to the client, in microseconds.
    lags: Mutex<Vec<u32>>,
}

impl World {
    fn complain(&self, complaint: String) {
        self.complaints.lock().unwrap().push(complaint);
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    fn goes_on(&self) -> bool {
        self.watching.load(Ordering::Relaxed)
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// One user of the CRM after another, at a steady pace.
async fn write(world: Arc<World>, mut random: Random) {
    let session = connect(&world.database).await;
    let mut own = Vec::new();
    while world.writing.load(Ordering::Relaxed) {
        let (sql, rolled_back) = transaction(&mut random, &mut own);
        match session.simple_query(&sql).await {
            Ok(answers) => {
                let rows = answers.iter().map(|answer| match answer {
                    SimpleQueryMessage::CommandComplete(rows) => *rows,
                    _ => 0,
                });
                let rows = rows.sum::<u64>() - rolled_back;
                world.changes.fetch_add(rows, Ordering::Relaxed);
            }
            Err(error) => {
                assert_eq!(
                    error.code(),
                    Some(&SqlState::T_R_DEADLOCK_DETECTED),
                    "{error:?}\n{sql}"
                );
                session.batch_execute("rollback").await.unwrap();
                count(&world.deadlocks);
            }
        }
        sleep(Duration::from_millis(20 + random.below(40))).await;
    }
}

/// What somebody does in the CRM, and how many of its rows are rolled back.
fn transaction(random: &mut Random, own: &mut Vec<(usize, String)>) -> (String, u64) {
    let kind = random.below(100);
    let sql = match kind {
        0..50 => update(random),
        50..70 => {
            let updates: Vec<_> = (0..2 + random.below(5)).map(|_| update(random)).collect();
            format!("begin; {} commit", updates.concat())
        }
        70..75 => {
            let (kept, undone) = (update(random), update(random));
            let sql = format!("begin; {kept} savepoint s; {undone} rollback to s; commit");
            return (sql, 1);
        }
        75..80 => return (format!("begin; {} rollback", update(random)), 1),
        80..88 if own.len() > 40 => {
            let (table, id) = own.remove(0);
            format!("delete from {} where id = '{id}'", MODULES[table].0)
        }
        80..88 => {
            let module = random.below(5);
            let id = uuid::Uuid::new_v4().to_string();
            own.push((module as usize, id.clone()));
            insert(module, &id, &team(random.below(TEAMS)), random)
        }
        88..94 => {
            let contact = contact(random.below(RECORDS));
            format!(
                "update contacts set notes = (notes::int + 1)::text, phone = '{}' where id = '{contact}'",
                random.below(1_000_000)
            )
        }
        94..96 => {
            let (table, column) = MODULES[random.below(5) as usize];
            let (from, to) = (team(random.below(TEAMS)), team(random.below(TEAMS)));
            format!(
                "update {table} set team_id = '{to}', {column} = ({column}::int + 1)::text where id = (select id from {table} where team_id = '{from}' and {NO_PROBE} limit 1)"
            )
        }
        96..98 => {
            let escrow = record(0, random.below(RECORDS));
            format!(
                "update escrows set notes = (notes::int + 1)::text, documents = (select jsonb_agg(md5(random()::text)) from generate_series(1, 500)) where id = '{escrow}'"
            )
        }
        _ => {
            let (table, column) = MODULES[random.below(5) as usize];
            let team = team(random.below(TEAMS));
            format!(
                "update {table} set {column} = ({column}::int + 1)::text, is_private = false where team_id = '{team}' and {NO_PROBE}"
            )
        }
    };
    (sql, 0)
}

fn update(random: &mut Random) -> String {
    let module = random.below(5);
    let (table, column) = MODULES[module as usize];
    let records = if random.below(3) == 0 { HOT } else { RECORDS };
    let id = record(module, random.below(records));
    format!(
        "update {table} set {column} = ({column}::int + 1)::text, version = version + 1, last_modified_by = '{}', updated_at = now() where id = '{id}';",
        user(random.below(USERS))
    )
}

fn insert(module: u64, id: &str, team: &str, random: &mut Random) -> String {
    let (table, column) = MODULES[module as usize];
    let user = user(random.below(USERS));
    format!(
        "insert into {table} (id, team_id, user_id, {column}) values ('{id}', '{team}', '{user}', '0');"
    )
}

/// Writes probes, and now and then a flood.
async fn probes(world: Arc<World>) {
    let session = connect(&world.database).await;
    let mut tick = interval(PROBE_EVERY);
    let mut flooded = Instant::now();
    for number in (0..PROBES).cycle() {
        tick.tick().await;
        if !world.writing.load(Ordering::Relaxed) {
            return;
        }
        let mark = format!(
            "update leads set first_name = '{}', notes = (notes::int + 1)::text where id = '{}'",
            world.now(),
            probe(number)
        );
        session.batch_execute(&mark).await.unwrap();
        count(&world.changes);
        if flooded.elapsed() >= FLOOD_EVERY {
            flooded = Instant::now();
            let flood = format!(
                "update leads set notes = (notes::int + 1)::text where team_id = '{}'",
                team(TEAMS)
            );
            session.batch_execute(&flood).await.unwrap();
            world.changes.fetch_add(FLOOD, Ordering::Relaxed);
        }
    }
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn arrive(world: &World, hello: Value) -> Socket {
    let (mut socket, _) = tokio_tungstenite::connect_async(format!("ws://{}/ws", world.relay))
        .await
        .expect("a handshake");
    socket.send(Message::text(hello.to_string())).await.unwrap();
    count(&world.connected);
    socket
}

/// What a client that stays knows: by module, record and part, its last change and its counter.
type Known = HashMap<(String, String, Option<String>), (u64, Option<String>)>;

/// A client that stays.
struct Staying {
    number: u64,
    rooms: Vec<String>,
    known: Mutex<Known>,
}

impl Staying {
    fn new(number: u64, random: &mut Random) -> Staying {
        let team = format!("team:{}", team(number % TEAMS));
        let rooms = match number % 6 {
            0 => vec![team],
            3 => vec![
                format!("{team}/{}", MODULES[random.below(5) as usize].0),
                format!("user:{}", user(random.below(USERS))),
            ],
            _ => {
                let mut rooms = vec![format!("leads:{}", probe(random.below(PROBES)))];
                rooms.extend((0..5).map(|_| room(random)));
                rooms
            }
        };
        Staying {
            number,
            rooms,
            known: Mutex::default(),
        }
    }

    async fn subscribe(&self, world: &World) -> Socket {
        let mut socket = arrive(world, json!({"type": "hello"})).await;
        let subscribe = json!({"type": "subscribe", "id": 1, "rooms": self.rooms});
        let subscribe = Message::text(subscribe.to_string());
        socket.send(subscribe).await.unwrap();
        for answer in ["welcome", "subscribed"] {
            let frame = timeout(DEADLINE, socket.next()).await.expect("in time");
            let frame = frame.expect("an answer").unwrap().into_text().unwrap();
            assert!(frame.contains(answer), "{frame}");
        }
        socket
    }

    async fn stay(self: Arc<Staying>, world: Arc<World>, mut socket: Socket) {
        while world.goes_on() {
            match timeout(Duration::from_secs(60), socket.next()).await {
                Ok(Some(Ok(Message::Text(text)))) => {
                    let frame: Value = serde_json::from_str(&text).expect("frames are JSON");
                    if frame["seq"].is_string() {
                        self.apply(&world, &frame);
                    } else if frame["type"] != "heartbeat" {
                        world.complain(format!("client {} was told {text}", self.number));
                    }
                }
                Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {}
                other => {
                    world.complain(format!("client {} was left: {other:?}", self.number));
                    break;
                }
            }
        }
        world.connected.fetch_sub(1, Ordering::Relaxed);
    }

    fn apply(&self, world: &World, event: &Value) {
        count(&world.deliveries);
        let text = |name: &str| event[name].as_str().map(str::to_owned);
        let (module, part) = (text("module").unwrap(), text("part"));
        let column = match &part {
            Some(_) => "notes",
            None => {
                let mut modules = MODULES.iter();
                modules.find(|(name, _)| *name == module).unwrap().1
            }
        };
        let seq: u64 = text("seq").unwrap().parse().unwrap();
        let is = event["data"][column].as_str().map(str::to_owned);
        let is_part = part.is_some();
        let mut known = self.known.lock().unwrap();
        let key = (module, text("recordId").unwrap(), part);
        let action = text("action").unwrap();
        if action == "deleted" {
            // out of sight, with its parts
            let contacts = (key.0.clone(), key.1.clone(), Some("contacts".to_owned()));
            known.remove(&contacts);
        }
        let (last, value) = known.entry(key).or_default();
        let follows = match action.as_str() {
            "updated" => *value == event["previous"][column].as_str().map(str::to_owned),
            "created" => value.is_none(),
            _ => value.is_some(),
        };
        // of a part that came into sight with its record nothing was said yet
        let is_new = is_part && value.is_none();
        if seq <= *last || !(follows || is_new) {
            world.complain(format!(
                "client {} knew {value:?} of {last}: {event}",
                self.number
            ));
        }
        *last = seq;
        *value = is.filter(|_| action != "deleted");
        if let Some(written) = event["data"]["first_name"].as_str()
            && action == "updated"
        {
            let lag = world.now() - written.parse::<u64>().unwrap();
            world.lags.lock().unwrap().push(lag as u32);
        }
    }

    /// Where it knows something else than the tables hold.
    fn wrong(&self, table: &[Row]) -> Option<String> {
        let known = self.known.lock().unwrap();
        let mut visible = 0;
        for row in table {
            let key = (row.module.clone(), row.id.clone(), row.part.clone());
            let value = known.get(&key).and_then(|(_, value)| value.as_ref());
            let sees = row.rooms.iter().any(|room| self.rooms.contains(room));
            visible += usize::from(sees && row.part.is_none());
            let right = match (sees, row.part.is_some()) {
                (false, _) => value.is_none(),
                (true, false) => value == Some(&row.value),
                (true, true) => value.is_none_or(|value| *value == row.value),
            };
            if !right {
                return Some(format!("client {}: {value:?} for {row:?}", self.number));
            }
        }
        let present = |(key, (_, value)): &(&(_, _, Option<_>), &(u64, Option<_>))| {
            key.2.is_none() && value.is_some()
        };
        let knows = known.iter().filter(present).count();
        (knows != visible)
            .then(|| format!("client {} knows {knows} records of {visible}", self.number))
    }
}

/// A record, or a part of one, as it is.
#[derive(Debug)]
struct Row {
    module: String,
    id: String,
    part: Option<String>,
    rooms: Vec<String>,
    value: String,
}

async fn table(session: &tokio_postgres::Client) -> Vec<Row> {
    let contacts = (
        "clients t join contacts c on c.id = t.contact_id",
        "c.notes",
    );
    let own = MODULES.map(|(name, column)| (name, None, format!("{name} t"), column));
    let parts = [(
        "clients",
        Some("contacts"),
        contacts.0.to_owned(),
        contacts.1,
    )];
    let mut rows = Vec::new();
    for (module, part, from, column) in own.into_iter().chain(parts) {
        let sql =
            format!("select t.id::text, t.team_id::text, t.user_id::text, {column} from {from}");
        for row in session.query(&sql, &[]).await.unwrap() {
            let (id, team, user): (String, String, String) = (row.get(0), row.get(1), row.get(2));
            rows.push(Row {
                rooms: vec![
                    format!("{module}:{id}"),
                    format!("team:{team}"),
                    format!("team:{team}/{module}"),
                    format!("user:{user}"),
                ],
                module: module.to_owned(),
                id,
                part: part.map(str::to_owned),
                value: row.get(3),
            });
        }
    }
    rows
}

fn room(random: &mut Random) -> String {
    let module = random.below(5);
    format!(
        "{}:{}",
        MODULES[module as usize].0,
        record(module, random.below(RECORDS))
    )
}

/// A client that comes, looks around, goes, and comes again.
async fn pass(world: Arc<World>, mut random: Random) {
    let mut cursor: Option<String> = None;
    while world.goes_on() {
        count(&world.visits);
        visit(&world, &mut random, &mut cursor).await;
        world.connected.fetch_sub(1, Ordering::Relaxed);
        let away = match random.below(30) {
            // longer than the journal reaches back
            0 => 200_000,
            _ => 100 + random.below(5000),
        };
        let back = Instant::now() + Duration::from_millis(away);
        while world.goes_on() && Instant::now() < back {
            sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn visit(world: &World, random: &mut Random, cursor: &mut Option<String>) {
    let transactions = random.below(2) == 0;
    let hello = json!({"type": "hello", "transactions": transactions});
    let mut socket = arrive(world, hello).await;
    let leaves = tokio::time::Instant::now() + Duration::from_millis(500 + random.below(30_000));
    while world.goes_on() && tokio::time::Instant::now() < leaves {
        let said = say(world, random, cursor);
        if socket.send(Message::text(said.to_string())).await.is_err() {
            break;
        }
        let until =
            leaves.min(tokio::time::Instant::now() + Duration::from_millis(random.below(10_000)));
        while let Ok(heard) = timeout_at(until, socket.next()).await {
            match heard {
                Some(Ok(Message::Text(text))) => hear(world, &text, cursor),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                _ => {
                    count(&world.ended_by_relay);
                    return;
                }
            }
        }
    }
    match random.below(20) {
        0..8 => {
            // politely
            let _ = socket.close(None).await;
            while let Ok(Some(Ok(_))) = timeout(DEADLINE, socket.next()).await {}
        }
        // not reading any more for a while; one in a while for so long that the relay ends it
        8..12 => sleep(Duration::from_secs(1 + random.below(10))).await,
        12 => {
            let _ = timeout(Duration::from_secs(90), async {
                while world.goes_on() {
                    sleep(Duration::from_secs(1)).await;
                }
            })
            .await;
        }
        // without a word
        _ => {}
    }
}

/// Something to say to the relay.
fn say(world: &World, random: &mut Random, cursor: &Option<String>) -> Value {
    let rooms: Vec<String> = (0..=random.below(10)).map(|_| room(random)).collect();
    match random.below(8) {
        0 | 1 => {
            count(&world.snapshots);
            json!({"type": "subscribe", "id": 1, "rooms": rooms, "snapshot": true})
        }
        2 => {
            let team = team(random.below(TEAMS + 1));
            json!({"type": "subscribe", "id": 2, "rooms": [format!("team:{team}")]})
        }
        3 => json!({"type": "unsubscribe", "id": 3, "rooms": rooms}),
        4 => {
            json!({"type": "unsubscribe", "id": 4, "rooms": (0..=TEAMS).map(|number| format!("team:{}", team(number))).collect::<Vec<_>>()})
        }
        5 => json!({"type": "ping", "id": 5}),
        _ => {
            let Some(cursor) = cursor else {
                return json!({"type": "subscribe", "id": 6, "rooms": rooms});
            };
            count(&world.resumes);
            let mut rooms = rooms;
            rooms.push(format!("team:{}", team(random.below(TEAMS))));
            json!({"type": "subscribe", "id": 6, "rooms": rooms, "since": cursor})
        }
    }
}

fn hear(world: &World, text: &str, cursor: &mut Option<String>) {
    count(&world.deliveries);
    if text.contains(r#""reason":"cursor_too_old""#)
        || text.contains(r#""reason":"too_many_changes""#)
    {
        count(&world.resyncs);
    }
    if text.contains(r#""type":"error""#) || text.contains(r#""denied":[{"#) {
        world.complain(format!("a passing client was told {text}"));
    }
    if let Some((_, told)) = text.rsplit_once(r#""cursor":""#)
        && let Some((told, _)) = told.split_once('"')
    {
        *cursor = Some(told.to_owned());
    }
}

#[ignore = "tests/soak.sh runs it, for as long as it is told"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_an_hour_of_work_nothing_is_lost_and_memory_does_not_grow() {
    rlimit::increase_nofile_limit(4096).unwrap();
    let length = Duration::from_secs(setting("SOAK_SECONDS", 3600));
    let into = PathBuf::from(std::env::var("SOAK_INTO").unwrap_or_else(|_| ".".to_owned()));
    let database = Database::create().await;
    // the shortest but one: the ring's ten slots turn in 200 s
    let mut prepare = String::from("update crm_relay.setting set retention = '2 minutes';");
    for number in 0..=TEAMS {
        let team = team(number);
        write!(
            prepare,
            "insert into teams (id, name) values ('{team}', 'T');"
        )
        .unwrap();
    }
    for number in 0..USERS {
        let user = user(number);
        write!(prepare, "insert into users (id, email, first_name, last_name) values ('{user}', '{number}', 'U', 'U');").unwrap();
    }
    database.execute(&prepare).await;

    let relay = Relay::with(&database.url(), |command| {
        // as it is delivered
        command.env_remove("RELAY_THROTTLE");
    })
    .await;
    let pid = relay.pid();
    let files_at_first = open_files(pid);
    let world = Arc::new(World {
        database: database.url(),
        relay: relay.address().to_owned(),
        began: Instant::now(),
        writing: AtomicBool::new(true),
        watching: AtomicBool::new(true),
        connected: AtomicU64::new(0),
        visits: AtomicU64::new(0),
        changes: AtomicU64::new(0),
        deadlocks: AtomicU64::new(0),
        deliveries: AtomicU64::new(0),
        resumes: AtomicU64::new(0),
        resyncs: AtomicU64::new(0),
        snapshots: AtomicU64::new(0),
        ended_by_relay: AtomicU64::new(0),
        complaints: Mutex::default(),
        lags: Mutex::default(),
    });
    let mut random = Random::new(1);
    let mut staying = Vec::new();
    let mut tasks = Vec::new();
    for number in 0..STAYING {
        let client = Arc::new(Staying::new(number, &mut random));
        let socket = client.subscribe(&world).await;
        tasks.push(tokio::spawn(client.clone().stay(world.clone(), socket)));
        staying.push(client);
    }
    // they see every record come
    for number in 0..RECORDS {
        let mut sql = format!(
            "insert into contacts (id, notes) values ('{}', '0');",
            contact(number)
        );
        for module in 0..5 {
            sql.push_str(&insert(
                module,
                &record(module, number),
                &team(number % TEAMS),
                &mut random,
            ));
        }
        write!(
            sql,
            "update clients set contact_id = '{}', status = '1' where id = '{}'",
            contact(number),
            record(2, number)
        )
        .unwrap();
        database.execute(&sql).await;
    }
    for number in 0..PROBES {
        let team = team(number % TEAMS);
        database
            .execute(&insert(LEADS, &probe(number), &team, &mut random))
            .await;
    }
    for number in 0..FLOOD {
        let flood = insert(LEADS, &id(0xf, number), &team(TEAMS), &mut random);
        database.execute(&flood).await;
    }

    let mut writers = vec![tokio::spawn(probes(world.clone()))];
    writers.extend((0..WRITERS).map(|n| tokio::spawn(write(world.clone(), Random::new(100 + n)))));
    tasks.extend((0..PASSING).map(|n| tokio::spawn(pass(world.clone(), Random::new(1000 + n)))));

    let mut watch = Watch {
        pid,
        session: database.connect().await,
        looked: Instant::now(),
        cpu: cpu(pid),
        changes: read(&world.changes),
        deliveries: read(&world.deliveries),
    };
    let mut csv = format!("{HEADER}\n");
    let mut samples: Vec<Sample> = Vec::new();
    let mut tick = interval(SAMPLE_EVERY);
    tick.tick().await;
    let begun = Instant::now();
    println!("{HEADER}");
    while begun.elapsed() < length {
        tick.tick().await;
        let sample = watch.sample(&world).await;
        writeln!(csv, "{}", sample.line()).unwrap();
        if sample.second / 60 != samples.last().map_or(0, |last| last.second / 60) {
            println!("{}", sample.line());
        }
        samples.push(sample);
        std::fs::write(into.join("soak.csv"), &csv).unwrap();
        let failed = tasks
            .iter()
            .chain(&writers)
            .filter(|task| task.is_finished());
        assert_eq!(failed.count(), 0, "nobody ends before the end");
    }
    std::fs::write(into.join("soak.svg"), plot(&samples)).unwrap();

    world.writing.store(false, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    // every screen comes to be right
    let table = table(database.client()).await;
    let wrong = || -> Vec<String> { staying.iter().filter_map(|one| one.wrong(&table)).collect() };
    let right = async {
        while !wrong().is_empty() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    let is_right = timeout(DEADLINE, right).await.is_ok();
    let wrong = if is_right { Vec::new() } else { wrong() };
    world.watching.store(false, Ordering::Relaxed);
    // wakes those who wait for a frame
    database
        .execute("update leads set notes = (notes::int + 1)::text; update escrows set notes = (notes::int + 1)::text; update listings set description = (description::int + 1)::text; update clients set status = (status::int + 1)::text; update appointments set location = (location::int + 1)::text")
        .await;
    for task in tasks {
        task.await.unwrap();
    }
    let gone = async {
        while open_files(pid) > files_at_first + SESSIONS {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let are_gone = timeout(DEADLINE * 2, gone).await.is_ok();

    let logs = relay.logs();
    let severe: Vec<&str> = logs
        .lines()
        .filter(|line| line.contains("WARN") || line.contains("ERROR"))
        .collect();
    let truncated = logs.matches("truncated slots of the journal").count();
    println!("{}", by_quarters(&samples));
    println!(
        "{} changes, {} deliveries, {} visits, {} snapshots asked for, {} resumes, {} resyncs, {} deadlocks among writers",
        read(&world.changes),
        read(&world.deliveries),
        read(&world.visits),
        read(&world.snapshots),
        read(&world.resumes),
        read(&world.resyncs),
        read(&world.deadlocks),
    );
    println!(
        "pruned {truncated} times; ended by the relay: {} while they read, {} as too slow, {} as silent; open files {files_at_first} at first, {} at the end; RSS when all were gone {:.1} MiB",
        read(&world.ended_by_relay),
        logs.matches("4508 too slow").count() / 2,
        logs.matches("silent for two beats").count(),
        open_files(pid),
        number(pid, "smaps_rollup", "Rss") as f64 / 1024.0,
    );
    println!("{} warnings and errors in the log", severe.len());
    severe.iter().take(10).for_each(|line| println!("  {line}"));

    let complaints = std::mem::take(&mut *world.complaints.lock().unwrap());
    let some = |of: &[String]| of[..of.len().min(5)].join("\n");
    assert!(complaints.is_empty(), "{}", some(&complaints));
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), some(&wrong));
    assert!(are_gone, "not all files are closed");
    let quarter = samples.len().div_ceil(4);
    let quarters: Vec<f64> = samples
        .chunks(quarter)
        .map(|quarter| mean(quarter, |one| one.rss as f64))
        .collect();
    assert!(
        quarters[3] <= quarters[1] * TOLERANCE,
        "KiB by quarter: {quarters:?}"
    );
    relay.signal("TERM");
    relay.logged("draining members=0 rooms=0").await;
    assert!(relay.stop_signalled().await.success());
}
