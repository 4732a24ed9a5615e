//! A TCP proxy that does what networks do: cut, freeze, slow down, split.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What happens on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// Nothing.
    Whole,
    /// Every connection is closed, new ones too.
    Cut,
    /// Nothing passes, nothing is closed.
    Frozen,
    /// Each piece is late.
    Slow,
    /// Every byte for itself, as far as the kernel lets.
    Split,
}

pub struct Proxy {
    port: u16,
    wire: Arc<watch::Sender<Wire>>,
}

impl Proxy {
    pub async fn start(to: String) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let wire = Arc::new(watch::Sender::new(Wire::Whole));
        let seen = wire.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (to, wire) = (to.clone(), seen.subscribe());
                tokio::spawn(async move {
                    if *wire.borrow() == Wire::Cut {
                        return;
                    }
                    let Ok(far) = TcpStream::connect(&to).await else {
                        return;
                    };
                    let (near_in, near_out) = near.into_split();
                    let (far_in, far_out) = far.into_split();
                    let there = pass(near_in, far_out, wire.clone());
                    let back = pass(far_in, near_out, wire.clone());
                    // one side gone is both gone
                    tokio::select! {
                        () = there => {}
                        () = back => {}
                    }
                });
            }
        });
        Proxy { port, wire }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn set(&self, wire: Wire) {
        self.wire.send_replace(wire);
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut wire: watch::Receiver<Wire>,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            cut = wire.wait_for(|wire| *wire == Wire::Cut) => { let _ = cut; return; }
        };
        let Ok(count @ 1..) = read else {
            return;
        };
        let now = *wire.borrow();
        let passed = match now {
            Wire::Whole => to.write_all(&buffer[..count]).await.is_ok(),
            Wire::Cut => false,
            Wire::Frozen => {
                let thawed = wire.wait_for(|wire| *wire != Wire::Frozen).await;
                thawed.is_ok_and(|wire| *wire != Wire::Cut)
                    && to.write_all(&buffer[..count]).await.is_ok()
            }
            Wire::Slow => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                to.write_all(&buffer[..count]).await.is_ok()
            }
            Wire::Split => {
                let _ = to.as_ref().set_nodelay(true);
                let mut whole = true;
                for byte in buffer[..count].chunks(1) {
                    whole &= to.write_all(byte).await.is_ok();
                }
                whole
            }
        };
        if !passed {
            return;
        }
    }
}
