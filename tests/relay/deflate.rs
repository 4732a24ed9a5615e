//! Compressed frames (RFC 7692): agreed upon by those who offer it, the same text to all, and far fewer bytes;
//! what clients compress is read, and a bomb is not unpacked.

use crm_relay::deflate::{deflate, inflate};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::contract;
use crate::harness::{Client, DEADLINE, Database, Relay, masked};

const LISTING: &str = "00000000-0000-4000-8000-000000000001";
const ESCROW: &str = "00000000-0000-4000-8000-000000000002";

/// A client that looks at the bytes.
struct Raw {
    stream: TcpStream,
    bytes: Vec<u8>,
}

/// A frame as it came: its first byte, its payload, and how many bytes it took.
struct Came {
    first: u8,
    payload: Vec<u8>,
    size: usize,
}

impl Came {
    fn is_compressed(&self) -> bool {
        self.first & 0x40 != 0
    }

    fn json(&self) -> Value {
        let text = match self.is_compressed() {
            true => inflate(&self.payload, 1 << 20).expect("it can be unpacked"),
            false => self.payload.clone(),
        };
        let text = String::from_utf8(text).expect("texts are UTF-8");
        contract::frame(&text);
        serde_json::from_str(&text).unwrap()
    }
}

impl Raw {
    /// A WebSocket with these offers; what was agreed upon.
    async fn connect(relay: &Relay, offers: &str) -> (Raw, Option<String>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let stream = socket.connect(relay.address().parse().unwrap()).await;
        let mut raw = Raw {
            stream: stream.unwrap(),
            bytes: Vec::new(),
        };
        let handshake = format!(
            "GET /ws HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{offers}\r\n",
            relay.address()
        );
        raw.stream.write_all(handshake.as_bytes()).await.unwrap();
        let end = loop {
            let mut ends = raw.bytes.windows(4);
            if let Some(end) = ends.position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            raw.read().await;
        };
        let head: Vec<u8> = raw.bytes.drain(..end).collect();
        let head = String::from_utf8(head).unwrap().to_lowercase();
        assert!(head.starts_with("http/1.1 101"), "{head}");
        let mut lines = head.lines();
        let agreed = lines.find_map(|line| line.strip_prefix("sec-websocket-extensions: "));
        (raw, agreed.map(str::to_owned))
    }

    async fn read(&mut self) {
        let read = self.stream.read_buf(&mut self.bytes);
        let count = timeout(DEADLINE, read).await.expect("something").unwrap();
        assert!(count > 0, "the relay has gone");
    }

    async fn frame(&mut self) -> Came {
        loop {
            let (header, length) = match self.bytes[..] {
                [_, 126, a, b, ..] => (4, usize::from(u16::from_be_bytes([a, b]))),
                [_, 127, _, _, _, _, a, b, c, d, ..] => {
                    (10, u32::from_be_bytes([a, b, c, d]) as usize)
                }
                [_, short @ ..126, ..] => (2, usize::from(short)),
                _ => (2, usize::MAX - 2),
            };
            if self.bytes.len() >= header + length {
                let frame: Vec<u8> = self.bytes.drain(..header + length).collect();
                return Came {
                    first: frame[0],
                    payload: frame[header..].to_vec(),
                    size: frame.len(),
                };
            }
            self.read().await;
        }
    }

    /// The next frame of this type.
    async fn of(&mut self, kind: &str) -> Came {
        loop {
            let frame = self.frame().await;
            if frame.json()["type"] == kind {
                return frame;
            }
        }
    }

    async fn say(&mut self, frame: &Value) {
        let frame = masked(1, frame.to_string().as_bytes());
        self.stream.write_all(&frame).await.unwrap();
    }

    /// The same, compressed.
    async fn squeeze(&mut self, payload: &[u8]) {
        let squeezed = deflate(payload).expect("it is shorter by that");
        let mut frame = masked(1, &squeezed);
        frame[0] |= 0x40;
        self.stream.write_all(&frame).await.unwrap();
    }

