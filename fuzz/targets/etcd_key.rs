#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| dynamo_core::discovery::fuzz_etcd_key(data));
