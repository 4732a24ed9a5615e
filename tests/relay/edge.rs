//! The edge: who may come in at all, how many, how often, and what is seen on the wire.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::contract;
use crate::harness::{Client, Cluster, DEADLINE, Database, Relay, connect, crm_relay};

/// The status of a handshake with this header.
async fn handshake(relay: &Relay, name: &'static str, value: &str) -> u16 {
    let url = format!("ws://{}/ws", relay.address());
    let mut request = url.into_client_request().unwrap();
    request.headers_mut().append(name, value.parse().unwrap());
    match tokio_tungstenite::connect_async(request).await {
        Ok((socket, answer)) => {
            // it stays
            std::mem::forget(socket);
            answer.status().as_u16()
        }
        Err(Error::Http(answer)) => answer.status().as_u16(),
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test]
async fn one_address_has_so_many_connections_and_a_proxy_s_word_counts_only_if_it_is_trusted() {
    let database = Database::create().await;
    let limited = async |proxies: Option<&str>| {
        Relay::with(&database.url(), |command| {
            command.env("RELAY_MAX_CONNECTIONS_PER_ADDRESS", "2");
            if let Some(proxies) = proxies {
                command.env("RELAY_TRUSTED_PROXIES", proxies);
            }
        })
        .await
    };
    let relay = limited(None).await;
    for (forged, status) in [("192.0.2.1", 101), ("192.0.2.2", 101), ("192.0.2.3", 429)] {
        assert_eq!(handshake(&relay, "x-forwarded-for", forged).await, status);
    }
    assert_eq!(relay.get("/healthz", "").await.0, 200);
    let relay = limited(Some("127.0.0.0/8, ::1")).await;
    for (told, status) in [
        ("192.0.2.1", 101),
        ("192.0.2.1", 101),
        ("192.0.2.1", 429),
        ("198.51.100.1, 192.0.2.1", 429),
        ("192.0.2.1, 127.0.0.9", 429),
        ("192.0.2.1, 192.0.2.2", 101),
    ] {
        assert_eq!(
            handshake(&relay, "x-forwarded-for", told).await,
            status,
            "{told}"
        );
    }
    relay.logged("RELAY_MAX_CONNECTIONS_PER_ADDRESS").await;
}

#[tokio::test]
async fn one_user_has_so_many_connections() {
    let database = Database::create().await;
    database
        .execute("insert into users (id, email, first_name, last_name) values ('00000000-0000-4000-8000-000000000001', '', '', '')")
        .await;
    let relay = Relay::guarded(&database.url(), |command| {
        command.env("RELAY_MAX_CONNECTIONS_PER_USER", "2");
    })
    .await;
    let user = "00000000-0000-4000-8000-000000000001";
    let mut one = Client::of(&relay, user).await;
    let _two = Client::of(&relay, user).await;
    let mut third = Client::silent(&relay).await;
    let hello = json!({"type": "hello", "token": crate::harness::token(user)});
    third.send(hello).await;
    assert_eq!(third.end().await, (4429, vec![]));
    let _other = Client::of(&relay, "somebody").await;
    one.send_raw(Message::Close(None)).await;
    while one.next_or_end().await.is_some() {}
    relay.logged("disconnected").await;
    let again = async {
        loop {
            let mut client = Client::silent(&relay).await;
            let hello = json!({"type": "hello", "token": crate::harness::token(user)});
            client.send(hello).await;
            if client.next_or_end().await.is_some() {
                return;
            }
        }
    };
    timeout(DEADLINE, again).await.expect("its place is free");
}

#[tokio::test]
async fn who_asks_too_often_is_told_and_who_goes_on_is_closed() {
    let database = Database::create().await;
    let relay = Relay::with(&database.url(), |command| {
        command.env("RELAY_MAX_FRAMES", "10");
        command.env("RELAY_MAX_SUBSCRIBES", "1");
    })
    .await;
    let mut other = Client::connect(&relay).await;
    let mut eager = Client::connect(&relay).await;
    // ten seconds' worth at once
    for _ in 0..10 {
        assert_eq!(eager.subscribe(&["team:1"]).await["type"], "subscribed");
    }
    let refused = eager.subscribe(&["team:2"]).await;
    assert_eq!(refused["code"], "rate_limited", "{refused}");
    assert_eq!(
        eager.ping().await["type"],
        "pong",
        "frames are another matter"
    );
    for id in 0..300 {
        eager.send(json!({"type": "ping", "id": id})).await;
    }
    let (code, frames) = eager.end().await;
    assert_eq!(code, 4429);
    let of = |code: &str| frames.iter().filter(|frame| frame["code"] == code).count();
    assert_eq!(of("rate_limited"), 63, "and one before");
    let told = frames.iter().filter_map(|frame| frame["id"].as_u64());
    let whole: Vec<u64> = (0..frames.len() as u64).collect();
    assert_eq!(told.collect::<Vec<_>>(), whole, "each by its id, in order");
    assert_eq!(other.ping().await["type"], "pong");
}

#[tokio::test]
async fn one_address_that_only_connects_does_not_keep_others_out() {
    rlimit::increase_nofile_limit(12_000).unwrap();
    let database = Database::create().await;
    let relay = Relay::start(&database.url()).await;
    let to: SocketAddr = relay.address().parse().unwrap();
    let mut held = Vec::new();
    for _ in 0..10_000 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let mut stream = socket.connect(to).await.unwrap();
        // a request that never ends; one that was dropped does not take it
        let _ = stream.write_all(b"GET /ws HTTP/1.1\r\nHost: ").await;
        held.push(stream);
    }
    relay
        .logged("too many requests of one address at once")
        .await;
    let mut client = Client::connect(&relay).await;
    assert_eq!(client.ping().await["type"], "pong");
    assert_eq!(relay.get("/healthz", "").await.0, 200);
}

