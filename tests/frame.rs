//! The frame codec against a model, and against tungstenite's decoder on the same bytes.

use std::io::{Cursor, Read, Write};

use crm_relay::deflate;
use crm_relay::frame::{Decoder, Message, Violation};
use flate2::{Compress, Compression, FlushCompress};
use proptest::collection::vec;
use proptest::prelude::*;
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Error, WebSocket};

const LARGEST: usize = 1000;

/// A client's frame (RFC 6455, section 5.2), its length in the fewest bytes.
fn frame(last: bool, opcode: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![if last { 0x80 } else { 0 } | opcode];
    match payload.len() {
        short @ 0..=125 => frame.push(0x80 | short as u8),
        long => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(long as u16).to_be_bytes());
        }
    }
    frame.extend_from_slice(&mask);
    frame.extend(
        payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, key)| byte ^ key),
    );
    frame
}

/// Decodes a stream that arrives in pieces of these sizes, over and over; also tells whether it ended
/// inside a message.
fn ours(
    mut decoder: Decoder,
    stream: &[u8],
    pieces: &[usize],
) -> (Vec<Message>, Option<Violation>, usize) {
    let (mut messages, mut rest, mut most) = (Vec::new(), stream, 0);
    for &piece in pieces.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (now, later) = rest.split_at(piece.min(rest.len()));
        rest = later;
        let mut closed = false;
        let found = |message| {
            closed = matches!(message, Message::Close(_));
            messages.push(message);
            !closed
        };
        if let Err(violation) = decoder.decode(now, found) {
            return (messages, Some(violation), most);
        }
        most = most.max(decoder.held());
        if closed {
            break;
        }
    }
    (messages, None, most)
}

/// The stream of a socket that takes whatever is written.
struct Socket<'a>(Cursor<&'a [u8]>);

impl Read for Socket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn theirs(stream: &[u8]) -> (Vec<Message>, Error) {
    let config = WebSocketConfig::default()
        .max_message_size(Some(LARGEST))
        .max_frame_size(Some(LARGEST));
    let mut socket =
        WebSocket::from_raw_socket(Socket(Cursor::new(stream)), Role::Server, Some(config));
    let mut messages = Vec::new();
    loop {
        match socket.read() {
            Ok(tungstenite::Message::Text(text)) => {
                messages.push(Message::Text(text.as_str().to_owned()));
            }
            Ok(tungstenite::Message::Binary(_)) => messages.push(Message::Binary),
            Ok(tungstenite::Message::Ping(payload)) => {
                messages.push(Message::Ping(payload.to_vec()));
            }
            Ok(tungstenite::Message::Pong(_)) => messages.push(Message::Pong),
            Ok(tungstenite::Message::Close(close)) => {
                messages.push(Message::Close(
                    close.map(|close| (close.code.into(), close.reason.as_str().to_owned())),
                ));
            }
            Ok(tungstenite::Message::Frame(_)) => {}
            Err(error) => return (messages, error),
        }
    }
}

/// Whether tungstenite wants more bytes, or has seen a close: not that it refuses what it saw.
fn wants_more(error: &Error) -> bool {
    use tungstenite::error::ProtocolError::ResetWithoutClosingHandshake;
    matches!(
        error,
        Error::ConnectionClosed
            | Error::AlreadyClosed
            | Error::Io(_)
            | Error::Protocol(ResetWithoutClosingHandshake)
    )
}

/// A message of the model: what it is and the frames that carry it, a control frame after each.
fn message() -> impl Strategy<Value = (Vec<Message>, Vec<u8>)> {
    let mask = any::<[u8; 4]>();
    let control = prop_oneof![
        (vec(any::<u8>(), 0..=125), mask).prop_map(|(payload, mask)| {
            let bytes = frame(true, 0x9, &payload, mask);
            (Message::Ping(payload), bytes)
        }),
        (vec(any::<u8>(), 0..=125), mask)
            .prop_map(|(payload, mask)| (Message::Pong, frame(true, 0xA, &payload, mask))),
    ];
    let text = prop_oneof!["\\PC{0,60}", "[a-zü😀]{120,140}"];
    let fragments = vec((0.0..1.0f64, mask, proptest::option::of(control)), 1..6);
    (text, any::<bool>(), fragments).prop_map(|(text, is_text, fragments)| {
        let (mut messages, mut stream) = (Vec::new(), Vec::new());
        let mut rest = text.as_bytes();
        let count = fragments.len();
        for (place, (share, mask, control)) in fragments.into_iter().enumerate() {
            let last = place + 1 == count;
            let size = if last {
                rest.len()
            } else {
                (rest.len() as f64 * share) as usize
            };
            let (now, later) = rest.split_at(size);
            rest = later;
            let opcode = match (place, is_text) {
                (0, true) => 0x1,
                (0, false) => 0x2,
                _ => 0x0,
            };
            stream.extend(frame(last, opcode, now, mask));
            if last {
                messages.push(if is_text {
                    Message::Text(text.clone())
                } else {
                    Message::Binary
                });
            }
            if let Some((message, bytes)) = control {
                messages.push(message);
                stream.extend(bytes);
            }
        }
        (messages, stream)
    })
}

