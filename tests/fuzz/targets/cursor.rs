//! Any text as a cursor: never a panic, never more work than its length, and read as it is written.
#![no_main]

use crm_relay::snapshot::Cursor;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(cursor) = text.parse::<Cursor>() {
        assert_eq!(cursor.to_string().parse::<Cursor>().as_ref(), Ok(&cursor));
        let snapshot = &cursor.position.snapshot;
        assert!(snapshot.until(snapshot).is_empty() && snapshot.is_within(snapshot));
    }
});