#[tokio::test]
async fn whoever_comes_while_the_relay_is_busy_waits_in_the_system_s_queue() {
    rlimit::increase_nofile_limit(12_000).unwrap();
    let longest = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let longest: usize = longest.trim().parse().unwrap();
    let database = Database::create().await;
    let relay = Relay::start(&database.url()).await;
    relay.signal("STOP");
    // into a queue that is full nobody gets
    let all = (0..longest.min(4000)).map(|_| TcpStream::connect(relay.address()));
    let waiting = timeout(DEADLINE, futures::future::try_join_all(all)).await;
    relay.signal("CONT");
    let waiting = waiting.expect("all are connected at once").unwrap();
    drop(waiting);
    assert_eq!(relay.get("/healthz", "").await.0, 200);
}

#[tokio::test]
async fn headers_that_never_end_are_cut_off() {
    let database = Database::create().await;
    let relay = Relay::start(&database.url()).await;
    let began = Instant::now();
    let mut slow = TcpStream::connect(relay.address()).await.unwrap();
    slow.write_all(b"GET /ws HTTP/1.1\r\nX-Long: ")
        .await
        .unwrap();
    let mut drop_by_drop = tokio::time::interval(Duration::from_millis(200));
    let mut told = [0; 512];
    let cut = loop {
        tokio::select! {
            read = slow.read(&mut told) => break read,
            _ = drop_by_drop.tick() => {
                let written = slow.write_all(b"and on").await;
                if let Err(error) = written {
                    break Err(error);
                }
            }
        }
    };
    let lasted = began.elapsed();
    assert!(lasted >= Duration::from_secs(9), "it was given {lasted:?}");
    assert!(lasted <= Duration::from_secs(9) + DEADLINE, "{lasted:?}");
    assert!(!matches!(cut, Ok(count) if told[..count].starts_with(b"HTTP/1.1 2")));
}

