#![no_main]

#[path = "../bodies/subnet_env.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::check(data));
