//! Ten thousand clients come, subscribe and vanish; nothing of them stays.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Duration, timeout};

use crate::harness::{DEADLINE, Database, Relay};

const CLIENTS: usize = 1000;
const ROUNDS: usize = 10;

fn open_files(relay: &Relay) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", relay.pid()))
        .unwrap()
        .count()
}

/// Resident memory in KiB.
pub fn memory(relay: &Relay) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let size = line.and_then(|line| line.split_whitespace().nth(1));
    size.unwrap().parse().unwrap()
}

/// A text message as a client's frame, its mask zero.
fn frame(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81, 0x80 | 126];
    frame.extend((text.len() as u16).to_be_bytes());
    frame.extend([0; 4]);
    frame.extend(text.as_bytes());
    frame
}

/// Connects, subscribes, perhaps unsubscribes, and vanishes without a word.
async fn come_and_vanish(address: &str, number: usize) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut said = format!(
        "GET /ws HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    .into_bytes();
    let room = format!("leads:00000000-0000-4000-8000-{number:012}");
    said.extend(frame(r#"{"type":"hello"}"#));
    said.extend(frame(&format!(
        r#"{{"type":"subscribe","id":1,"rooms":["{room}","team:{number}"]}}"#
    )));
    if number.is_multiple_of(2) {
        said.extend(frame(&format!(
            r#"{{"type":"unsubscribe","id":2,"rooms":["{room}"]}}"#
        )));
    }
    stream.write_all(&said).await.unwrap();
    // a third waits for the answers, a third does not read them, a third is gone at once
    let mut answer = [0; 4096];
    match number % 3 {
        0 => drop(timeout(DEADLINE, stream.read(&mut answer)).await),
        1 => stream.readable().await.unwrap(),
        _ => {}
    }
}

#[tokio::test]
async fn of_clients_that_vanish_nothing_stays() {
    let database = Database::create().await;
    let relay = Relay::start(&database.url()).await;
    let files = open_files(&relay);
    let mut after = Vec::new();
    for _ in 0..ROUNDS {
        for some in (0..CLIENTS).collect::<Vec<_>>().chunks(100) {
            let coming = some
                .iter()
                .map(|&number| come_and_vanish(relay.address(), number));
            futures::future::join_all(coming).await;
        }
        let gone = async {
            while open_files(&relay) > files {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(DEADLINE, gone).await.expect("all files are closed");
        after.push(memory(&relay));
    }
    assert!(
        after[ROUNDS - 1] < after[0] + after[0] / 4,
        "KiB after each round: {after:?}"
    );
    relay.signal("TERM");
    relay.logged("draining members=0 rooms=0").await;
    assert!(relay.stop_signalled().await.success());
}
