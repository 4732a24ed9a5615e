#![no_main]

#[path = "../decoders/cursor.rs"]
mod cursor;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cursor::check(bytes));
