//! What strangers send: each input that is kept under `tests/fuzz/corpus`, and random changes of it, thrown at
//! the decoders. libFuzzer does the same for as long as one lets it.

#[path = "fuzz/decoders/cursor.rs"]
mod cursor;
#[path = "fuzz/decoders/frame.rs"]
mod frame;
#[path = "fuzz/decoders/request.rs"]
mod request;
#[path = "fuzz/decoders/token.rs"]
mod token;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// The kept inputs of a decoder.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = format!("{}/tests/fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
    let files = std::fs::read_dir(folder).unwrap();
    let kept: Vec<_> = files
        .map(|file| std::fs::read(file.unwrap().path()).unwrap())
        .collect();
    assert!(!kept.is_empty());
    kept
}

/// Puts other bytes in places of an input.
fn changed(mut bytes: Vec<u8>, changes: &[(Index, u8)], length: Index) -> Vec<u8> {
    for (place, byte) in changes {
        if !bytes.is_empty() {
            let place = place.index(bytes.len());
            bytes[place] = *byte;
        }
    }
    bytes.truncate(length.index(bytes.len() * 2 + 1).max(1));
    bytes
}

macro_rules! decoder {
    ($test:ident, $decoder:ident) => {
        proptest! {
            #![proptest_config(ProptestConfig::with_cases(5000))]

            #[test]
            fn $test(
                which in any::<Index>(),
                changes in vec((any::<Index>(), any::<u8>()), 0..6),
                length in any::<Index>(),
            ) {
                let kept = corpus(stringify!($decoder));
                kept.iter().for_each(|input| $decoder::check(input));
                $decoder::check(&changed(which.get(&kept).clone(), &changes, length));
            }
        }
    };
}

decoder!(any_text_may_come_as_a_cursor, cursor);
decoder!(any_bytes_may_come_as_frames, frame);
decoder!(any_text_may_come_as_a_message, request);
decoder!(any_bytes_may_come_as_a_token, token);
