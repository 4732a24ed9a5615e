//! Any bytes as a client's frames: never a panic, never more kept than may be, and the same messages
//! whether the bytes come at once or one by one.
use crm_relay::frame::{Decoder, Message, Violation};

const LARGEST: usize = 1000;

fn decode(bytes: &[u8], piece: usize) -> (Vec<Message>, Option<Violation>) {
    let mut decoder = Decoder::new(LARGEST);
    let mut messages = Vec::new();
    for piece in bytes.chunks(piece) {
        let found = |message| {
            messages.push(message);
            true
        };
        if let Err(violation) = decoder.decode(piece, found) {
            return (messages, Some(violation));
        }
        assert!(
            decoder.held() <= 2 * (LARGEST + 14 + 125),
            "{}",
            decoder.held()
        );
    }
    (messages, None)
}

pub fn check(bytes: &[u8]) {
    assert_eq!(decode(bytes, bytes.len().max(1)), decode(bytes, 1));
}
