#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| dynamo_core::openai::fuzz_metrics(data));
