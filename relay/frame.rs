//! WebSocket frames, RFC 6455: what the relay sends, encoded once and shared; what clients send,
//! decoded bit by bit as it arrives.
//!
//! Pure: no I/O. Our own and not a crate's, because frames of a server are not masked: one buffer of
//! header and payload serves any number of sockets, and no crate that could be found encodes once
//! for many. A decoder at rest holds no memory, so that ten thousand silent clients cost little.

use std::sync::{Arc, OnceLock};

use thiserror::Error;

use crate::deflate::{self, BadDeflate};

const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

const FINAL: u8 = 0x80;
const RESERVED: u8 = 0x70;
/// RFC 7692, section 6: the message is compressed.
const COMPRESSED: u8 = 0x40;
const MASKED: u8 = 0x80;

/// Most bytes that a control frame carries (RFC 6455, section 5.5).
const LONGEST_CONTROL: usize = 125;

/// A message as one frame, shared by all who get it.
#[derive(Debug, Clone)]
pub struct Frame(Arc<Encoded>);

#[derive(Debug)]
struct Encoded {
    plain: Vec<u8>,
    /// By the first who gets it compressed; None where that is not worth it.
    compressed: OnceLock<Option<Vec<u8>>>,
}

impl Frame {
    /// Header and payload.
    pub fn plain(&self) -> &[u8] {
        &self.0.plain
    }

    /// The same for those with whom compression is agreed upon: plain, too, where it is not worth it.
    pub fn compressed(&self) -> &[u8] {
        let compressed = self.0.compressed.get_or_init(|| {
            let squeezed = deflate::deflate(self.payload())?;
            Some(encode(COMPRESSED | TEXT, &squeezed))
        });
        compressed.as_deref().unwrap_or(&self.0.plain)
    }

    /// What it carries.
    pub fn payload(&self) -> &[u8] {
        let header = match self.0.plain.get(1) {
            Some(126) => 4,
            Some(127) => 10,
            _ => 2,
        };
        &self.0.plain[header..]
    }

    /// Whether it is of the protocol itself (section 5.5): a client's own code does not see it.
    pub fn is_control(&self) -> bool {
        self.0.plain[0] & 0x8 != 0
    }

    /// Bytes of the plain frame.
    pub fn size(&self) -> usize {
        self.0.plain.len()
    }

    /// Whether both are one frame, not two that are equal.
    pub fn is(&self, other: &Frame) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn new(opcode: u8, payload: &[u8]) -> Frame {
        let compressed = OnceLock::new();
        if opcode != TEXT || payload.len() < deflate::WORTH_IT {
            // nothing else has been set yet
            let _ = compressed.set(None);
        }
        let plain = encode(opcode, payload);
        Frame(Arc::new(Encoded { plain, compressed }))
    }
}

/// A text message as one frame (section 5.6); the payload must be UTF-8.
pub fn text(payload: &[u8]) -> Frame {
    Frame::new(TEXT, payload)
}

/// A ping (section 5.5.2) of at most 125 bytes; more is cut off.
pub fn ping(payload: &[u8]) -> Frame {
    Frame::new(PING, &payload[..payload.len().min(LONGEST_CONTROL)])
}

/// The answer to a ping (section 5.5.3), with the ping's payload.
pub fn pong(payload: &[u8]) -> Frame {
    Frame::new(PONG, &payload[..payload.len().min(LONGEST_CONTROL)])
}

/// A close frame (section 5.5.1); of the reason at most 123 bytes.
pub fn close(code: u16, reason: &str) -> Frame {
    let mut end = reason.len().min(LONGEST_CONTROL - 2);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend_from_slice(&reason.as_bytes()[..end]);
    Frame::new(CLOSE, &payload)
}

