//! What is measured: the relay, those that would be used instead, and bare loops.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::bridge::{self, Bridge};
use crate::ground::{self, Ground, Side};
use crate::load::{Crowd, Patience, Script, Step};
use crate::machine;

/// Who serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// crm-relay, with tokens, journal and policy; nothing throttled.
    Relay,
    /// Node with `ws` and `pg`.
    Ws,
    /// Node with `socket.io` and `pg`.
    SocketIo,
    /// nginx with nchan.
    Nchan,
    /// NATS, with its own WebSockets.
    Nats,
    /// A loop that writes each frame by itself to each socket.
    BareOne,
    /// The same with up to eight waiting frames a write.
    BareEight,
}

impl Kind {
    /// As the table shows it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Relay => "relay",
            Kind::Ws => "Node ws",
            Kind::SocketIo => "Socket.IO",
            Kind::Nchan => "nchan",
            Kind::Nats => "NATS",
            Kind::BareOne => "bare, 1 frame a write",
            Kind::BareEight => "bare, 8 frames a write",
        }
    }

    /// Whose triggers it needs.
    pub fn side(self) -> Side {
        match self {
            Kind::Relay => Side::Relay,
            _ => Side::Notify,
        }
    }
}

/// One that serves, until it is dropped.
pub struct Server {
    kind: Kind,
    child: Child,
    /// Where clients come.
    pub address: SocketAddr,
    /// From its start until it let anybody in.
    pub started: Duration,
    bridge: Option<Bridge>,
    ground: String,
}

const SECRET: &str = "dev-only-0123456789abcdef0123456789abcdef";

