#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| dynamo_core::wire::fuzz::fuzz_datagram(data));
