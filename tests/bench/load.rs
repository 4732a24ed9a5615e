//! The load generator: many WebSockets in one thread, which counts frames by their headers.
//!
//! It is raw sockets and epoll, one buffer for all, because a client library would cost more than the
//! servers that are measured. What servers send is not masked, so a frame is passed over by its length.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Socket, Type};

/// Clients of one source address; the next ones come from the next.
const OF_AN_ADDRESS: usize = 1000;

/// How one client comes in: its request, and what is said and heard after it.
#[derive(Debug, Clone)]
pub struct Script {
    /// The path, and more headers than every handshake has.
    pub path: String,
    /// Frames, in order.
    pub steps: Vec<Step>,
    /// Whether it asks for compression.
    pub deflates: bool,
    /// Whether what is counted are lines that hold a row as JSON, of which a frame may have several (NATS).
    pub counts_rows: bool,
}

/// One frame of a script.
#[derive(Debug, Clone)]
pub enum Step {
    /// A text frame.
    Say(String),
    /// Wait for a frame that holds this.
    Hear(&'static str),
    /// A frame, whichever it is.
    Next,
}

/// What one who is not let in does.
#[derive(Debug, Clone, Copy)]
pub enum Patience {
    /// So many at once; one that fails is a fault of the benchmark.
    Orderly(usize),
    /// All at once; who is refused comes again as the browser client does, and after so long it is over.
    Storm(Duration),
}

/// Many clients.
pub struct Crowd {
    poll: Poll,
    clients: Vec<Client>,
    buffer: Vec<u8>,
    /// The last frame that anybody heard on the way in.
    pub greeting: String,
}

/// What was heard.
pub struct Heard {
    /// When the last client had the first change, the second, …
    pub whole: Vec<Instant>,
    /// Frames of all clients.
    pub frames: usize,
    /// Bytes of all clients, headers too.
    pub bytes: usize,
}

impl Crowd {
    /// Connects a client for each script and waits until the last step of each; tells how long after
    /// the start each was done that was.
    pub fn gather(
        server: SocketAddr,
        scripts: Vec<Script>,
        patience: Patience,
    ) -> (Crowd, Vec<Duration>) {
        let began = Instant::now();
        let mut crowd = Crowd {
            poll: Poll::new().expect("epoll"),
            clients: Vec::with_capacity(scripts.len()),
            buffer: vec![0; 256 * 1024],
            greeting: String::new(),
        };
        let at_once = match patience {
            Patience::Orderly(at_once) => at_once,
            Patience::Storm(_) => scripts.len(),
        };
        let is_over = || matches!(patience, Patience::Storm(within) if began.elapsed() > within);
        let mut scripts = scripts.into_iter();
        let mut away: Vec<(Instant, usize)> = Vec::new();
        let (mut coming, mut refused) = (0, 0);
        let mut done = Vec::new();
        let mut events = Events::with_capacity(1024);
        loop {
            while coming < at_once
                && let Some(script) = scripts.next()
            {
                let number = crowd.clients.len();
                let stream = connect(server, number);
                crowd.clients.push(Client::new(stream, script));
                crowd.register(number);
                coming += 1;
            }
            let now = Instant::now();
            away.retain(|&(when, number)| {
                if when > now {
                    return true;
                }
                let script = crowd.clients[number].script.clone();
                crowd.clients[number] = Client::new(connect(server, number), script);
                crowd.register(number);
                false
            });
            if coming == 0 || is_over() {
                break;
            }
            let wait = match patience {
                Patience::Orderly(_) => Duration::from_secs(60),
                Patience::Storm(_) => Duration::from_millis(10),
            };
            let _ = crowd.poll.poll(&mut events, Some(wait));
            assert!(
                !events.is_empty() || matches!(patience, Patience::Storm(_)),
                "{coming} of {} clients wait in vain for {:?}; the last frame was {:?}",
                crowd.clients.len(),
                crowd.clients.iter().find_map(Client::waits_for),
                crowd.greeting,
            );
            for event in &events {
                let number = event.token().0;
                let client = &mut crowd.clients[number];
                if client.is_live {
                    client.drain(&mut crowd.buffer, &mut |_| {});
                    continue;
                }
                match client.come_in(server, &mut crowd.buffer, &mut crowd.greeting) {
                    Ok(false) => {}
                    Ok(true) => {
                        done.push(began.elapsed());
                        coming -= 1;
                    }
                    Err(why) => {
                        assert!(
                            matches!(patience, Patience::Storm(_)),
                            "client {number} was not let in: {why}"
                        );
                        refused += 1;
                        // what else this connection tells must not count as another refusal
                        let _ = crowd.poll.registry().deregister(&mut client.stream);
                        // 1 s with jitter, as relay/web/client.js does it
                        let jitter = Duration::from_millis(500 + (number as u64 * 7919) % 1000);
                        away.push((Instant::now() + jitter, number));
                    }
                }
            }
        }
        if refused > 0 {
            eprintln!("  {refused} times a client was refused and came again");
        }
        (crowd, done)
    }