impl Server {
    /// Starts one on cores, and waits until it takes connections. `settings` are the relay's, beyond
    /// those that lift its bounds.
    pub async fn start(
        kind: Kind,
        ground: &Ground,
        cores: &str,
        settings: &[(&str, &str)],
    ) -> Server {
        let address = free();
        let url = ground.url(kind.side());
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", cores]);
        match kind {
            Kind::Relay => {
                command.arg(ground::relay()).arg("serve");
                command
                    .env("RELAY_LISTEN", address.to_string())
                    .env("RELAY_JWT_SECRET", SECRET);
                command
                    .env("RELAY_THROTTLE", "0")
                    .env("RELAY_MAX_CONNECTIONS_PER_ADDRESS", "20000");
                // those that are measured beside it send none either
                command
                    .env("RELAY_HEARTBEAT", "10m")
                    .env("RELAY_LOG", "warn");
            }
            Kind::Ws => drop(command.args(["node", "tests/bench/peers/ws.mjs"])),
            Kind::SocketIo => drop(command.args(["node", "tests/bench/peers/socket_io.mjs"])),
            Kind::Nchan => drop(
                command
                    .arg(unpacked("usr/sbin/nginx"))
                    .arg("-c")
                    .arg(nchan(address)),
            ),
            Kind::Nats => drop(
                command
                    .arg(unpacked("usr/sbin/nats-server"))
                    .arg("-c")
                    .arg(nats(address)),
            ),
            Kind::BareOne => drop(command.arg(own()).args(["bare", "1"])),
            Kind::BareEight => drop(command.arg(own()).args(["bare", "8"])),
        }
        command
            .env("DATABASE_URL", &url)
            .env("PORT", address.port().to_string());
        command.envs(settings.iter().copied());
        let log = File::create(scratch(&format!("{kind:?}.log"))).expect("a log");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let began = Instant::now();
        let child = command.spawn().expect("taskset, of the package util-linux");
        let mut server = Server {
            kind,
            child,
            address,
            started: Duration::ZERO,
            bridge: None,
            ground: url,
        };
        while !server.is_ready().await {
            let ended = server.child.try_wait().expect("a child");
            assert!(
                ended.is_none() && began.elapsed() < Duration::from_secs(30),
                "{kind:?} did not start; see target/bench/{kind:?}.log"
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        server.started = began.elapsed();
        server.bridge = match kind {
            Kind::Nchan => Some(bridge::start(
                server.ground.clone(),
                address,
                &bridge::NCHAN,
            )),
            Kind::Nats => Some(bridge::start(
                server.ground.clone(),
                next(address),
                &bridge::NATS,
            )),
            _ => None,
        };
        server
    }

    /// Its database.
    pub fn url(&self) -> String {
        self.ground.clone()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its processor time so far.
    pub fn cpu(&self) -> f64 {
        machine::cpu(self.pid()).as_secs_f64()
    }

    /// Its memory, KiB.
    pub fn pss(&self) -> f64 {
        machine::pss(self.pid())
    }

    /// Clients of it, the n-th in the room of record `room(n)`; they are there when it returns.
    pub fn crowd(
        &self,
        clients: usize,
        room: impl Fn(usize) -> usize,
        patience: Patience,
    ) -> (Crowd, Vec<Duration>) {
        let scripts = (0..clients)
            .map(|number| self.script(number, room(number)))
            .collect();
        let gathered = Crowd::gather(self.address, scripts, patience);
        if self.kind == Kind::Nats {
            // which pings each of them once, two seconds after it came and a fifth of that
            std::thread::sleep(Duration::from_secs(3));
        }
        gathered
    }

    /// The same of the relay, with compression agreed upon: what they hear is not read.
    pub fn deflating(&self, clients: usize, patience: Patience) -> Crowd {
        let scripts = (0..clients).map(|number| {
            let mut script = self.script(number, number);
            script.deflates = true;
            for step in &mut script.steps {
                if let Step::Hear(_) = step {
                    *step = Step::Next;
                }
            }
            script
        });
        Crowd::gather(self.address, scripts.collect(), patience).0
    }

    /// Clients of the relay that come back all at once, each with the cursor it had.
    pub fn storm(&self, clients: usize, cursor: &str, within: Duration) -> (Crowd, Vec<Duration>) {
        let since = format!(r#""since":"{cursor}","rooms""#);
        let scripts = (0..clients).map(|number| {
            let mut script = self.script(number, number);
            for step in &mut script.steps {
                if let Step::Say(what) = step {
                    *what = what.replace(r#""rooms""#, &since);
                }
            }
            script
        });
        Crowd::gather(self.address, scripts.collect(), Patience::Storm(within))
    }

    /// Stops its process, or lets it go on.
    pub fn signal(&self, signal: &str) {
        let done = Command::new("kill")
            .args([signal, &self.pid().to_string()])
            .status();
        assert!(
            done.is_ok_and(|status| status.success()),
            "kill {signal} {}",
            self.pid()
        );
    }

    /// How a client comes into the room of a record.
    fn script(&self, number: usize, room: usize) -> Script {
        let record = ground::record(room);
        let say = |what: String| Step::Say(what);
        let (path, steps) = match self.kind {
            Kind::Relay => (
                "/ws".to_owned(),
                vec![
                    say(format!(
                        r#"{{"type":"hello","token":"{}"}}"#,
                        token(&ground::user(number))
                    )),
                    Step::Hear(r#""welcome""#),
                    say(format!(
                        r#"{{"type":"subscribe","id":1,"rooms":["listings:{record}"]}}"#
                    )),
                    Step::Hear(r#""rooms":["listings"#),
                ],
            ),
            Kind::Ws | Kind::BareOne | Kind::BareEight => {
                ("/".to_owned(), vec![say(record), Step::Hear("subscribed")])
            }
            Kind::SocketIo => (
                "/socket.io/?EIO=4&transport=websocket".to_owned(),
                vec![
                    Step::Hear("0{"),
                    say("40".to_owned()),
                    Step::Hear("40{"),
                    say(format!(r#"420["subscribe","{record}"]"#)),
                    Step::Hear("430["),
                ],
            ),
            Kind::Nchan => (format!("/sub/{record}"), Vec::new()),
            Kind::Nats => (
                "/".to_owned(),
                vec![
                    Step::Hear("INFO"),
                    say(format!(
                        "CONNECT {{\"verbose\":false}}\r\nSUB {record} 1\r\nPING\r\n"
                    )),
                    Step::Hear("PONG"),
                ],
            ),
        };
        Script {
            path,
            steps,
            deflates: false,
            counts_rows: self.kind == Kind::Nats,
        }
    }

    async fn is_ready(&self) -> bool {
        let opened_last = match self.kind {
            Kind::Nats => next(self.address),
            _ => self.address,
        };
        let Ok(mut stream) = tokio::net::TcpStream::connect(opened_last).await else {
            return false;
        };
        if self.kind != Kind::Relay {
            return true;
        }
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut answer = String::new();
        let asked = stream
            .write_all(b"GET /readyz HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n")
            .await;
        asked.is_ok()
            && stream.read_to_string(&mut answer).await.is_ok()
            && answer.starts_with("HTTP/1.1 200")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(bridge) = self.bridge.take() {
            bridge.stop();
        }
        // a signal that each of them takes for the end, so that nginx ends its worker, too
        let _ = Command::new("kill")
            .args(["-TERM", &self.pid().to_string()])
            .status();
        for _ in 0..200 {
            if let Ok(Some(_)) = self.child.try_wait() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An HS256 token of a user for an hour, as the CRM's backend signs it (RFC 7519).
fn token(user: &str) -> String {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("a clock");
    let claims = format!(
        r#"{{"id":"{user}","role":"agent","exp":{}}}"#,
        now.as_secs() + 3600
    );
    let signed = format!(
        "{}.{}",
        BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#),
        BASE64_URL_SAFE_NO_PAD.encode(claims)
    );
    let mut mac =
        Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(signed.as_bytes());
    format!(
        "{signed}.{}",
        BASE64_URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes())
    )
}

/// Two ports that nobody has: of one and the next.
fn free() -> SocketAddr {
    loop {
        let first = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port of loopback");
        let address = first.local_addr().expect("its address");
        if address.port() < u16::MAX
            && TcpListener::bind((Ipv4Addr::LOCALHOST, address.port() + 1)).is_ok()
        {
            return address;
        }
    }
}

/// The same with the next port.
fn next(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port() + 1)
}

/// A file of this run.
pub fn scratch(name: &str) -> PathBuf {
    PathBuf::from("target/bench").join(name)
}

fn own() -> PathBuf {
    std::env::current_exe().expect("this program's own path")
}

fn unpacked(program: &str) -> PathBuf {
    let here = PathBuf::from("target/servers").join(program);
    if here.exists() {
        here
    } else {
        PathBuf::from("/").join(program)
    }
}

/// nginx's configuration, with absolute paths; the publisher is on the same port.
fn nchan(address: SocketAddr) -> PathBuf {
    let here = std::env::current_dir().expect("the directory of the project");
    let directory = here.join(scratch("nchan"));
    std::fs::create_dir_all(&directory).expect("a directory for nginx");
    let module = here.join(unpacked("usr/lib/nginx/modules/ngx_nchan_module.so"));
    let configuration = format!(
        "daemon off;\nworker_processes 1;\nworker_rlimit_nofile 20000;\npid {directory}/pid;\nerror_log stderr error;\nload_module {module};\n{user}\
         events {{ worker_connections 16000; }}\n\
         http {{\n  access_log off;\n  client_body_temp_path {directory}/body;\n  proxy_temp_path {directory}/proxy;\n\
           fastcgi_temp_path {directory}/fastcgi;\n  uwsgi_temp_path {directory}/uwsgi;\n  scgi_temp_path {directory}/scgi;\n\
           client_body_buffer_size 16k;\n  client_body_in_single_buffer on;\n  keepalive_requests 1000000;\n\
           nchan_shared_memory_size 256M;\n\
           server {{\n    listen {address} backlog=4096;\n\
             location ~ ^/sub/(.+)$ {{ nchan_subscriber websocket; nchan_channel_id $1; nchan_subscriber_first_message newest; }}\n\
             location ~ ^/pub/(.+)$ {{ nchan_publisher; nchan_channel_id $1; nchan_message_buffer_length 1000; nchan_message_timeout 30s; }}\n\
           }}\n}}\n",
        directory = directory.display(),
        module = module.display(),
        user = if is_root() { "user root;\n" } else { "" },
    );
    let file = directory.join("nginx.conf");
    std::fs::write(&file, configuration).expect("nginx's configuration");
    file
}

/// NATS's configuration: WebSockets here, its own protocol on the next port.
fn nats(address: SocketAddr) -> PathBuf {
    let file = scratch("nats.conf");
    let configuration = format!(
        "listen: \"{}\"\nping_interval: \"10m\"\nwebsocket {{ listen: \"{address}\", no_tls: true }}\n",
        next(address),
    );
    std::fs::write(&file, configuration).expect("NATS's configuration");
    file
}

fn is_root() -> bool {
    std::env::var("USER").is_ok_and(|user| user == "root")
        || std::fs::metadata("/proc/self").is_ok_and(|own| {
            use std::os::unix::fs::MetadataExt;
            own.uid() == 0
        })
}