fn stream() -> impl Strategy<Value = (Vec<Message>, Vec<u8>)> {
    let close = prop_oneof![
        Just((None, Vec::new())),
        Just((
            Some((Message::Close(None), frame(true, 0x8, b"", [1; 4]))),
            b"\x00after a close nothing is looked at".to_vec()
        )),
    ];
    (vec(message(), 0..6), close).prop_map(|(parts, (close, after))| {
        let (mut messages, mut stream) = (Vec::new(), Vec::new());
        for (message, bytes) in parts.into_iter().chain(close.map(|(m, b)| (vec![m], b))) {
            messages.extend(message);
            stream.extend(bytes);
        }
        stream.extend(after);
        (messages, stream)
    })
}

fn agree(stream: &[u8], pieces: &[usize]) -> Result<(), TestCaseError> {
    let (messages, violation, most) = ours(Decoder::new(LARGEST), stream, pieces);
    let (their_messages, error) = theirs(stream);
    // a buffer may be twice what is in it
    prop_assert!(
        most <= 2 * (LARGEST + 14 + 125),
        "{most} bytes held for messages of {LARGEST}"
    );
    // tungstenite looks at the UTF-8 of a message that is yet to be ended
    if matches!(error, Error::Utf8(_)) {
        prop_assert!(messages.starts_with(&their_messages));
        return Ok(());
    }
    match violation {
        None => {
            prop_assert_eq!(&messages, &their_messages);
            prop_assert!(wants_more(&error), "only tungstenite refuses: {}", error);
        }
        // which tungstenite takes; RFC 6455, sections 5.2 and 7.4
        Some(Violation::BadLength(_) | Violation::BadClose(_)) => {
            prop_assert!(their_messages.starts_with(&messages));
        }
        Some(violation) => {
            prop_assert_eq!(&messages, &their_messages, "{}", violation);
        }
    }
    Ok(())
}

/// Words of few letters, which compress well, or of many.
fn repetitive() -> impl Strategy<Value = String> {
    let letters = |many: u8| vec(b'a'..b'a' + many, 0..3000);
    let bytes = prop_oneof![letters(2), letters(26)];
    bytes.prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// A message as a client may compress it: each piece in a block of its own.
fn compressed(pieces: &[&[u8]], level: u32) -> Vec<u8> {
    let mut squeezer = Compress::new(Compression::new(level), false);
    let mut squeezed = Vec::with_capacity(10_000);
    for piece in pieces {
        let done = squeezer.compress_vec(piece, &mut squeezed, FlushCompress::Sync);
        assert!(done.is_ok() && squeezed.len() < squeezed.capacity());
    }
    squeezed.truncate(squeezed.len() - 4);
    squeezed
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_compressed_message_is_what_it_was_made_from(
        text in prop_oneof![repetitive().prop_map(|text| text[..text.len().min(900)].to_owned()), "\\PC{0,60}"],
        level in 0..10u32,
        cut in any::<prop::sample::Index>(),
        pieces in vec(1..300usize, 1..8),
    ) {
        let (first, second) = text.as_bytes().split_at(cut.index(text.len() + 1));
        let payload = compressed(&[first, second], level);
        let (one, other) = payload.split_at(cut.index(payload.len() + 1));
        let mut stream = frame(false, 0x41, one, [7; 4]);
        stream.extend(frame(true, 0x9, b"", [8; 4]));
        stream.extend(frame(true, 0x0, other, [9; 4]));
        let (messages, violation, _) = ours(Decoder::new(LARGEST).inflating(), &stream, &pieces);
        prop_assert_eq!(violation, None);
        prop_assert_eq!(messages, [Message::Ping(Vec::new()), Message::Text(text)]);
    }

    #[test]
    fn what_is_sent_compressed_is_what_is_sent_plain(text in repetitive()) {
        let frame = crm_relay::frame::text(text.as_bytes());
        let sent = frame.compressed();
        let header = match sent[1] { 126 => 4, 127 => 10, _ => 2 };
        match sent[0] {
            0xC1 => {
                let inflated = deflate::inflate(&sent[header..], text.len()).unwrap();
                prop_assert_eq!(inflated, text.as_bytes());
                prop_assert!(sent.len() < frame.size());
            }
            _ => prop_assert_eq!(sent, frame.plain()),
        }
    }

    #[test]
    fn what_was_said_is_what_is_heard_however_it_arrives((said, stream) in stream(), pieces in vec(1..300usize, 1..8)) {
        let (messages, violation, _) = ours(Decoder::new(LARGEST), &stream, &pieces);
        prop_assert_eq!(violation, None);
        prop_assert_eq!(messages, said);
        agree(&stream, &pieces)?;
    }

    #[test]
    fn a_damaged_stream_is_judged_as_tungstenite_judges_it(
        (_, mut stream) in stream(),
        damages in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        pieces in vec(1..300usize, 1..8),
    ) {
        for (place, byte) in damages {
            if !stream.is_empty() {
                let place = place.index(stream.len());
                stream[place] = byte;
            }
        }
        agree(&stream, &pieces)?;
    }

    #[test]
    fn any_bytes_are_judged_as_tungstenite_judges_them(stream in vec(any::<u8>(), 0..400), pieces in vec(1..100usize, 1..8)) {
        agree(&stream, &pieces)?;
    }
}
