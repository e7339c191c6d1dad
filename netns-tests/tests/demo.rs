//! The command a newcomer types first.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

#[test]
fn demo_shows_the_main_job_and_leaves_nothing_behind() -> Result<()> {
    let output = Command::new(netns_tests::binaries::lab()?).args(["demo", "--nodes", "2"]).output()?;
    let said = String::from_utf8(output.stdout)?;
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    for part in ["ready after ms", "10.8.0.112", "TCP between pods", "vxlan id 1", "packets lost: 0 "] {
        assert!(said.contains(part), "no `{part}` in:\n{said}");
    }
    let folder = said.split_once("(files in ").and_then(|(_, rest)| rest.split_once(')'));
    let (folder, _) = folder.context("the demo names no folder")?;
    assert!(!Path::new(folder).exists(), "{folder} is left");
    Ok(())
}