#[tokio::test]
async fn details_are_for_operators() {
    let database = Database::create().await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = port.local_addr().unwrap().to_string();
    drop(port);
    let folder = Folder::new();
    let relay = Relay::with(&database.url(), |command| {
        command.env(
            "RELAY_ADMIN_TOKEN_FILE",
            folder.write("token", "an operator's token\n"),
        );
        command.env("RELAY_ADMIN_LISTEN", &admin);
    })
    .await;
    let ready = json!({"status": "ready"});
    for headers in [
        "",
        "Authorization: Bearer an operator's tokem\r\n",
        "Authorization: Bearer \r\n",
        "Authorization: an operator's token\r\n",
    ] {
        let (status, body) = relay.get("/readyz", headers).await;
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, body), (200, ready.clone()), "{headers}");
    }
    let mut client = Client::connect(&relay).await;
    assert_eq!(client.ping().await["type"], "pong");
    let (_, body) = relay
        .get("/readyz", "Authorization: Bearer an operator's token\r\n")
        .await;
    let told: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(told["connections"], 1, "{told}");
    assert!(
        told["modules"]
            .as_array()
            .unwrap()
            .contains(&json!("leads"))
    );
    assert!(told["database"].as_str().unwrap().contains(database.name()));
    let mut stream = TcpStream::connect(&admin).await.unwrap();
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("\"cursor\""), "{answer}");
}

#[tokio::test]
async fn subdomains_are_admitted_where_they_are_meant() {
    let database = Database::create().await;
    let relay = Relay::with(&database.url(), |command| {
        command.env(
            "RELAY_ALLOWED_ORIGINS",
            "https://*.crm.example, https://crm.example:8443",
        );
    })
    .await;
    let own = format!("http://{}", relay.address());
    for (origin, status) in [
        (own.as_str(), 101),
        ("https://app.crm.example", 101),
        ("https://crm.example:8443", 101),
        ("https://crm.example", 403),
        ("https://evil-crm.example", 403),
        ("https://app.crm.example.evil.example", 403),
        ("http://app.crm.example", 403),
        ("null", 403),
    ] {
        assert_eq!(
            handshake(&relay, "origin", origin).await,
            status,
            "{origin}"
        );
    }
}

