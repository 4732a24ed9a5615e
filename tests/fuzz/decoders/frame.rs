//! Any bytes as a client's frames: never a panic, never more kept than may be, and the same messages
//! whether the bytes come at once or one by one, with compression agreed upon or not.
use crm_relay::frame::{Decoder, Message, Violation};

const LARGEST: usize = 1000;

fn decode(decoder: Decoder, bytes: &[u8], piece: usize) -> (Vec<Message>, Option<Violation>) {
    let mut decoder = decoder;
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
    for decoder in [Decoder::new, |largest| Decoder::new(largest).inflating()] {
        let whole = decode(decoder(LARGEST), bytes, bytes.len().max(1));
        assert_eq!(whole, decode(decoder(LARGEST), bytes, 1));
    }
}
