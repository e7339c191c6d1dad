//! A lab's folder under the temporary directory, and who removes it.
//!
//! Whatever belongs to a lab holds a shared lock on `FOLDER/lock`. A janitor process waits for the lab's end and removes
//! the folder when nobody holds the lock any more. Should the janitor itself be killed, the next lab sweeps the folder.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};

use crate::holder::{self, KEEP, LOCK_FILE};
use crate::{binaries, cgroups};

const PREFIX: &str = "flannel-lab-";

/// A folder that goes when the lab goes. Every node shares it, so that it goes last.
#[derive(Debug)]
pub struct LabFolder {
    path: PathBuf,
    lock: Option<Flock<File>>,
    janitor: Mutex<Child>,
}

impl LabFolder {
    /// Makes a folder with a name nobody else has, after sweeping what killed labs left.
    ///
    /// # Errors
    /// When the temporary directory is not writable or the `lab` binary is not found.
    pub fn create() -> Result<Arc<Self>> {
        sweep();
        loop {
            let path =
                tempfile::Builder::new().prefix(PREFIX).tempdir().context("make the lab's folder")?.keep();
            fs::write(path.join(LOCK_FILE), "").context("make the lab's lock")?;
            let lock = holder::hold_lock(&path);
            // Another lab's sweep may have come between making the folder and locking it.
            if let (Ok(lock), true) = (lock, path.exists()) {
                let janitor = start_janitor(&path)?;
                return Ok(Arc::new(Self { path, lock: Some(lock), janitor: Mutex::new(janitor) }));
            }
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets the folder stay when this value goes.
    ///
    /// # Errors
    /// When the janitor is gone already.
    pub fn keep(&self) -> Result<()> {
        let mut janitor = self.janitor.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pipe = janitor.stdin.take().context("the janitor was told already")?;
        pipe.write_all(&[KEEP]).context("tell the janitor")?;
        janitor.wait().context("wait for the janitor")?;
        Ok(())
    }
}

impl Drop for LabFolder {
    /// Waits for the janitor, so that nothing is left when a test returns.
    fn drop(&mut self) {
        drop(self.lock.take());
        let janitor = self.janitor.get_mut().unwrap_or_else(PoisonError::into_inner);
        drop(janitor.stdin.take());
        if let Err(error) = janitor.wait() {
            eprintln!("lab: the janitor of {} could not be waited for: {error}", self.path.display());
        }
    }
}

fn start_janitor(folder: &Path) -> Result<Child> {
    Command::new(binaries::lab()?)
        .args(["__janitor", "--lab"])
        .arg(folder)
        .stdin(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("start the janitor")
}

/// Folders of labs that are still there, kept ones included.
///
/// # Errors
/// When the temporary directory cannot be read.
pub fn all() -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(std::env::temp_dir()).context("read the temporary directory")?;
    Ok(entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX)))
        .collect())
}

/// Removes the folders whose lock nobody holds. Failing to is no reason not to start a lab.
fn sweep() {
    for path in all().unwrap_or_default() {
        let Ok(file) = File::open(path.join(LOCK_FILE)) else { continue };
        if let Ok(_abandoned) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            let _ = cgroups::remove(&path);
            let _ = fs::remove_dir_all(&path);
        }
    }
}
