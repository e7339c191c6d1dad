#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| flanneld::fuzz::lease_key(data));