/// An authority, and what it signed for these names: PEM of the certificate and of its key.
pub struct Authority(pub CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Authority {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Authority(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    pub fn sign(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let signed = params.signed_by(&key, &self.0).unwrap();
        (signed.pem(), key.serialize_pem())
    }

    fn file(&self, folder: &Folder) -> String {
        folder.write(&uuid::Uuid::new_v4().to_string(), &self.0.pem())
    }
}

/// Who trusts this authority alone.
pub fn connector(
    authority: rustls::pki_types::CertificateDer<'static>,
) -> tokio_rustls::TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tokio_rustls::TlsConnector::from(Arc::new(config))
}

/// A folder, gone at the end.
pub struct Folder(pub std::path::PathBuf);

impl Folder {
    pub fn new() -> Folder {
        let path = std::env::temp_dir().join(format!("crm-relay-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&path).unwrap();
        Folder(path)
    }

    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn behind_tls_it_is_the_same_relay() {
    let database = Database::create().await;
    let folder = Folder::new();
    let authority = Authority::new();
    let (certificate, key) = authority.sign("localhost");
    let relay = Relay::with(&database.url(), |command| {
        command.env("RELAY_TLS_CERT", folder.write("cert.pem", &certificate));
        command.env("RELAY_TLS_KEY", folder.write("key.pem", &key));
    })
    .await;
    let connector = connector(authority.0.der().clone());
    let join = async || {
        let stream = TcpStream::connect(relay.address()).await.unwrap();
        let name = "localhost".try_into().unwrap();
        let stream = connector.connect(name, stream).await.unwrap();
        let url = format!(
            "wss://localhost:{}/ws",
            relay.address().rsplit_once(':').unwrap().1
        );
        let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
        for said in [
            json!({"type": "hello"}),
            json!({"type": "subscribe", "id": 1, "rooms": ["leads:00000000-0000-4000-8000-000000000001"]}),
        ] {
            socket.send(Message::text(said.to_string())).await.unwrap();
        }
        socket
    };
    let mut one = join().await;
    let mut slow = join().await;
    let mut next = async || loop {
        match timeout(DEADLINE, one.next()).await.unwrap() {
            Some(Ok(Message::Text(text))) => {
                return contract::frame(&text);
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(next().await["type"], "welcome");
    assert_eq!(next().await["type"], "subscribed");
    database
        .execute("insert into leads (id) values ('00000000-0000-4000-8000-000000000001')")
        .await;
    assert_eq!(next().await["type"], "LEAD_CREATED");
    // more than any buffer holds, while the other one reads nothing
    for step in 0..40 {
        let change = format!("update leads set notes = repeat('{step:04} ', 40000)");
        database.execute(&change).await;
        let told = next().await;
        assert!(
            told["data"]["notes"]
                .as_str()
                .unwrap()
                .starts_with(&format!("{step:04}"))
        );
    }
    for _ in 0..43 {
        let frame = timeout(DEADLINE, slow.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert!(!frame.is_close(), "{frame:?}");
    }
    // a stranger who speaks plainly is nobody's trouble
    let mut plain = TcpStream::connect(relay.address()).await.unwrap();
    plain
        .write_all(b"GET /healthz HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = timeout(DEADLINE, plain.read_to_end(&mut answer))
        .await
        .unwrap();
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    relay.signal("TERM");
    let closed = async { while !matches!(slow.next().await, Some(Ok(Message::Close(_)))) {} };
    timeout(DEADLINE, closed).await.expect("a farewell");
}

#[tokio::test]
async fn tls_to_postgres_means_what_it_means_to_libpq() {
    let cluster = Cluster::start().await;
    let folder = Folder::new();
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (certificate, key) = authority.sign("127.0.0.1");
    cluster.speak_tls(&certificate, &key);
    let session = connect(&cluster.url()).await;
    let is_on = "select setting from pg_settings where name = 'ssl'";
    let on = async {
        while session
            .query_one(is_on, &[])
            .await
            .unwrap()
            .get::<_, String>(0)
            != "on"
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, on).await.unwrap();
    let (known, unknown) = (authority.file(&folder), stranger.file(&folder));
    let by_name = cluster.url().replace("127.0.0.1", "localhost");
    let url = cluster.url();
    for (url, parameters, is_good) in [
        (&url, "sslmode=disable".to_owned(), true),
        (&url, "sslmode=prefer".to_owned(), true),
        (&url, "sslmode=require".to_owned(), true),
        (&url, format!("sslmode=verify-ca&sslrootcert={known}"), true),
        (
            &url,
            format!("sslmode=verify-full&sslrootcert={known}"),
            true,
        ),
        (
            &url,
            format!("sslmode=require&sslrootcert={unknown}"),
            false,
        ),
        (
            &url,
            format!("sslmode=verify-ca&sslrootcert={unknown}"),
            false,
        ),
        (
            &url,
            format!("sslmode=verify-full&sslrootcert={unknown}"),
            false,
        ),
        (
            &url,
            "sslmode=verify-full&sslrootcert=system".to_owned(),
            false,
        ),
        (
            &by_name,
            format!("sslmode=verify-ca&sslrootcert={known}"),
            true,
        ),
        (
            &by_name,
            format!("sslmode=verify-full&sslrootcert={known}"),
            false,
        ),
        (
            &url,
            format!(
                "sslmode=verify-full&sslrootcert={}/none",
                folder.0.display()
            ),
            false,
        ),
        (&url, "sslmode=sometimes".to_owned(), false),
    ] {
        let whole = format!("{url}?{parameters}");
        let told = crm_relay(&whole, &["install"]);
        let error = String::from_utf8_lossy(&told.stderr);
        assert_eq!(told.status.success(), is_good, "{parameters}: {error}");
    }
    // what counts is what Postgres sees
    for (parameters, is_tls) in [
        ("sslmode=disable", "f"),
        ("", "t"),
        ("sslmode=require", "t"),
    ] {
        let relay = Relay::start(&format!("{url}?{parameters}")).await;
        let seen = "select bool_and(ssl)::text from pg_stat_ssl join pg_stat_activity using (pid) where application_name like 'crm-relay %'";
        let seen: String = session.query_one(seen, &[]).await.unwrap().get(0);
        assert_eq!(
            seen,
            if is_tls == "t" { "true" } else { "false" },
            "{parameters}"
        );
        drop(relay);
        let gone = async {
            let left = "select from pg_stat_activity where application_name like 'crm-relay %'";
            while !session.query(left, &[]).await.unwrap().is_empty() {}
        };
        timeout(DEADLINE, gone).await.unwrap();
    }
}
