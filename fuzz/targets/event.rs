#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| dynamo_core::event_plane::fuzz_event(data));
