//! Any text as a client's message: never a panic, and what is refused says why.
use crm_relay::protocol;

pub fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Err(refusal) = protocol::read(text) {
        assert!(!refusal.text().is_empty());
    }
}
