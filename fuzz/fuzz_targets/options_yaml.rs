#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| flanneld::fuzz::options_yaml(data));
