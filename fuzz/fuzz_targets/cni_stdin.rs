#![no_main]

#[path = "../bodies/cni_stdin.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::check(data));
