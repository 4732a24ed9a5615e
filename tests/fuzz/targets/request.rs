//! Any text as a client's message, and as a cursor: never a panic.
#![no_main]

use crm_relay::protocol;
use crm_relay::snapshot::Cursor;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(refusal) = protocol::read(text) {
        assert!(!refusal.text().is_empty());
    }
    if let Ok(cursor) = text.parse::<Cursor>() {
        assert_eq!(cursor.to_string().parse::<Cursor>().as_ref(), Ok(&cursor));
    }
});