/// A final, unmasked frame (section 5.2): header and payload in one piece.
fn encode(first: u8, payload: &[u8]) -> Vec<u8> {
    let header = match payload.len() {
        0..=125 => 2,
        126..=0xFFFF => 4,
        _ => 10,
    };
    let mut frame = Vec::with_capacity(header + payload.len());
    frame.push(FINAL | first);
    match payload.len() {
        short @ 0..=125 => frame.push(short as u8),
        middle @ 126..=0xFFFF => {
            frame.push(126);
            frame.extend_from_slice(&(middle as u16).to_be_bytes());
        }
        long => {
            frame.push(127);
            frame.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    frame
}

/// What a client said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A text message, whole, however it was fragmented.
    Text(String),
    /// A binary message; nobody wants to know what was in it.
    Binary,
    /// A ping, to be answered with the same payload.
    Ping(Vec<u8>),
    /// A pong.
    Pong,
    /// The client closes, with a code and a reason if it gave one.
    Close(Option<(u16, String)>),
}

/// How a client broke the protocol. Nothing can be read from the connection after it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Violation {
    /// Section 5.1: a client masks what it sends.
    #[error("the frame is not masked; a client must mask every frame")]
    NotMasked,
    /// Section 5.2: no extension is negotiated that would give these bits a meaning here.
    #[error(
        "reserved bits {0:#05b} are set; they must be 0, except the first where a compressed message begins and that was agreed upon"
    )]
    Reserved(u8),
    /// Section 5.2: 3 to 7 and 11 to 15 mean nothing.
    #[error("opcode {0:#x} is unknown; it must be one of 0, 1, 2, 8, 9 and 10")]
    UnknownOpcode(u8),
    /// Section 5.4: a control frame in pieces.
    #[error("a control frame is fragmented; it must be final")]
    FragmentedControl,
    /// Section 5.5: a control frame that is too long.
    #[error("a control frame has more than 125 bytes")]
    LongControl,
    /// Section 5.2: a length in more bytes than it needs, or above 63 bits.
    #[error("the length {0} is not written in the fewest bytes, or above 63 bits")]
    BadLength(u64),
    /// Section 5.4: a continuation of nothing.
    #[error("a continuation frame continues nothing; a text or binary frame must come before it")]
    NothingToContinue,
    /// Section 5.4: a new message inside another.
    #[error("a new message begins before the fragmented one has ended")]
    Unfinished,
    /// Section 8.1: text that is no UTF-8.
    #[error("a text message is not UTF-8")]
    NotUtf8,
    /// Section 5.5.1: a close frame whose payload is one byte or whose code nobody may send.
    #[error(
        "a close frame must carry nothing, or a code that may be sent and a reason; it carries {0}"
    )]
    BadClose(String),
    /// RFC 7692, section 7.2.2: a compressed message that cannot be unpacked.
    #[error(transparent)]
    BadDeflate(#[from] BadDeflate),
    /// More than this side takes.
    #[error("the message has {0} bytes or more; at most {1} are taken")]
    TooLarge(u64, usize),
}

impl Violation {
    /// The close code that tells of it (section 7.4.1).
    pub fn close_code(&self) -> u16 {
        match self {
            Violation::NotUtf8 | Violation::BadDeflate(BadDeflate::Garbled) => 1007,
            Violation::TooLarge(..) | Violation::BadDeflate(BadDeflate::TooLarge(_)) => 1009,
            _ => 1002,
        }
    }
}

/// Decodes what one client sends.
#[derive(Debug)]
pub struct Decoder {
    /// What has arrived of a frame whose header is not whole yet, or of a control frame.
    pending: Vec<u8>,
    /// Payload of the message so far, unmasked.
    message: Vec<u8>,
    /// The data frame whose payload is arriving.
    arriving: Option<Arriving>,
    /// The opcode of the message that is fragmented.
    fragmented: Option<u8>,
    /// Whether it is compressed.
    compressed: bool,
    largest: usize,
    inflates: bool,
}

#[derive(Debug, Clone, Copy)]
struct Arriving {
    missing: usize,
    mask: [u8; 4],
    last: bool,
}

