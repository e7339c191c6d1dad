//! The fuzz targets' bodies over their committed corpus, whole and cut off at every byte.

// Helpers of tests may fail as tests do; clippy only knows functions marked as tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
// The bodies belong to the fuzz crate, where they are not private.
#![allow(unreachable_pub)]

use std::fs;
use std::path::Path;

#[path = "../../fuzz/bodies/cni_stdin.rs"]
mod cni_stdin;
#[path = "../../fuzz/bodies/subnet_env.rs"]
mod subnet_env;

fn over_corpus(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut count = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let input = fs::read(&path).unwrap();
        println!("{}", path.display());
        for length in 0..=input.len() {
            check(&input[..length]);
        }
        count += 1;
    }
    assert!(count >= 5, "{count} files in {}", folder.display());
}

#[test]
fn standard_input() {
    over_corpus("cni_stdin", cni_stdin::check);
}

#[test]
fn the_subnet_env_file() {
    over_corpus("subnet_env", subnet_env::check);
}
