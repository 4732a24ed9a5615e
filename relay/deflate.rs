//! permessage-deflate, RFC 7692: how it is negotiated, and messages squeezed and unpacked.
//!
//! Nobody keeps a context from one message to the next: so a message is squeezed once for all who get
//! it, and a silent connection holds nothing.

use std::cell::RefCell;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use thiserror::Error;

/// Fewer bytes than these are not worth it: they would shrink by a few.
pub const WORTH_IT: usize = 256;

/// The window, as a power of two, with which everything is squeezed. What a client asks for may be
/// less than the usual 15 (Python's `websockets` asks for 12), and all get the same bytes. Records lose
/// nothing by it: 12 KB of JSON shrank to 0.29 with either.
const WINDOW_BITS: u8 = 12;

/// What a message that was squeezed ends with, and does not carry (section 7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xFF, 0xFF];

/// An empty block that is the last (RFC 1951, section 3.2.4), by which it is known that all was unpacked.
const LAST: [u8; 5] = [1, 0, 0, 0xFF, 0xFF];

const AGREED: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
const AGREED_WITH_WINDOW: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=12";

/// What is answered to these offers (the value of `Sec-WebSocket-Extensions`): the first that can be met;
/// None where none can (section 5.1).
pub fn negotiate(offers: &str) -> Option<&'static str> {
    offers.split(',').find_map(accept)
}

fn accept(offer: &str) -> Option<&'static str> {
    let mut parts = offer.split(';').map(str::trim);
    if !parts.next()?.eq_ignore_ascii_case("permessage-deflate") {
        return None;
    }
    let mut seen = Vec::new();
    let mut wants_window = false;
    for part in parts {
        let (name, value) = match part.split_once('=') {
            None => (part, None),
            Some((name, value)) => (name.trim_end(), Some(value.trim().trim_matches('"'))),
        };
        // section 7.1: a parameter that is unknown, comes twice or has a bad value spoils its offer
        let bits = |value: &str| match value.parse::<u8>() {
            Ok(bits @ 8..=15) if !value.starts_with(['0', '+']) => Some(bits),
            _ => None,
        };
        if seen.contains(&name) {
            return None;
        }
        seen.push(name);
        match (name, value) {
            ("server_no_context_takeover" | "client_no_context_takeover", None) => {}
            ("client_max_window_bits", None) => {}
            ("client_max_window_bits", Some(value)) => _ = bits(value)?,
            ("server_max_window_bits", Some(value)) if bits(value)? >= WINDOW_BITS => {
                wants_window = true;
            }
            _ => return None,
        }
    }
    Some(if wants_window {
        AGREED_WITH_WINDOW
    } else {
        AGREED
    })
}

thread_local! {
    // what it works with is a quarter of a megabyte: one a thread, not one a message
    static SQUEEZER: RefCell<Compress> =
        RefCell::new(Compress::new_with_window_bits(Compression::new(6), false, WINDOW_BITS));
}

/// A message's payload squeezed (section 7.2.1); None where it would not be shorter by that.
pub fn deflate(payload: &[u8]) -> Option<Vec<u8>> {
    SQUEEZER.with_borrow_mut(|squeezer| {
        squeezer.reset();
        // what does not fit is not shorter
        let mut squeezed = Vec::with_capacity(payload.len());
        let done = squeezer.compress_vec(payload, &mut squeezed, FlushCompress::Sync);
        let is_whole = squeezer.total_in() == payload.len() as u64;
        if !matches!(done, Ok(Status::Ok)) || !is_whole || !squeezed.ends_with(&TAIL) {
            return None;
        }
        squeezed.truncate(squeezed.len() - TAIL.len());
        squeezed.shrink_to_fit();
        Some(squeezed)
    })
}

/// Why a message could not be unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadDeflate {
    /// It is no DEFLATE (RFC 1951), or stops in the middle of it.
    #[error("a compressed message is not what RFC 1951 describes")]
    Garbled,
    /// It would be larger than is taken.
    #[error("a compressed message unpacks to more than {0} bytes")]
    TooLarge(usize),
}

