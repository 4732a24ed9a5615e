//! Any text as a cursor: never a panic, never more work than its length, and read as it is written.
use crm_relay::snapshot::Cursor;

pub fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(cursor) = text.parse::<Cursor>() {
        assert_eq!(cursor.to_string().parse::<Cursor>().as_ref(), Ok(&cursor));
        let snapshot = &cursor.position.snapshot;
        assert!(snapshot.until(snapshot).is_empty() && snapshot.is_within(snapshot));
    }
}