struct Header {
    opcode: u8,
    last: bool,
    compressed: bool,
    mask: [u8; 4],
    length: usize,
    size: usize,
}

impl Decoder {
    /// Takes messages of at most `largest` bytes.
    pub fn new(largest: usize) -> Decoder {
        Decoder {
            pending: Vec::new(),
            message: Vec::new(),
            arriving: None,
            fragmented: None,
            compressed: false,
            largest,
            inflates: false,
        }
    }

    /// Unpacks compressed messages, too (RFC 7692).
    pub fn inflating(self) -> Decoder {
        Decoder {
            inflates: true,
            ..self
        }
    }

    /// Bytes that it keeps: at most a message and a control frame, each with its header.
    pub fn held(&self) -> usize {
        self.pending.capacity() + self.message.capacity()
    }

    /// Takes what has arrived and gives each message that is whole by it to `found`.
    ///
    /// `found` says whether to go on. After a violation nothing more may be decoded.
    pub fn decode(
        &mut self,
        mut bytes: &[u8],
        mut found: impl FnMut(Message) -> bool,
    ) -> Result<(), Violation> {
        loop {
            if let Some(frame) = &mut self.arriving {
                let count = frame.missing.min(bytes.len());
                let (now, later) = bytes.split_at(count);
                let start = self.message.len();
                self.message.extend_from_slice(now);
                unmask(&mut self.message[start..], frame.mask);
                frame.mask.rotate_left(count % 4);
                frame.missing -= count;
                bytes = later;
                if frame.missing > 0 {
                    return Ok(());
                }
                let last = frame.last;
                self.arriving = None;
                if last && !self.finish(&mut found)? {
                    return Ok(());
                }
                continue;
            }
            if bytes.is_empty() {
                return Ok(());
            }
            // the header, and a control frame whole, are gathered where they arrive in pieces
            let gathered = self.pending.len();
            let fresh = bytes
                .len()
                .min(14 + LONGEST_CONTROL - gathered.min(14 + LONGEST_CONTROL));
            let mut joined = [0; 14 + LONGEST_CONTROL];
            joined[..gathered].copy_from_slice(&self.pending);
            joined[gathered..gathered + fresh].copy_from_slice(&bytes[..fresh]);
            let seen = &mut joined[..gathered + fresh];
            let header = self.header(seen)?;
            let whole = header.as_ref().is_some_and(|header| {
                !is_control(header.opcode) || seen.len() >= header.size + header.length
            });
            let Some(header) = header.filter(|_| whole) else {
                self.pending.extend_from_slice(&bytes[..fresh]);
                bytes = &bytes[fresh..];
                continue;
            };
            self.pending = Vec::new();
            if is_control(header.opcode) {
                let end = header.size + header.length;
                unmask(&mut seen[header.size..end], header.mask);
                let message = control(header.opcode, &seen[header.size..end])?;
                bytes = &bytes[end - gathered..];
                if !found(message) {
                    return Ok(());
                }
            } else {
                bytes = &bytes[header.size - gathered..];
                if header.opcode != CONTINUATION {
                    self.fragmented = Some(header.opcode);
                    self.compressed = header.compressed;
                }
                self.arriving = Some(Arriving {
                    missing: header.length,
                    mask: header.mask,
                    last: header.last,
                });
            }
        }
    }