    async fn subscribe(&mut self, rooms: &[String]) {
        self.say(&json!({"type": "hello"})).await;
        self.say(&json!({"type": "subscribe", "id": 1, "rooms": rooms}))
            .await;
        self.of("subscribed").await;
    }
}

const OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";

fn rooms() -> [String; 2] {
    [format!("listings:{LISTING}"), format!("escrows:{ESCROW}")]
}

/// A listing of 1.5 KB, and an escrow with 12 KB of JSON, each as its insert tells it.
async fn records(database: &Database) {
    let listing = format!(
        "insert into listings (id, property_address, city, state, zip_code, list_price, description, features, photos)
         values ('{LISTING}', '1420 Chester Ave', 'Bakersfield', 'CA', '93301', 425000,
                 'Charming four bedroom home near downtown with a large yard, updated kitchen and new roof. Walking
distance to parks, schools and the farmers market. Seller is motivated; offers are reviewed on Tuesday.',
                 '[\"pool\", \"garage\", \"fireplace\"]', '[\"https://cdn.example.com/p/{LISTING}.jpg\"]')"
    );
    let escrow = format!(
        "insert into escrows (id, property_address, people)
         select '{ESCROW}', '1420 Chester Ave', jsonb_agg(jsonb_build_object(
                  'id', md5('id' || n)::uuid, 'role', (array['buyer', 'seller', 'lender', 'escrow_officer'])[1 + n % 4],
                  'name', (array['Maria Lopez', 'John Smith', 'Ada Byron', 'Wei Zhang'])[1 + n / 4 % 4],
                  'email', left(md5('mail' || n), 8) || '@example.com', 'phone', '661-555-' || 1000 + n * 37 % 9000,
                  'company', 'Acme Escrow', 'signed', n % 3 = 0))
           from generate_series(1, 55) n"
    );
    database.execute(&listing).await;
    database.execute(&escrow).await;
}

#[tokio::test]
async fn who_offers_it_gets_the_same_texts_in_far_fewer_bytes() {
    let database = Database::create().await;
    let relay = Relay::start(&database.url()).await;
    let mut plain = Client::connect(&relay).await;
    plain.subscribe(&rooms()).await;
    let mut compressed = Vec::new();
    for offers in [
        OFFER,
        "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=12\r\n",
        "Sec-WebSocket-Extensions: x-other\r\nSec-WebSocket-Extensions: permessage-deflate\r\n",
    ] {
        let (mut raw, agreed) = Raw::connect(&relay, offers).await;
        let agreed = agreed.expect("it is agreed upon");
        let parameters: Vec<&str> = agreed.split("; ").collect();
        let wants_window = offers.contains("server_max_window_bits");
        assert_eq!(parameters[0], "permessage-deflate");
        assert!(parameters.contains(&"server_no_context_takeover"));
        assert!(parameters.contains(&"client_no_context_takeover"));
        // what was not offered need not be understood
        assert_eq!(
            parameters.contains(&"server_max_window_bits=12"),
            wants_window
        );
        assert!(!agreed.contains("client_max_window_bits"), "{agreed}");
        raw.subscribe(&rooms()).await;
        compressed.push(raw);
    }
    records(&database).await;
    for (kind, kilobytes, most) in [
        ("LISTING_CREATED", 1.5, 0.60),
        ("ESCROW_CREATED", 12.0, 0.30),
    ] {
        let event = plain.next_event().await;
        let size = event.to_string().len();
        assert!(
            (size as f64 / 1024.0 / kilobytes - 1.0).abs() < 0.35,
            "{kind}: {size}"
        );
        for raw in &mut compressed {
            let came = raw.of(kind).await;
            assert!(came.is_compressed(), "{kind}");
            assert_eq!(came.json(), event);
            let share = came.size as f64 / size as f64;
            assert!(
                share <= most,
                "{kind}: {} of {size} bytes, {share:.2}",
                came.size
            );
        }
    }
    // too short for it to pay
    compressed[0].say(&json!({"type": "ping", "id": 7})).await;
    assert!(!compressed[0].of("pong").await.is_compressed());
}

