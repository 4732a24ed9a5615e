//! From LISTEN to nchan, which knows nothing of Postgres: what its user would have to write, and not
//! counted as its work.

use std::net::SocketAddr;
use std::thread::JoinHandle;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use crate::ground::alone;
use crate::listen::listen;

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
pub fn start(url: String, server: SocketAddr) -> Bridge {
    let (stop, stopped) = oneshot::channel();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        alone(async {
            let changes = listen(&url).await;
            let (mut server, mut out) = TcpStream::connect(server)
                .await
                .expect("the server")
                .into_split();
            let _ = ready.send(());
            let answers = async {
                let mut buffer = vec![0; 16 * 1024];
                while server.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
            };
            tokio::select! {
                () = pass(changes, &mut out) => {}
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
    out: &mut (impl AsyncWriteExt + Unpin),
) {
    while let Some(row) = changes.recv().await {
        // row_to_json begins with the key
        let id = row.split('"').nth(3).unwrap_or_default();
        let request = format!(
            "POST /pub/{id} HTTP/1.1\r\nHost: nchan\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{row}",
            row.len()
        );
        if out.write_all(request.as_bytes()).await.is_err() {
            return;
        }
    }
}