    /// The header that `seen` begins with, or None if there is not enough of it.
    fn header(&self, seen: &[u8]) -> Result<Option<Header>, Violation> {
        let [first, rest @ ..] = seen else {
            return Ok(None);
        };
        let (opcode, last) = (first & 0x0F, first & FINAL != 0);
        // it marks a message where it begins, and no control frame (RFC 7692, section 6.1)
        let may_mark = self.inflates && matches!(opcode, TEXT | BINARY);
        let meant = if may_mark { COMPRESSED } else { 0 };
        if first & RESERVED & !meant != 0 {
            return Err(Violation::Reserved((first & RESERVED) >> 4));
        }
        match opcode {
            CONTINUATION if self.fragmented.is_none() => return Err(Violation::NothingToContinue),
            TEXT | BINARY if self.fragmented.is_some() => return Err(Violation::Unfinished),
            CONTINUATION | TEXT | BINARY => {}
            CLOSE | PING | PONG if !last => return Err(Violation::FragmentedControl),
            CLOSE | PING | PONG => {}
            unknown => return Err(Violation::UnknownOpcode(unknown)),
        }
        let [second, rest @ ..] = rest else {
            return Ok(None);
        };
        if second & MASKED == 0 {
            return Err(Violation::NotMasked);
        }
        let marker = second & !MASKED;
        if is_control(opcode) && marker > LONGEST_CONTROL as u8 {
            return Err(Violation::LongControl);
        }
        let (length, least, rest) = match (marker, rest) {
            (126, [a, b, rest @ ..]) => (u64::from(u16::from_be_bytes([*a, *b])), 126, rest),
            (127, [a, b, c, d, e, f, g, h, rest @ ..]) => (
                u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]),
                0x1_0000,
                rest,
            ),
            (126 | 127, _) => return Ok(None),
            (short, rest) => (u64::from(short), 0, rest),
        };
        if length < least || length > i64::MAX as u64 {
            return Err(Violation::BadLength(length));
        }
        let message = length.saturating_add(self.message.len() as u64);
        if !is_control(opcode) && message > self.largest as u64 {
            return Err(Violation::TooLarge(message, self.largest));
        }
        let [a, b, c, d, ..] = rest else {
            return Ok(None);
        };
        Ok(Some(Header {
            opcode,
            last,
            compressed: first & COMPRESSED != 0,
            mask: [*a, *b, *c, *d],
            length: length as usize,
            size: seen.len() - rest.len() + 4,
        }))
    }

    /// Hands out the message that is whole now.
    fn finish(&mut self, found: &mut impl FnMut(Message) -> bool) -> Result<bool, Violation> {
        let mut bytes = std::mem::take(&mut self.message);
        if self.compressed {
            bytes = deflate::inflate(&bytes, self.largest)?;
        }
        let message = match self.fragmented.take() {
            Some(TEXT) => Message::Text(String::from_utf8(bytes).map_err(|_| Violation::NotUtf8)?),
            _ => Message::Binary,
        };
        Ok(found(message))
    }
}

fn is_control(opcode: u8) -> bool {
    opcode & 0x8 != 0
}

fn control(opcode: u8, payload: &[u8]) -> Result<Message, Violation> {
    match (opcode, payload) {
        (PING, _) => Ok(Message::Ping(payload.to_vec())),
        (PONG, _) => Ok(Message::Pong),
        (_, []) => Ok(Message::Close(None)),
        (_, [one]) => Err(Violation::BadClose(format!("the one byte {one:#04x}"))),
        (_, [high, low, reason @ ..]) => {
            let code = u16::from_be_bytes([*high, *low]);
            // section 7.4: what is not defined, or must not be sent, is refused
            if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                return Err(Violation::BadClose(format!("code {code}")));
            }
            let reason = std::str::from_utf8(reason).map_err(|_| Violation::NotUtf8)?;
            Ok(Message::Close(Some((code, reason.to_owned()))))
        }
    }
}

