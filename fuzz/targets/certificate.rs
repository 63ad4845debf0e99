#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| dynamo_core::request_plane::fuzz_certificate(data));
