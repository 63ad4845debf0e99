#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| dynamo_router::events::vllm::fuzz_vllm_message(data));
