//! Any text as a client's message: never a panic, and what is refused says why.
#![no_main]

use crm_relay::protocol;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(refusal) = protocol::read(text) {
        assert!(!refusal.text().is_empty());
    }
});
