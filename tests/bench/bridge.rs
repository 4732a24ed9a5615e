//! From LISTEN to nchan or NATS, which know nothing of Postgres: what its user would have to write, and not
//! counted as its work.

use std::net::SocketAddr;
use std::thread::JoinHandle;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use crate::ground::alone;
use crate::listen::listen;

/// How a server takes messages.
pub struct Way {
    /// What is said first.
    greeting: &'static str,
    /// What says that of this record a row comes.
    publish: fn(id: &str, row: &str) -> String,
}

/// An HTTP request each.
pub const NCHAN: Way = Way {
    greeting: "",
    publish: |id, row| {
        format!(
            "POST /pub/{id} HTTP/1.1\r\nHost: nchan\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{row}",
            row.len()
        )
    },
};

/// Its own protocol.
pub const NATS: Way = Way {
    greeting: "CONNECT {\"verbose\":false}\r\n",
    publish: |id, row| format!("PUB {id} {}\r\n{row}\r\n", row.len()),
};

/// A bridge, until it is stopped.
pub struct Bridge {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Bridge {
    /// Ends it.
    pub fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}

/// Starts one in a thread of its own; it listens when this returns.
pub fn start(url: String, server: SocketAddr, way: &'static Way) -> Bridge {
    let (stop, stopped) = oneshot::channel();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        alone(async {
            let changes = listen(&url).await;
            let (mut server, mut out) = TcpStream::connect(server)
                .await
                .expect("the server")
                .into_split();
            out.write_all(way.greeting.as_bytes())
                .await
                .expect("the server");
            let _ = ready.send(());
            let answers = async {
                let mut buffer = vec![0; 16 * 1024];
                while server.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
            };
            tokio::select! {
                () = pass(changes, way, &mut out) => {}
                () = answers => {}
                _ = stopped => {}
            }
        })
    });
    is_ready.recv().expect("a bridge that listens");
    Bridge { stop, thread }
}

async fn pass(
    mut changes: mpsc::UnboundedReceiver<String>,
    way: &Way,
    out: &mut (impl AsyncWriteExt + Unpin),
) {
    while let Some(row) = changes.recv().await {
        // row_to_json begins with the key
        let id = row.split('"').nth(3).unwrap_or_default();
        let request = (way.publish)(id, &row);
        if out.write_all(request.as_bytes()).await.is_err() {
            return;
        }
    }
}