#[tokio::test]
async fn what_a_client_compresses_is_read_and_a_bomb_is_not_unpacked() {
    let database = Database::create().await;
    let relay = Relay::start(&database.url()).await;
    let (mut raw, _) = Raw::connect(&relay, OFFER).await;
    raw.say(&json!({"type": "hello"})).await;
    let many: Vec<String> = (0..100)
        .map(|number| format!("leads:00000000-0000-4000-8000-{number:012}"))
        .collect();
    let subscribe = json!({"type": "subscribe", "id": "s", "rooms": many});
    raw.squeeze(subscribe.to_string().as_bytes()).await;
    let answer = raw.of("subscribed").await.json();
    assert_eq!(
        answer["rooms"].as_array().map(Vec::len),
        Some(100),
        "{answer}"
    );

    // sixteen megabytes of spaces in sixteen kilobytes; and what is no DEFLATE
    let bomb = deflate(&vec![b' '; 16 << 20]).unwrap();
    assert!(bomb.len() < 32_000);
    let garbled = vec![0xFF; 40];
    for (payload, code) in [(bomb, 1009_u16), (garbled, 1007)] {
        let (mut raw, _) = Raw::connect(&relay, OFFER).await;
        let before = relay.most_memory();
        let mut frame = masked(1, &payload);
        frame[0] |= 0x40;
        raw.stream.write_all(&frame).await.unwrap();
        let close = raw.frame().await;
        assert_eq!(close.first, 0x88);
        assert_eq!(close.payload[..2], code.to_be_bytes());
        // the kernel sums up each core's share now and then, and may have less than it had
        let grown = relay.most_memory().saturating_sub(before);
        assert!(grown < 4096, "{grown} KiB");
    }
    // without an agreement the bit means nothing
    let (mut raw, agreed) = Raw::connect(&relay, "").await;
    assert_eq!(agreed, None);
    raw.squeeze(&b"{\"type\":\"hello\"}".repeat(20)).await;
    assert_eq!(raw.frame().await.payload[..2], 1002_u16.to_be_bytes());
}

#[tokio::test]
async fn it_can_be_switched_off() {
    let database = Database::create().await;
    let relay = Relay::with(&database.url(), |command| {
        command.env("RELAY_DEFLATE", "false");
    })
    .await;
    let (mut raw, agreed) = Raw::connect(&relay, OFFER).await;
    assert_eq!(agreed, None);
    raw.subscribe(&rooms()).await;
    records(&database).await;
    assert!(!raw.of("ESCROW_CREATED").await.is_compressed());
}

#[tokio::test]
async fn who_reads_late_gets_each_frame_whole_and_is_not_taken_for_slow_afterwards() {
    let database = Database::create().await;
    let lead = format!("insert into leads (id) values ('{LISTING}')");
    database.execute(&lead).await;
    let relay = Relay::with(&database.url(), |command| {
        command.env("RELAY_QUEUE_BYTES", "45000000");
    })
    .await;
    let (mut raw, _) = Raw::connect(&relay, OFFER).await;
    raw.subscribe(&[format!("leads:{LISTING}")]).await;
    // more than the sockets hold, so that writes end within frames; and in all more than may wait
    for round in 0..2 {
        for step in 1..=100 {
            let notes = format!(
                "update leads set number_of_contacts = {step}, notes =
                   (select string_agg(md5('{round} {step} ' || n), '') from generate_series(1, 6000) n)
                  where id = '{LISTING}'"
            );
            database.execute(&notes).await;
        }
        for step in 1..=100 {
            let came = raw.frame().await;
            assert!(came.is_compressed());
            let event = came.json();
            assert_eq!(event["type"], "LEAD_UPDATED", "{round}: {event}");
            assert_eq!(event["data"]["number_of_contacts"], step);
        }
    }
}
