//! Behind a real nginx and a real Caddy, by the files under deploy/, with TLS.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::contract;
use crate::edge::{Authority, Folder, connector};
use crate::harness::{DEADLINE, Database, Relay, token};

const NGINX: &str = include_str!("../../deploy/nginx.conf");
const CADDY: &str = include_str!("../../deploy/Caddyfile");
const SITE: &str = "live.crm.example";
const LEAD: &str = "00000000-0000-4000-8000-000000000001";

/// A server that was installed, or only unpacked by tests/run.sh, which starts none by itself.
fn program(name: &str, place: &str) -> Command {
    let unpacked = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("target/servers")
        .join(place);
    let installed = PathBuf::from("/").join(place);
    let path = [installed, unpacked].into_iter().find(|path| path.exists());
    Command::new(path.unwrap_or(name.into()))
}

pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// What stands there exactly once, as something else.
fn with(text: &str, changes: &[(&str, &str)]) -> String {
    changes.iter().fold(text.to_owned(), |text, (from, to)| {
        assert_eq!(text.matches(from).count(), 1, "{from}");
        text.replace(from, to)
    })
}

/// A reverse proxy, ended with its test.
struct Front {
    child: Child,
    port: u16,
    /// What it is called by clients.
    name: &'static str,
    authority: CertificateDer<'static>,
    _folder: Folder,
}

impl Front {
    async fn begin(
        mut command: Command,
        port: u16,
        name: &'static str,
        authority: CertificateDer<'static>,
        folder: Folder,
    ) -> Front {
        let spawned = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = spawned.unwrap_or_else(|error| {
            panic!("{command:?}: {error}; tests/run.sh unpacks what is missing, once")
        });
        let up = async { while TcpStream::connect(("127.0.0.1", port)).await.is_err() {} };
        timeout(DEADLINE, up).await.expect("it listens");
        Front {
            child,
            port,
            name,
            authority,
            _folder: folder,
        }
    }

    /// nginx, with these changes to its settings.
    async fn nginx(relay: &Relay, changes: &[(&str, &str)]) -> Front {
        let folder = Folder::new();
        let authority = Authority::new();
        let (certificate, key) = authority.sign(SITE);
        let (certificate, key) = (folder.write("pem", &certificate), folder.write("key", &key));
        let (port, place) = (free_port(), folder.0.display());
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path {place}/{what};\n"));
        let settings = with(
            NGINX,
            &[
                ("http {\n", &format!("http {{\n{}", temporary.concat())),
                ("listen 443 ssl;", &format!("listen 127.0.0.1:{port} ssl;")),
                (
                    "server 127.0.0.1:7420;",
                    &format!("server {};", relay.address()),
                ),
                ("/run/nginx.pid", &format!("{place}/pid")),
                ("/etc/nginx/live.crm.example.pem", &certificate),
                ("/etc/nginx/live.crm.example.key", &key),
            ],
        );
        let settings = folder.write("nginx.conf", &with(&settings, changes));
        let mut nginx = program("nginx", "usr/sbin/nginx");
        nginx.args(["-e", "stderr", "-g", "daemon off;", "-c", &settings]);
        let authority = authority.0.der().clone();
        Front::begin(nginx, port, SITE, authority, folder).await
    }

    /// Caddy, as deploy/compose.yaml has it.
    async fn caddy(relay: &Relay) -> Front {
        let folder = Folder::new();
        let (port, operators) = (free_port(), free_port());
        let settings = with(
            CADDY,
            &[(
                "\tskip_install_trust\n",
                "\tskip_install_trust\n\tdefault_bind 127.0.0.1\n",
            )],
        );
        let settings = folder.write("Caddyfile", &settings);
        let mut caddy = program("caddy", "usr/bin/caddy");
        caddy
            .args(["run", "--adapter", "caddyfile", "--config", &settings])
            .env("SITE", format!("localhost:{port}"))
            .env("UPSTREAM", relay.address())
            .env("CADDY_ADMIN", format!("127.0.0.1:{operators}"))
            .envs(["HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"].map(|name| (name, &folder.0)));
        let root = folder.0.join("caddy/pki/authorities/local/root.crt");
        let child = Front::begin(
            caddy,
            port,
            "localhost",
            CertificateDer::from(vec![]),
            folder,
        );
        let mut front = child.await;
        front.authority = CertificateDer::from_pem_file(root).unwrap();
        front
    }

    /// TLS from an address of one's own.
    async fn connect(&self) -> TlsStream<TcpStream> {
        let connector = connector(self.authority.clone());
        let attempt = async {
            // Caddy listens before it has signed its certificate
            loop {
                let socket = TcpSocket::new_v4().unwrap();
                socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
                let to = std::net::SocketAddr::from(([127, 0, 0, 1], self.port));
                let stream = socket.connect(to).await.unwrap();
                let name = self.name.try_into().unwrap();
                if let Ok(stream) = connector.connect(name, stream).await {
                    return stream;
                }
            }
        };
        timeout(DEADLINE, attempt).await.expect("TLS")
    }