    /// Reads until every client has had so many frames since the last call, or nothing came for a while.
    pub fn count(&mut self, changes: usize, patience: Duration) -> Heard {
        let mut arrived = vec![0; changes];
        let mut heard = Heard {
            whole: Vec::with_capacity(changes),
            frames: 0,
            bytes: 0,
        };
        let all = self.clients.len();
        for client in &mut self.clients {
            client.frames = 0;
        }
        let mut events = Events::with_capacity(1024);
        while heard.whole.len() < changes {
            let _ = self.poll.poll(&mut events, Some(patience));
            if events.is_empty() {
                break;
            }
            for event in &events {
                let client = &mut self.clients[event.token().0];
                let before = client.frames;
                heard.bytes += client.drain(&mut self.buffer, &mut |_| {});
                heard.frames += client.frames - before;
                for seen in arrived[..changes]
                    .iter_mut()
                    .take(client.frames)
                    .skip(before)
                {
                    *seen += 1;
                }
            }
            while heard.whole.len() < changes && arrived[heard.whole.len()] == all {
                heard.whole.push(Instant::now());
            }
        }
        heard
    }

    /// Reads so many frames of all together, each handed over whole, until nothing came for a while;
    /// tells how many there were.
    pub fn listen(
        &mut self,
        frames: usize,
        patience: Duration,
        mut each: impl FnMut(&[u8]),
    ) -> usize {
        let mut events = Events::with_capacity(1024);
        let mut heard = 0;
        for client in &mut self.clients {
            client.keeps = true;
        }
        while heard < frames {
            let _ = self.poll.poll(&mut events, Some(patience));
            if events.is_empty() {
                break;
            }
            for event in &events {
                let client = &mut self.clients[event.token().0];
                let before = client.frames;
                client.drain(&mut self.buffer, &mut each);
                heard += client.frames - before;
            }
        }
        for client in &mut self.clients {
            client.keeps = false;
        }
        heard
    }

    fn register(&mut self, number: usize) {
        let both = Interest::READABLE | Interest::WRITABLE;
        let stream = &mut self.clients[number].stream;
        self.poll
            .registry()
            .register(stream, Token(number), both)
            .expect("epoll takes the socket");
    }
}

fn connect(server: SocketAddr, number: usize) -> TcpStream {
    let from =
        Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 1, 1)) + (number / OF_AN_ADDRESS) as u32);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)
        .expect("a socket; is `ulimit -n` above 10,000?");
    socket
        .set_nonblocking(true)
        .expect("a socket that does not block");
    socket
        .bind(&SocketAddr::from((from, 0)).into())
        .expect("a port of loopback");
    match socket.connect(&server.into()) {
        Err(error)
            if error.raw_os_error() != Some(115) && error.kind() != ErrorKind::WouldBlock =>
        {
            panic!("connect to {server}: {error}")
        }
        _ => TcpStream::from_std(socket.into()),
    }
}

