//! What a test needs: a database, a relay (the real binary) and clients. Nothing is faked, nothing
//! sleeps: everything waits for what it needs, with a deadline.

use std::collections::VecDeque;
use std::process::{Command as Program, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::contract;

/// How long anything may take that should happen at once.
pub const DEADLINE: Duration = Duration::from_secs(20);

const BINARY: &str = env!("CARGO_BIN_EXE_crm-relay");
const CRM: &str = include_str!("../../deploy/crm.sql");

fn server_url() -> String {
    std::env::var("DATABASE_URL")
        .expect("DATABASE_URL must name a throwaway server: deploy/postgres.sh run -- cargo test")
}

/// The same server, another database.
fn url_of(name: &str) -> String {
    let url = server_url();
    let end = url.rfind('/').expect("a URL with a database");
    format!("{}/{name}", &url[..end])
}

/// Connects; the connection's task ends with the client.
pub async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .expect("Postgres answers");
    tokio::spawn(connection);
    client
}

/// Runs the binary to its end.
pub fn crm_relay(url: &str, arguments: &[&str]) -> std::process::Output {
    Program::new(BINARY)
        .args(arguments)
        .env("DATABASE_URL", url)
        .output()
        .expect("the binary runs")
}

/// Creates a database and returns its name.
async fn create(template: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let name = format!(
        "test_{}_{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    );
    let _guard = ONE_AT_A_TIME.lock().await;
    let admin = connect(&server_url()).await;
    let create = format!("create database {name} template {template}");
    let created = async {
        // the template's last session may still be on its way out
        while let Err(error) = admin.batch_execute(&create).await {
            assert_eq!(error.code(), Some(&SqlState::OBJECT_IN_USE), "{error:?}");
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, created)
        .await
        .expect("the template is free");
    name
}

/// A database of one test's own, dropped with it.
pub struct Database {
    name: String,
    client: tokio_postgres::Client,
}

impl Database {
    /// With the CRM's tables and the relay's schema.
    pub async fn create() -> Database {
        // prepared once; it goes with the throwaway server
        static TEMPLATE: OnceCell<String> = OnceCell::const_new();
        let prepare = async || {
            let name = create("template0").await;
            connect(&url_of(&name))
                .await
                .batch_execute(CRM)
                .await
                .unwrap();
            let installed = crm_relay(&url_of(&name), &["install"]);
            assert!(
                installed.status.success(),
                "{}",
                String::from_utf8_lossy(&installed.stderr)
            );
            name
        };
        Database::copy_of(TEMPLATE.get_or_init(prepare).await).await
    }

    /// With nothing in it.
    pub async fn bare() -> Database {
        Database::copy_of("template0").await
    }

    async fn copy_of(template: &str) -> Database {
        let name = create(template).await;
        Database {
            client: connect(&url_of(&name)).await,
            name,
        }
    }

    /// The session that `execute` uses.
    pub fn client(&self) -> &tokio_postgres::Client {
        &self.client
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn url(&self) -> String {
        url_of(&self.name)
    }

    /// Another session.
    pub async fn connect(&self) -> tokio_postgres::Client {
        connect(&self.url()).await
    }

    /// Runs SQL, many statements if need be.
    pub async fn execute(&self, sql: &str) {
        self.client
            .batch_execute(sql)
            .await
            .unwrap_or_else(|error| panic!("{error:?}\n{sql}"));
    }

    /// The first column of the first row, as text.
    pub async fn value(&self, sql: &str) -> String {
        let rows = self
            .client
            .simple_query(sql)
            .await
            .unwrap_or_else(|error| panic!("{error:?}\n{sql}"));
        let row = rows.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => {
                Some(row.get(0).unwrap_or("").to_owned())
            }
            _ => None,
        });
        row.unwrap_or_else(|| panic!("no row: {sql}"))
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let drop = format!("drop database if exists {} with (force)", self.name);
        let _ = Program::new("psql")
            .args(["-q", "-d", &server_url(), "-c", &drop])
            .stderr(Stdio::null())
            .status();
    }
}

/// A server of one test's own, for tests that crash it.
pub struct Cluster {
    directory: std::path::PathBuf,
    port: u16,
    /// Whether the directory is a disk of its own.
    disk: bool,
}

impl Cluster {
    /// With the CRM's tables and the relay's schema in database `postgres`, and data that survives a
    /// crash (fsync on).
    pub async fn start() -> Cluster {
        let cluster = Cluster::bare();
        cluster.install().await;
        cluster
    }

    /// With nothing in it.
    pub fn bare() -> Cluster {
        let cluster = Cluster::empty();
        cluster.begin(&[]);
        cluster
    }

    /// The same on a disk of its own, of so many MB; None where nobody may mount one.
    pub async fn on_small_disk(megabytes: u32) -> Option<Cluster> {
        let mut cluster = Cluster::empty();
        let options = format!("size={megabytes}m,mode=1777");
        let place = cluster.directory.display().to_string();
        cluster.disk = as_root(&["mount", "-t", "tmpfs", "-o", &options, "tmpfs", &place]);
        if !cluster.disk {
            return None;
        }
        // a write-ahead log of small files
        cluster.begin(&["--wal-segsize=1"]);
        cluster.install().await;
        Some(cluster)
    }

    fn begin(&self, more: &[&str]) {
        let data = self.data();
        let all = ["-D", &data, "-A", "trust", "-U", "postgres", "-E", "UTF8"];
        let all = [&all[..], &["--locale=C"], more].concat();
        self.program("initdb", &all);
        self.start_again();
    }

    async fn install(&self) {
        let session = connect(&self.url()).await;
        session.batch_execute(CRM).await.unwrap();
        let installed = crm_relay(&self.url(), &["install"]);
        assert!(
            installed.status.success(),
            "{}",
            String::from_utf8_lossy(&installed.stderr)
        );
    }

    /// A place and a port for a server.
    fn empty() -> Cluster {
        let directory =
            std::env::temp_dir().join(format!("crm-relay-test-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&directory).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let cluster = Cluster {
            directory,
            port,
            disk: false,
        };
        if is_root() {
            assert!(
                Program::new("chown")
                    .arg("postgres")
                    .arg(&cluster.directory)
                    .status()
                    .unwrap()
                    .success()
            );
        }
        cluster
    }

    /// Restores a dump of another one's database `postgres` and its roles, made with these options.
    pub fn restore(&self, from: &Cluster, options: &[&str]) {
        let bin = std::env::var("PG_BIN").expect("PG_BIN, as deploy/postgres.sh sets it");
        let pass = |dump: &str, options: &[&str], psql: &[&str]| {
            let mut dump = Program::new(format!("{bin}/{dump}"))
                .args(["-d", &from.url()])
                .args(options)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let restored = Program::new(format!("{bin}/psql"))
                .args(["-q", "-d", &self.url()])
                .args(psql)
                .stdin(dump.stdout.take().unwrap())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            assert!(dump.wait().unwrap().success() && restored.unwrap().success());
        };
        // one of the roles is there already
        pass("pg_dumpall", &["--roles-only"], &[]);
        pass("pg_dump", options, &["-v", "ON_ERROR_STOP=1"]);
    }

    /// A URL that names both, this one first.
    pub fn url_with(&self, other: &Cluster) -> String {
        let (one, both) = (
            format!("127.0.0.1:{}", self.port),
            format!("127.0.0.1:{},127.0.0.1:{}", self.port, other.port),
        );
        self.url().replace(&one, &both)
    }

    /// Fills its disk to the last byte, until it is [emptied](Cluster::empty_disk).
    pub fn fill_disk(&self) {
        let mut ballast = std::fs::File::create(self.directory.join("ballast")).unwrap();
        let error = loop {
            if let Err(error) = std::io::Write::write_all(&mut ballast, &[0; 4096]) {
                break error;
            }
        };
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    }

    pub fn empty_disk(&self) {
        std::fs::remove_file(self.directory.join("ballast")).unwrap();
    }

    /// Waits until it has gone down by itself.
    pub async fn down(&self) {
        let pid = format!("{}/postmaster.pid", self.data());
        let gone = async {
            while std::fs::exists(&pid).unwrap() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(DEADLINE, gone).await.expect("it goes down");
    }

    pub fn url(&self) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/postgres", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// A signal to the server and all its sessions.
    pub fn signal(&self, name: &str) {
        let pid = std::fs::read_to_string(format!("{}/postmaster.pid", self.data())).unwrap();
        let pid = pid.lines().next().unwrap();
        // sessions are the server's children; each is a process group of its own
        let children = Program::new("pgrep").args(["-P", pid]).output().unwrap();
        let children = String::from_utf8_lossy(&children.stdout).into_owned();
        let all: Vec<&str> = children.lines().chain([pid]).collect();
        let name = format!("-{name}");
        // one that has ended meanwhile is no matter
        let _ = Program::new("kill")
            .arg(name)
            .args(all)
            .stderr(Stdio::null())
            .status();
    }

    /// A standby that follows this one.
    pub fn standby(&self) -> Cluster {
        let standby = Cluster::empty();
        let port = self.port.to_string();
        standby.program(
            "pg_basebackup",
            &[
                "-h",
                "127.0.0.1",
                "-p",
                &port,
                "-U",
                "postgres",
                "-D",
                &standby.data(),
                "-R",
                "-c",
                "fast",
            ],
        );
        standby.start_again();
        standby
    }

    /// With this certificate and key, once it has read its settings again.
    pub fn speak_tls(&self, certificate: &str, key: &str) {
        for (name, text) in [("server.crt", certificate), ("server.key", key)] {
            let path = format!("{}/{name}", self.data());
            std::fs::write(&path, text).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(&path, mode).unwrap();
            if is_root() {
                as_root(&["chown", "postgres", &path]);
            }
        }
        let settings = format!("{}/postgresql.auto.conf", self.data());
        std::fs::write(&settings, "ssl = on\n").unwrap();
        self.program("pg_ctl", &["-D", &self.data(), "reload"]);
    }

    /// Makes a standby the primary.
    pub fn promote(&self) {
        self.program("pg_ctl", &["-D", &self.data(), "-w", "promote"]);
    }

    /// As if the power went.
    pub fn crash(&self) {
        self.program(
            "pg_ctl",
            &["-D", &self.data(), "-m", "immediate", "-w", "stop"],
        );
    }

    pub fn start_again(&self) {
        let options = format!(
            "-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories={}",
            self.port,
            self.directory.display()
        );
        let log = self.directory.join("log").display().to_string();
        self.program(
            "pg_ctl",
            &[
                "-D",
                &self.data(),
                "-l",
                &log,
                "-w",
                "-o",
                &options,
                "start",
            ],
        );
    }

    fn data(&self) -> String {
        self.directory.join("data").display().to_string()
    }

    fn program(&self, name: &str, arguments: &[&str]) {
        let path = format!(
            "{}/{name}",
            std::env::var("PG_BIN").expect("PG_BIN, as deploy/postgres.sh sets it")
        );
        let mut program = if is_root() {
            let mut runuser = Program::new("runuser");
            runuser.args(["-u", "postgres", "--", &path]);
            runuser
        } else {
            Program::new(path)
        };
        let status = program
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{name} {arguments:?}");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.crash()));
        if stopped.is_err() {
            eprintln!(
                "the cluster in {} was down already",
                self.directory.display()
            );
        }
        if self.disk {
            as_root(&["umount", &self.directory.display().to_string()]);
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// PgBouncer in transaction mode before a database.
pub struct Pooler {
    child: std::process::Child,
    directory: std::path::PathBuf,
    url: String,
}

impl Pooler {
    pub async fn start(database: &Database) -> Pooler {
        let directory =
            std::env::temp_dir().join(format!("crm-relay-pooler-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&directory).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let server: tokio_postgres::Config = database.url().parse().unwrap();
        let settings = format!(
            "[databases]\n{} = host=127.0.0.1 port={} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\nignore_startup_parameters = extra_float_digits\n",
            database.name(),
            server.get_ports()[0],
        );
        let file = directory.join("pgbouncer.ini");
        std::fs::write(&file, settings).unwrap();
        let mut pgbouncer = if is_root() {
            let mut runuser = Program::new("runuser");
            runuser.args(["-u", "postgres", "--", "/usr/sbin/pgbouncer"]);
            runuser
        } else {
            Program::new("pgbouncer")
        };
        let child = pgbouncer
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let url = format!("postgresql://postgres@127.0.0.1:{port}/{}", database.name());
        let up = async { while TcpStream::connect(("127.0.0.1", port)).await.is_err() {} };
        timeout(DEADLINE, up).await.expect("PgBouncer listens");
        Pooler {
            child,
            directory,
            url,
        }
    }

    pub fn url(&self) -> String {
        self.url.clone()
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let children = Program::new("pkill")
            .args(["-P", &self.child.id().to_string()])
            .status();
        let _ = (children, self.child.kill(), self.child.wait());
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Runs a program as root and tells whether it did what it should.
fn as_root(program: &[&str]) -> bool {
    let sudo: &[&str] = if is_root() { &[] } else { &["sudo", "-n"] };
    let all = [sudo, program].concat();
    let status = Program::new(all[0])
        .args(&all[1..])
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

fn is_root() -> bool {
    let id = Program::new("id").arg("-u").output().unwrap();
    String::from_utf8_lossy(&id.stdout).trim() == "0"
}

/// A relay: the real binary.
pub struct Relay {
    child: Child,
    address: String,
    logs: Logs,
}

/// What the relay has logged so far, and a bell for each line more.
#[derive(Clone, Default)]
struct Logs(Arc<(Mutex<String>, tokio::sync::Notify)>);

impl Logs {
    fn add(&self, line: &str) {
        let mut text = self.0.0.lock().unwrap();
        text.push_str(line);
        text.push('\n');
        drop(text);
        self.0.1.notify_waiters();
    }

    fn text(&self) -> String {
        self.0.0.lock().unwrap().clone()
    }

    async fn has(&self, text: &str) {
        loop {
            let more = self.0.1.notified();
            if self.text().contains(text) {
                return;
            }
            more.await;
        }
    }
}

impl Relay {
    pub async fn start(url: &str) -> Relay {
        Relay::with(url, |_| {}).await
    }

    /// With more settings.
    pub async fn with(url: &str, change: impl FnOnce(&mut Command)) -> Relay {
        Relay::begin(url, change).begun().await
    }

    /// The demo.
    pub async fn demo(url: &str) -> Relay {
        Relay::run(url, &["demo"], |_| {}).begun().await
    }

    /// Once it says that it is ready.
    async fn begun(self) -> Relay {
        self.begun_within(DEADLINE).await
    }

    /// The same, where what it needs may be broken for a while.
    pub async fn begun_within(self, within: Duration) -> Relay {
        let mut relay = self;
        let mut told = BufReader::new(relay.child.stdout.take().unwrap()).lines();
        let ready = timeout(within, told.next_line()).await;
        let Ok(Ok(Some(line))) = ready else {
            panic!(
                "the relay did not become ready: {ready:?}\n{}",
                relay.logs()
            );
        };
        let (_, address) = line.split_once("://").expect("a URL");
        relay.address = address.trim_end_matches('/').to_owned();
        relay
    }

    /// One that asks for tokens, signed with [`SECRET`].
    pub async fn guarded(url: &str, change: impl FnOnce(&mut Command)) -> Relay {
        let guard = |command: &mut Command| {
            command.env("RELAY_JWT_SECRET", SECRET);
            change(command);
        };
        Relay::run(url, &["serve"], guard).begun().await
    }

    /// Not waiting for it to be ready.
    pub fn begin(url: &str, change: impl FnOnce(&mut Command)) -> Relay {
        Relay::run(url, &["serve", "--no-auth"], change)
    }

    fn run(url: &str, arguments: &[&str], change: impl FnOnce(&mut Command)) -> Relay {
        let mut command = Command::new(BINARY);
        command
            .args(arguments)
            .env("DATABASE_URL", url)
            .env("RELAY_LISTEN", "127.0.0.1:0")
            // every change by itself, except where a test is about the throttle
            .env("RELAY_THROTTLE", "0")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        change(&mut command);
        let mut child = command.spawn().expect("the relay starts");
        let logs = Logs::default();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let kept = logs.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                kept.add(&line);
            }
        });
        Relay {
            child,
            address: String::new(),
            logs,
        }
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// All that it has logged.
    pub fn logs(&self) -> String {
        self.logs.text()
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("the relay runs")
    }

    /// The most memory that it ever had, in KiB.
    pub fn most_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let size = line.and_then(|line| line.split_whitespace().nth(1));
        size.unwrap().parse().unwrap()
    }

    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        assert!(
            Program::new("kill")
                .args([&format!("-{name}"), &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// How it ended, once it was told to.
    pub async fn stop_signalled(self) -> ExitStatus {
        self.ended_within(DEADLINE).await
    }

    /// The same, on a machine that may be busy.
    pub async fn ended_within(mut self, within: Duration) -> ExitStatus {
        match timeout(within, self.child.wait()).await {
            Ok(ended) => ended.unwrap(),
            Err(_) => panic!("it does not end\n{}", self.logs()),
        }
    }

    /// Waits until a log line holds this text.
    pub async fn logged(&self, text: &str) {
        let seen = timeout(DEADLINE, self.logs.has(text)).await;
        assert!(seen.is_ok(), "not logged: {text}\n{}", self.logs());
    }

    /// Waits until it says of itself that it is ready.
    pub async fn ready(&self) {
        let ready = async { while self.get("/readyz", "").await.0 != 200 {} };
        let ready = timeout(DEADLINE, ready).await;
        assert!(ready.is_ok(), "not ready\n{}", self.logs());
    }

    /// `GET path`: status and body.
    pub async fn get(&self, path: &str, headers: &str) -> (u16, String) {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{headers}\r\n",
            self.address
        );
        self.request(request.as_bytes()).await
    }

    /// The answer to these bytes, status and body, once the relay has ended the connection.
    pub async fn request(&self, request: &[u8]) -> (u16, String) {
        self::request(&self.address, request).await
    }
}

/// The answer of whoever listens there to these bytes, status and body, once the connection was ended.
pub async fn request(address: &str, request: &[u8]) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut answer))
        .await
        .expect("an answer")
        .unwrap();
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .expect("a status");
    (
        status,
        answer
            .split_once("\r\n\r\n")
            .map_or(String::new(), |(_, body)| body.to_owned()),
    )
}

/// A socket that can hold little of what it does not read, its WebSocket handshake done: for a client
/// that says what no library would.
pub async fn bare_socket(relay: &Relay) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let stream = socket.connect(relay.address.parse().unwrap()).await;
    let url = format!("ws://{}/ws", relay.address);
    let (socket, _) = tokio_tungstenite::client_async(url, stream.unwrap())
        .await
        .expect("a handshake");
    // the relay says nothing before hello: nothing is lost between
    socket.into_inner()
}

/// A client's frame, its mask zero.
pub fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match u8::try_from(payload.len()) {
        Ok(short @ ..126) => frame.push(0x80 | short),
        _ => {
            frame.push(0x80 | 126);
            frame.extend((payload.len() as u16).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

/// Opcode and payload of each frame that the relay sent.
pub fn frames(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while let [first, short, rest @ ..] = bytes {
        let (length, rest) = match short {
            126 => (
                u16::from_be_bytes(rest[..2].try_into().unwrap()) as usize,
                &rest[2..],
            ),
            127 => panic!("a frame that no test expects to be so large"),
            short => (usize::from(*short), rest),
        };
        let payload = &rest[..length];
        if first & 0xf == 0x1 {
            contract::frame(std::str::from_utf8(payload).expect("texts are UTF-8"));
        }
        frames.push((first & 0xf, payload.to_vec()));
        bytes = &rest[length..];
    }
    frames
}

/// What guarded relays trust.
pub const SECRET: &str = "the secret of the tests, which is no secret";

/// The present, as tokens tell it.
pub fn now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap().as_secs() as i64
}

/// A token with these claims.
pub fn token_of(claims: &Value) -> String {
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), claims, &key).unwrap()
}

/// A good token of this user.
pub fn token(user: &str) -> String {
    token_of(&json!({"id": user, "iat": now(), "exp": now() + 900}))
}

/// A client that has said hello.
pub struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// Frames that came while an answer was awaited.
    kept: VecDeque<Value>,
    logs: Logs,
    asked: u32,
    /// Whose token it has.
    user: Option<String>,
}

impl Client {
    /// With a token of this user.
    pub async fn of(relay: &Relay, user: &str) -> Client {
        let hello = json!({"type": "hello", "token": token(user)});
        let mut client = Client::hello(relay, hello).await;
        client.user = Some(user.to_owned());
        client
    }

    pub async fn connect(relay: &Relay) -> Client {
        Client::hello(relay, json!({"type": "hello"})).await
    }

    pub async fn with_transactions(relay: &Relay) -> Client {
        Client::hello(relay, json!({"type": "hello", "transactions": true})).await
    }

    async fn hello(relay: &Relay, hello: Value) -> Client {
        let mut client = Client::silent(relay).await;
        client.send(hello).await;
        let welcome = client.next_frame().await;
        assert_eq!(welcome["type"], "welcome", "{welcome}");
        client
    }

    /// Connected, but without hello.
    pub async fn silent(relay: &Relay) -> Client {
        let (socket, _) = tokio_tungstenite::connect_async(format!("ws://{}/ws", relay.address))
            .await
            .expect("a handshake");
        Client {
            socket,
            kept: VecDeque::new(),
            logs: relay.logs.clone(),
            asked: 0,
            user: None,
        }
    }

    pub async fn send(&mut self, frame: Value) {
        self.send_raw(Message::text(frame.to_string())).await;
    }

    pub async fn send_raw(&mut self, message: Message) {
        self.socket.send(message).await.expect("the relay takes it");
    }

    /// The next frame, whatever it is.
    pub async fn next_frame(&mut self) -> Value {
        if let Some(kept) = self.kept.pop_front() {
            return kept;
        }
        self.receive().await
    }

    async fn receive(&mut self) -> Value {
        loop {
            match timeout(DEADLINE, self.socket.next()).await {
                Ok(Some(Ok(Message::Text(text)))) => {
                    return contract::frame(&text);
                }
                Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {}
                other => {
                    let logs = self.logs.text();
                    let last: Vec<&str> = logs.lines().rev().take(20).collect();
                    panic!(
                        "awaited a frame, got {other:?}; the relay's last lines, newest first:\n{}",
                        last.join("\n")
                    );
                }
            }
        }
    }

    /// The next frame that is no heartbeat.
    pub async fn next_event(&mut self) -> Value {
        loop {
            let frame = self.next_frame().await;
            if frame["type"] != "heartbeat" {
                return frame;
            }
        }
    }

    async fn ask(&mut self, mut question: Value) -> Value {
        self.asked += 1;
        question["id"] = json!(self.asked);
        self.send(question).await;
        loop {
            let frame = self.receive().await;
            if frame["id"] == json!(self.asked) {
                return frame;
            }
            self.kept.push_back(frame);
        }
    }

    /// The answer to a subscribe.
    pub async fn subscribe<R: AsRef<str>>(&mut self, rooms: &[R]) -> Value {
        let rooms: Vec<&str> = rooms.iter().map(AsRef::as_ref).collect();
        self.ask(json!({"type": "subscribe", "rooms": rooms})).await
    }

    /// The answer to a subscribe that goes on from a cursor.
    pub async fn resume<R: AsRef<str>>(&mut self, rooms: &[R], since: &str) -> Value {
        let rooms: Vec<&str> = rooms.iter().map(AsRef::as_ref).collect();
        self.ask(json!({"type": "subscribe", "rooms": rooms, "since": since}))
            .await
    }

    /// The answer to a subscribe that asks for the records as they are.
    pub async fn snapshot<R: AsRef<str>>(&mut self, rooms: &[R]) -> Value {
        let rooms: Vec<&str> = rooms.iter().map(AsRef::as_ref).collect();
        self.ask(json!({"type": "subscribe", "rooms": rooms, "snapshot": true}))
            .await
    }

    pub async fn unsubscribe(&mut self, rooms: &[&str]) -> Value {
        self.ask(json!({"type": "unsubscribe", "rooms": rooms}))
            .await
    }

    pub async fn ping(&mut self) -> Value {
        self.ask(json!({"type": "ping"})).await
    }

    /// Everything that was committed before this call and concerns this client: commits a new lead
    /// that it is subscribed to and takes all that comes before that.
    pub async fn everything(&mut self, database: &tokio_postgres::Client) -> Vec<Value> {
        let lead = uuid::Uuid::new_v4();
        let room = match &self.user {
            None => format!("leads:{lead}"),
            // a record that is not there is nobody's
            Some(user) => format!("user:{user}/leads"),
        };
        let owner = self.user.as_ref();
        let owner = owner.map_or("null".to_owned(), |user| format!("'{user}'"));
        self.subscribe(&[&room]).await;
        let insert = format!("insert into public.leads (id, owner_id) values ('{lead}', {owner})");
        database.batch_execute(&insert).await.unwrap();
        let mut seen = Vec::new();
        loop {
            let event = self.next_event().await;
            if event["recordId"] == lead.to_string() {
                break;
            }
            seen.push(event);
        }
        self.unsubscribe(&[&room]).await;
        seen
    }

    /// By a handshake of one's own.
    pub async fn by(
        relay: &Relay,
        request: tokio_tungstenite::tungstenite::handshake::client::Request,
    ) -> (
        Client,
        tokio_tungstenite::tungstenite::handshake::client::Response,
    ) {
        let (socket, answer) = tokio_tungstenite::connect_async(request)
            .await
            .expect("a handshake");
        let client = Client {
            socket,
            kept: VecDeque::new(),
            logs: relay.logs.clone(),
            asked: 0,
            user: None,
        };
        (client, answer)
    }

    /// The next frame, or None where the relay ends the connection.
    pub async fn next_or_end(&mut self) -> Option<Value> {
        loop {
            match timeout(DEADLINE, self.socket.next())
                .await
                .expect("in time")
            {
                Some(Ok(Message::Text(text))) => {
                    return Some(contract::frame(&text));
                }
                Some(Ok(Message::Close(_))) => return None,
                Some(Ok(_)) => {}
                other => panic!("ended without a close code: {other:?}"),
            }
        }
    }

    /// All that the relay still says, and the close code that it ends the connection with.
    pub async fn end(&mut self) -> (u16, Vec<Value>) {
        let mut frames: Vec<Value> = self.kept.drain(..).collect();
        loop {
            match timeout(DEADLINE, self.socket.next())
                .await
                .expect("it is closed in time")
            {
                Some(Ok(Message::Close(Some(close)))) => return (close.code.into(), frames),
                Some(Ok(Message::Text(text))) => {
                    frames.push(contract::frame(&text));
                }
                Some(Ok(_)) => {}
                other => panic!("ended without a close code: {other:?}"),
            }
        }
    }

    /// The close code that the relay ends the connection with.
    pub async fn closed(&mut self) -> u16 {
        loop {
            match timeout(DEADLINE, self.socket.next())
                .await
                .expect("it is closed in time")
            {
                Some(Ok(Message::Close(Some(close)))) => return close.code.into(),
                Some(Ok(Message::Text(text))) => drop(contract::frame(&text)),
                Some(Ok(_)) => {}
                other => panic!("ended without a close code: {other:?}"),
            }
        }
    }
}