/// Section 5.3: each byte with the key's byte at its place modulo 4.
fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    let word = u64::from_ne_bytes([
        mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3],
    ]);
    let mut words = bytes.chunks_exact_mut(8);
    for chunk in &mut words {
        let mut eight = [0; 8];
        eight.copy_from_slice(chunk);
        chunk.copy_from_slice(&(u64::from_ne_bytes(eight) ^ word).to_ne_bytes());
    }
    for (byte, key) in words.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client's frame, masked.
    fn client(first: u8, payload: &[u8]) -> Vec<u8> {
        let key = [0x37, 0xfa, 0x21, 0x3d];
        let mut frame = encode(first & 0x0F, payload).to_vec();
        frame[0] = first;
        let header = frame.len() - payload.len();
        frame[1] |= MASKED;
        unmask(&mut frame[header..], key);
        frame.splice(header..header, key);
        frame
    }

    fn decode_in(bytes: &[u8], piece: usize) -> (Vec<Message>, Option<Violation>) {
        let mut decoder = Decoder::new(1000);
        let mut messages = Vec::new();
        for piece in bytes.chunks(piece) {
            let found = |message| {
                messages.push(message);
                true
            };
            if let Err(violation) = decoder.decode(piece, found) {
                return (messages, Some(violation));
            }
        }
        assert_eq!(
            decoder.held() == 0,
            decoder.arriving.is_none()
                && decoder.fragmented.is_none()
                && decoder.pending.is_empty()
        );
        (messages, None)
    }

    /// The same whether the bytes come at once, one by one, or in sevens.
    fn decode(bytes: &[u8]) -> (Vec<Message>, Option<Violation>) {
        let whole = decode_in(bytes, bytes.len().max(1));
        assert_eq!(decode_in(bytes, 1), whole);
        assert_eq!(decode_in(bytes, 7), whole);
        whole
    }

    fn said(text: &str) -> Message {
        Message::Text(text.to_owned())
    }

    #[test]
    fn the_examples_of_the_rfc_read_as_it_says() {
        let hello = [
            0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
        ];
        assert_eq!(decode(&hello), (vec![said("Hello")], None));
        assert_eq!(
            text(b"Hello").plain(),
            [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]
        );
        assert_eq!(
            ping(b"Hello").plain(),
            [0x89, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]
        );
        assert_eq!(text(&[b'x'; 256]).plain()[..4], [0x81, 126, 0x01, 0x00]);
        assert_eq!(
            text(&[b'x'; 65536]).plain()[..10],
            [0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]
        );
    }

    #[test]
    fn a_payload_is_found_behind_any_header() {
        for length in [0, 1, 125, 126, 65535, 65536] {
            let bytes = vec![b'x'; length];
            assert_eq!(text(&bytes).payload(), bytes);
        }
    }

    #[test]
    fn fragments_make_one_message_also_around_control_frames() {
        let bytes = [
            client(0x01, "gr".as_bytes()),
            client(0x89, b"?"),
            client(0x00, "ü".as_bytes().get(..1).unwrap()),
            client(0x8A, b""),
            client(0x80, "ü".as_bytes().get(1..).unwrap()),
            client(0x82, &[0xFF; 200]),
            client(0x88, b"\x03\xe8bye"),
        ];
        let expected = vec![
            Message::Ping(b"?".to_vec()),
            Message::Pong,
            said("grü"),
            Message::Binary,
            Message::Close(Some((1000, "bye".to_owned()))),
        ];
        assert_eq!(decode(&bytes.concat()), (expected, None));
    }

    #[test]
    fn what_the_rfc_forbids_is_refused_with_its_code() {
        let unmasked = text(b"x").plain().to_vec();
        for (bytes, code) in [
            (unmasked, 1002),
            (client(0xC1, b"x"), 1002),
            (client(0x83, b"x"), 1002),
            (client(0x8B, b"x"), 1002),
            (client(0x09, b"x"), 1002),
            (client(0x89, &[b'x'; 126]), 1002),
            (client(0x80, b"x"), 1002),
            ([client(0x01, b"x"), client(0x81, b"y")].concat(), 1002),
            (vec![0x81, 0xFE, 0, 125, 0, 0, 0, 0], 1002),
            (
                vec![0x81, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0, 0, 0, 0],
                1002,
            ),
            (
                vec![0x81, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                1002,
            ),
            (client(0x81, b"\xff"), 1007),
            (client(0x81, b"\xed\xa0\x80"), 1007),
            (client(0x88, b"\x03"), 1002),
            (client(0x88, &1005u16.to_be_bytes()), 1002),
            (client(0x88, &999u16.to_be_bytes()), 1002),
            (client(0x88, &5000u16.to_be_bytes()), 1002),
            (client(0x88, b"\x03\xe8\xff"), 1007),
            (client(0x81, &[b'x'; 1001]), 1009),
            (
                [client(0x01, &[b'x'; 600]), client(0x80, &[b'x'; 600])].concat(),
                1009,
            ),
            // refused at the header, before a byte of it has come
            (vec![0x81, 0xFF, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], 1009),
        ] {
            let (messages, violation) = decode(&bytes);
            assert_eq!(
                violation.map(|v| v.close_code()),
                Some(code),
                "{bytes:x?} gave {messages:?}"
            );
        }
    }

    #[test]
    fn a_decoder_at_rest_is_small_and_holds_nothing() {
        assert!(size_of::<Decoder>() <= 96, "{}", size_of::<Decoder>());
        let mut decoder = Decoder::new(1000);
        decoder
            .decode(&client(0x81, &[b'x'; 900]), |_| true)
            .unwrap();
        assert_eq!(decoder.held(), 0);
        // fragments that carry nothing cost nothing
        decoder.decode(&client(0x01, b""), |_| true).unwrap();
        for _ in 0..10_000 {
            decoder.decode(&client(0x00, b""), |_| true).unwrap();
        }
        assert_eq!(decoder.held(), 0);
    }

    #[test]
    fn a_close_reason_is_cut_between_characters() {
        let frame = close(4400, &"ü".repeat(100));
        assert_eq!(frame.size(), 2 + 2 + 122);
        assert!(std::str::from_utf8(&frame.plain()[4..]).is_ok());
    }

    #[test]
    fn a_text_is_compressed_once_and_only_where_it_pays() {
        let long = text(&br#"{"type":"LEAD_UPDATED"}"#.repeat(20));
        let compressed = long.compressed();
        assert_eq!(compressed[0], FINAL | COMPRESSED | TEXT);
        assert!(compressed.len() * 3 < long.size());
        assert_eq!(
            deflate::inflate(&compressed[2..], 460).unwrap(),
            long.payload()
        );
        assert_eq!(long.clone().compressed().as_ptr(), compressed.as_ptr());
        let short = text(b"{}");
        assert_eq!(short.compressed(), short.plain());
        let noise: Vec<u8> = (0..300u32).map(|n| ((n * n * 7919) >> 5) as u8).collect();
        assert_eq!(text(&noise).compressed(), text(&noise).plain());
    }

    #[test]
    fn a_compressed_message_is_unpacked_where_that_was_agreed_upon() {
        // RFC 7692, section 7.2.3.1, in two fragments
        let hello = [
            client(0x41, &[0xf2, 0x48, 0xcd]),
            client(0x89, b"?"),
            client(0x80, &[0xc9, 0xc9, 0x07, 0x00]),
            client(0x81, b"plain"),
        ]
        .concat();
        let mut messages = Vec::new();
        let mut decoder = Decoder::new(1000).inflating();
        let found = |message| {
            messages.push(message);
            true
        };
        decoder.decode(&hello, found).unwrap();
        let ping = Message::Ping(b"?".to_vec());
        assert_eq!(messages, [ping, said("Hello"), said("plain")]);
        assert_eq!(decoder.held(), 0);
        let bomb = deflate::deflate(&[b' '; 100_000]).unwrap();
        for (bytes, code) in [
            (client(0xC1, &bomb), 1009),
            (client(0xC1, &[0xFF; 9]), 1007),
            (client(0xC1, &deflate::deflate(&[0xFF; 500]).unwrap()), 1007),
            // what it would mark begins no message
            (client(0xC9, b""), 1002),
            ([client(0x01, b"x"), client(0xC0, b"x")].concat(), 1002),
            (client(0xA1, b"x"), 1002),
        ] {
            let decoded = Decoder::new(1000).inflating().decode(&bytes, |_| true);
            assert_eq!(decoded.unwrap_err().close_code(), code, "{bytes:x?}");
        }
    }
}
