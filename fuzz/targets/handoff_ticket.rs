#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| dynamo_kv::fuzz::fuzz_ticket(data));
