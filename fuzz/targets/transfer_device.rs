#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| dynamo_transfer::fuzz::fuzz_device(data));