    /// A page of the site's own that says hello, with a lie about where it is.
    async fn page(&self, hello: Value) -> Page {
        let origin = match self.name {
            SITE => format!("https://{SITE}"),
            name => format!("https://{name}:{}", self.port),
        };
        let url = format!("{}/ws", origin.replace("https", "wss"));
        let mut request = url.into_client_request().unwrap();
        let headers = request.headers_mut();
        headers.insert("origin", origin.parse().unwrap());
        headers.insert("x-forwarded-for", "203.0.113.9".parse().unwrap());
        let stream = self.connect().await;
        let (socket, _) = tokio_tungstenite::client_async(request, stream)
            .await
            .expect("a handshake");
        let mut page = Page(socket);
        page.say(hello).await;
        assert_eq!(page.hear().await.unwrap()["type"], "welcome");
        page
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        // nginx ends its workers at SIGTERM, and would not at SIGKILL
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").arg(pid).status();
        let _ = self.child.wait();
    }
}

struct Page(WebSocketStream<TlsStream<TcpStream>>);

impl Page {
    async fn say(&mut self, frame: Value) {
        self.0.send(Message::text(frame.to_string())).await.unwrap();
    }

    /// The next frame, or None where the connection ends.
    async fn hear(&mut self) -> Option<Value> {
        loop {
            match timeout(DEADLINE, self.0.next()).await.expect("in time")? {
                Ok(Message::Text(text)) => return Some(contract::frame(&text)),
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                Ok(Message::Close(_)) | Err(_) => return None,
                Ok(other) => panic!("{other:?}"),
            }
        }
    }

    /// The next frame of this kind.
    async fn hear_of(&mut self, kind: &str) -> Value {
        loop {
            let frame = self.hear().await.expect("it stays open");
            if frame["type"] == kind {
                return frame;
            }
        }
    }
}

/// What is the same behind each of them.
async fn is_live(database: &Database, relay: &Relay, page: &mut Page) {
    // who it is says the proxy, not the page
    relay.logged("peer=127.0.0.2").await;
    assert!(!relay.logs().contains("203.0.113.9"), "{}", relay.logs());
    for _ in 0..4 {
        page.hear_of("heartbeat").await;
    }
    page.say(json!({"type": "subscribe", "id": 1, "rooms": [format!("leads:{LEAD}")]}))
        .await;
    page.hear_of("subscribed").await;
    // small ones at once, large ones whole
    for length in [1, 1_000_000] {
        database
            .execute(&format!("update leads set notes = repeat('x', {length})"))
            .await;
        let change = page.hear_of("LEAD_UPDATED").await;
        assert_eq!(change["data"]["notes"].as_str().map(str::len), Some(length));
    }
    relay.signal("TERM");
    page.hear_of("draining").await;
}

async fn with_a_lead() -> Database {
    let database = Database::create().await;
    let user = "insert into users (id, email, first_name, last_name) values";
    database
        .execute(&format!(
            "{user} ('{LEAD}', 'a@crm.example', 'A', 'B'); insert into leads (id, owner_id) values ('{LEAD}', '{LEAD}')"
        ))
        .await;
    database
}

fn every_second(command: &mut tokio::process::Command) {
    command
        .env("RELAY_TRUSTED_PROXIES", "127.0.0.1")
        .env("RELAY_HEARTBEAT", "1s");
}

const TWO_SECONDS: [(&str, &str); 2] = [
    ("proxy_read_timeout 75s;", "proxy_read_timeout 2s;"),
    ("proxy_send_timeout 75s;", "proxy_send_timeout 2s;"),
];

#[tokio::test]
async fn behind_nginx_a_page_hears_everything_and_heartbeats_keep_it_open() {
    let database = with_a_lead().await;
    let relay = Relay::guarded(&database.url(), every_second).await;
    let front = Front::nginx(&relay, &TWO_SECONDS).await;
    let mut page = front
        .page(json!({"type": "hello", "token": token(LEAD)}))
        .await;
    is_live(&database, &relay, &mut page).await;
}

#[tokio::test]
async fn nginx_ends_a_connection_whose_heartbeat_is_longer_than_its_patience() {
    let database = with_a_lead().await;
    let relay = Relay::guarded(&database.url(), |_| {}).await;
    let front = Front::nginx(&relay, &TWO_SECONDS).await;
    let mut page = front
        .page(json!({"type": "hello", "token": token(LEAD)}))
        .await;
    assert_eq!(page.hear().await, None);
    // as it is delivered it has patience for three
    let patience = NGINX
        .split_once("proxy_read_timeout ")
        .unwrap()
        .1
        .split_once("s;")
        .unwrap()
        .0;
    assert!(Duration::from_secs(patience.parse().unwrap()) >= 3 * Duration::from_secs(25));
}

#[tokio::test]
async fn behind_caddy_a_page_hears_everything_and_stays() {
    let database = with_a_lead().await;
    let relay = Relay::with(&database.url(), every_second).await;
    let front = Front::caddy(&relay).await;
    let mut page = front.page(json!({"type": "hello"})).await;
    is_live(&database, &relay, &mut page).await;
}