/// The payload that a squeezed one was made from (section 7.2.2), of at most `largest` bytes: no more is
/// ever unpacked.
pub fn inflate(squeezed: &[u8], largest: usize) -> Result<Vec<u8>, BadDeflate> {
    let whole = [squeezed, &TAIL, &LAST].concat();
    // one byte more than is taken tells that there is more
    let mut payload = Vec::with_capacity(largest + 1);
    let mut unpacker = Decompress::new(false);
    let done = unpacker.decompress_vec(&whole, &mut payload, FlushDecompress::Finish);
    if payload.len() > largest {
        return Err(BadDeflate::TooLarge(largest));
    }
    match done {
        Ok(Status::StreamEnd) => {
            payload.shrink_to_fit();
            Ok(payload)
        }
        Ok(Status::Ok | Status::BufError) | Err(_) => Err(BadDeflate::Garbled),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_offer_that_can_be_met_is() {
        let plain = Some(AGREED);
        let small = Some(AGREED_WITH_WINDOW);
        for (offers, answer) in [
            // Chromium and Node's ws; Firefox; Python's websockets
            ("permessage-deflate; client_max_window_bits", plain),
            ("permessage-deflate", plain),
            (
                "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12",
                small,
            ),
            // RFC 7692, sections 5.1 and 7.1
            ("permessage-foo, permessage-deflate", plain),
            (
                "Permessage-Deflate ; server_no_context_takeover;client_no_context_takeover",
                plain,
            ),
            ("permessage-deflate; server_max_window_bits=\"15\"", small),
            (
                "permessage-deflate; server_max_window_bits=10, permessage-deflate",
                plain,
            ),
            ("permessage-deflate; server_max_window_bits=10", None),
            ("permessage-deflate; server_max_window_bits", None),
            ("permessage-deflate; server_max_window_bits=16", None),
            ("permessage-deflate; server_max_window_bits=012", None),
            ("permessage-deflate; client_max_window_bits=7", None),
            (
                "permessage-deflate; client_max_window_bits; client_max_window_bits",
                None,
            ),
            ("permessage-deflate; server_no_context_takeover=1", None),
            ("permessage-deflate; mux", None),
            ("permessage-deflate2", None),
            ("", None),
        ] {
            assert_eq!(negotiate(offers), answer, "{offers}");
        }
    }

    /// The examples of RFC 7692, section 7.2.3.
    #[test]
    fn hello_is_unpacked_however_it_was_squeezed() {
        for squeezed in [
            // one block; without compression; with a final block; as two blocks
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..],
            &[
                0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00,
            ],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
            &[
                0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00,
            ],
        ] {
            assert_eq!(inflate(squeezed, 5), Ok(b"Hello".to_vec()), "{squeezed:x?}");
            assert_eq!(inflate(squeezed, 4), Err(BadDeflate::TooLarge(4)));
        }
        assert_eq!(inflate(&[0x00], 5), Ok(Vec::new()));
    }

    #[test]
    fn what_is_no_deflate_is_refused() {
        for garbled in [
            &[0xff; 8][..],
            b"Hello",
            &[0x00, 0x05, 0x00, 0xfa, 0xfe, 0x48],
        ] {
            assert_eq!(
                inflate(garbled, 100),
                Err(BadDeflate::Garbled),
                "{garbled:x?}"
            );
        }
    }

    #[test]
    fn what_is_squeezed_is_shorter_and_unpacks_to_itself() {
        let repetitive = br#"{"id":1,"name":"Ada"},"#.repeat(5000);
        let squeezed = deflate(&repetitive).unwrap();
        assert!(squeezed.len() * 50 < repetitive.len());
        assert_eq!(inflate(&squeezed, repetitive.len()).unwrap(), repetitive);
        let noise: Vec<u8> = (0..300u32).map(|n| ((n * n * 7919) >> 5) as u8).collect();
        assert_eq!(deflate(&noise), None, "it would not be shorter");
        assert_eq!(deflate(b""), None);
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        let mut bomb = deflate(&vec![b' '; 10_000_000]).unwrap();
        assert!(bomb.len() < 20_000);
        assert_eq!(inflate(&bomb, 65_536), Err(BadDeflate::TooLarge(65_536)));
        bomb.truncate(1000);
        assert_eq!(inflate(&bomb, 65_536), Err(BadDeflate::TooLarge(65_536)));
    }
}
