//! The least that can be done: LISTEN on one side, sockets on the other, no journal, no difference, no
//! policy, one room at most for each record. A frame is made once.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::listen::listen;

/// Serves on the port that `PORT` names, with up to so many waiting frames of a room a write.
pub async fn serve(frames_a_write: usize) {
    let url = std::env::var("DATABASE_URL").expect("DATABASE_URL");
    let port = std::env::var("PORT")
        .ok()
        .and_then(|port| port.parse().ok())
        .expect("PORT");
    let mut changes = listen(&url).await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .await
        .expect("the port");
    let (come, mut coming) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let come = come.clone();
            tokio::spawn(async move {
                if let Some(who) = greet(stream).await {
                    let _ = come.send(who);
                }
            });
        }
    });
    let mut rooms: HashMap<String, Vec<TcpStream>> = HashMap::new();
    loop {
        tokio::select! {
            Some((room, stream)) = coming.recv() => rooms.entry(room).or_default().push(stream),
            Some(row) = changes.recv() => {
                let mut room = id(&row).to_owned();
                let mut bytes = frame(&row);
                let mut waiting = 1;
                while waiting < frames_a_write && let Ok(row) = changes.try_recv() {
                    if id(&row) != room {
                        tell(&rooms, &room, &bytes).await;
                        bytes.clear();
                        room = id(&row).to_owned();
                    }
                    bytes.extend(frame(&row));
                    waiting += 1;
                }
                tell(&rooms, &room, &bytes).await;
            }
        }
    }
}

async fn tell(rooms: &HashMap<String, Vec<TcpStream>>, room: &str, bytes: &[u8]) {
    for stream in rooms.get(room).into_iter().flatten() {
        let mut rest = bytes;
        while !rest.is_empty() {
            match stream.try_write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let _ = stream.writable().await;
                }
                // one that has gone
                Err(_) => break,
            }
        }
    }
}

/// Takes the handshake, reads the one frame that names the room, answers it. The client that it is for
/// looks at no `Sec-WebSocket-Accept`.
async fn greet(mut stream: TcpStream) -> Option<(String, TcpStream)> {
    stream.set_nodelay(true).ok()?;
    let mut buffer = [0; 1024];
    let mut read = 0;
    while !buffer[..read].windows(4).any(|four| four == b"\r\n\r\n") {
        read += stream
            .read(&mut buffer[read..])
            .await
            .ok()
            .filter(|&read| read > 0)?;
    }
    stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await.ok()?;
    let mut head = [0; 6];
    stream.read_exact(&mut head).await.ok()?;
    let mut room = vec![0; usize::from(head[1] & 0x7f)];
    stream.read_exact(&mut room).await.ok()?;
    stream.write_all(&frame("subscribed")).await.ok()?;
    Some((String::from_utf8(room).ok()?, stream))
}

fn id(row: &str) -> &str {
    row.split('"').nth(3).unwrap_or_default()
}

fn frame(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81];
    match text.len() {
        short @ 0..126 => frame.push(short as u8),
        longer => {
            frame.push(126);
            frame.extend((longer as u16).to_be_bytes());
        }
    }
    frame.extend_from_slice(text.as_bytes());
    frame
}
