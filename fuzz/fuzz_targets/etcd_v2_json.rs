#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| flanneld::fuzz::etcd_v2_json(data));
