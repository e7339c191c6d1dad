#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| flanneld::fuzz::subnet_env_previous(data));