struct Client {
    stream: TcpStream,
    script: Script,
    /// The step that comes next.
    next: usize,
    has_asked: bool,
    is_open: bool,
    is_live: bool,
    /// Whether frames are handed over whole.
    keeps: bool,
    /// Or rows, where those are counted.
    frames: usize,
    /// Whether the next byte begins a line.
    begins_line: bool,
    /// What is here of a header that is not whole.
    header: Vec<u8>,
    /// Of the frame that is being read: what is yet to come, its opcode, what is kept of it.
    rest: usize,
    opcode: u8,
    kept: Vec<u8>,
}

const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

impl Client {
    fn new(stream: TcpStream, script: Script) -> Client {
        Client {
            stream,
            script,
            next: 0,
            has_asked: false,
            is_open: false,
            is_live: false,
            keeps: true,
            frames: 0,
            begins_line: true,
            header: Vec::new(),
            rest: 0,
            opcode: 0,
            kept: Vec::new(),
        }
    }

    fn waits_for(&self) -> Option<String> {
        let step = self.script.steps.get(self.next);
        (!self.is_live)
            .then(|| format!("{step:?}, asked {}, open {}", self.has_asked, self.is_open))
    }

    /// Goes on with the script as far as can be; tells whether it is done.
    fn come_in(
        &mut self,
        server: SocketAddr,
        buffer: &mut [u8],
        greeting: &mut String,
    ) -> Result<bool, String> {
        if let Ok(Some(error)) = self.stream.take_error() {
            return Err(error.to_string());
        }
        if !self.has_asked {
            if self.stream.peer_addr().is_err() {
                return Ok(false);
            }
            let _ = self.stream.set_nodelay(true);
            let request = format!(
                "GET {} HTTP/1.1\r\nHost: {server}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{}\r\n",
                self.script.path,
                match self.script.deflates {
                    true => "Sec-WebSocket-Extensions: permessage-deflate\r\n",
                    false => "",
                }
            );
            self.stream
                .write_all(request.as_bytes())
                .map_err(|error| error.to_string())?;
            self.has_asked = true;
        }
        loop {
            let read = match self.stream.read(buffer) {
                Ok(0) => return Err(format!("closed while it waits for {:?}", self.waits_for())),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.to_string()),
            };
            let mut bytes = &buffer[..read];
            if !self.is_open {
                self.header.extend_from_slice(bytes);
                let Some(end) = self.header.windows(4).position(|four| four == b"\r\n\r\n") else {
                    continue;
                };
                if !self.header.starts_with(b"HTTP/1.1 101") {
                    return Err(String::from_utf8_lossy(&self.header[..end])
                        .lines()
                        .next()
                        .unwrap_or("")
                        .to_owned());
                }
                let answer = String::from_utf8_lossy(&self.header[..end]);
                if self.script.deflates != answer.contains("permessage-deflate") {
                    return Err(format!(
                        "compression is another than was asked for: {answer}"
                    ));
                }
                self.is_open = true;
                bytes = &buffer[read - (self.header.len() - end - 4)..read];
                self.header.clear();
                self.speak()?;
            }
            let mut heard = Vec::new();
            self.take(bytes, &mut |frame| heard.push(frame.to_vec()));
            for frame in heard {
                *greeting = String::from_utf8_lossy(&frame).into_owned();
                let is_it = match self.script.steps.get(self.next) {
                    Some(Step::Hear(what)) => frame
                        .windows(what.len())
                        .any(|part| part == what.as_bytes()),
                    Some(Step::Next) => true,
                    Some(Step::Say(_)) | None => false,
                };
                if is_it {
                    self.next += 1;
                    self.speak()?;
                }
            }
        }
        if self.is_open && self.next == self.script.steps.len() {
            self.is_live = true;
            self.keeps = false;
            self.frames = 0;
            self.script.steps.shrink_to_fit();
        }
        Ok(self.is_live)
    }

    /// Says what is to be said before something is heard.
    fn speak(&mut self) -> Result<(), String> {
        while let Some(Step::Say(what)) = self.script.steps.get(self.next) {
            let frame = masked(TEXT, what.as_bytes());
            self.stream
                .write_all(&frame)
                .map_err(|error| error.to_string())?;
            self.next += 1;
        }
        Ok(())
    }

    /// Reads all that is there; tells how many bytes.
    fn drain(&mut self, buffer: &mut [u8], each: &mut impl FnMut(&[u8])) -> usize {
        let mut bytes = 0;
        loop {
            match self.stream.read(buffer) {
                Ok(0) => panic!("a server closed a connection"),
                Ok(read) => {
                    bytes += read;
                    self.take(&buffer[..read], each);
                    // epoll(7): of a stream, less than asked for means that there is no more
                    if read < buffer.len() {
                        return bytes;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return bytes,
                Err(error) => panic!("a server broke a connection: {error}"),
            }
        }
    }

    fn take(&mut self, mut bytes: &[u8], each: &mut impl FnMut(&[u8])) {
        loop {
            if self.rest > 0 {
                let here = self.rest.min(bytes.len());
                if self.keeps || self.opcode >= CLOSE {
                    self.kept.extend_from_slice(&bytes[..here]);
                }
                if self.script.counts_rows && self.opcode < CLOSE {
                    self.count_rows(&bytes[..here]);
                }
                self.rest -= here;
                bytes = &bytes[here..];
                if self.rest > 0 {
                    return;
                }
                self.ended(each);
                continue;
            }
            // the header: in the bytes as they are, unless it came in pieces
            let whole = match self.header.is_empty() {
                true => header(bytes),
                false => {
                    let Some((&byte, more)) = bytes.split_first() else {
                        return;
                    };
                    self.header.push(byte);
                    bytes = more;
                    let whole = header(&self.header).map(|(_, opcode, rest)| (0, opcode, rest));
                    if whole.is_none() {
                        continue;
                    }
                    whole
                }
            };
            let Some((length, opcode, rest)) = whole else {
                self.header.extend_from_slice(bytes);
                return;
            };
            self.header.clear();
            bytes = &bytes[length..];
            (self.opcode, self.rest) = (opcode, rest);
            if rest == 0 {
                self.ended(each);
            }
        }
    }

    /// Of a message of NATS the first line names its subject, the second is the row.
    fn count_rows(&mut self, mut bytes: &[u8]) {
        while let Some(&first) = bytes.first() {
            self.frames += usize::from(self.begins_line && first == b'{');
            let end = memchr::memchr(b'\n', bytes);
            self.begins_line = end.is_some();
            bytes = end.map_or(&[], |end| &bytes[end + 1..]);
        }
    }

    fn ended(&mut self, each: &mut impl FnMut(&[u8])) {
        match self.opcode {
            PING => {
                let pong = masked(PONG, &self.kept);
                let _ = self.stream.write_all(&pong);
            }
            CLOSE => panic!(
                "a server closed a connection: {:?}",
                String::from_utf8_lossy(&self.kept)
            ),
            PONG => {}
            _ => {
                self.frames += usize::from(!self.script.counts_rows);
                if self.keeps {
                    each(&self.kept);
                }
            }
        }
        self.kept.clear();
    }
}

/// Length of the header, opcode and length of the payload (RFC 6455, section 5.2); None: not whole.
fn header(bytes: &[u8]) -> Option<(usize, u8, usize)> {
    let &[first, second, ..] = bytes else {
        return None;
    };
    let opcode = first & 0x0f;
    match second & 0x7f {
        126 => bytes
            .get(2..4)
            .map(|two| (4, opcode, usize::from(u16::from_be_bytes([two[0], two[1]])))),
        127 => {
            let eight: [u8; 8] = bytes.get(2..10)?.try_into().ok()?;
            Some((10, opcode, u64::from_be_bytes(eight) as usize))
        }
        short => Some((2, opcode, usize::from(short))),
    }
}

/// A client's frame, by a mask of zeros.
fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match payload.len() {
        short @ 0..126 => frame.push(0x80 | short as u8),
        longer => {
            frame.push(0x80 | 126);
            frame.extend((longer as u16).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend_from_slice(payload);
    frame
}
