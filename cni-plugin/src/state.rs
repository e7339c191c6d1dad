//! What DEL needs to undo an ADD: the delegate's configuration, kept in one file per attachment.
//!
//! `<dataDir>/<container ID>` belongs to the first attachment of a container, as the Go plugin
//! names it; further ones are `<container ID>:<interface>`. Names that begin with `.` are
//! temporary and never read. Which file is whose is decided by pure functions below the I/O.

use crate::delegate_config::DelegateConfig;
use crate::env::{Attachment, ContainerId, IfName};
use crate::lock::Lock;
use crate::log;
use crate::netconf::Object;
use serde_json::{Value, json};
use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The one key that is ours in a state file: whose it is. The Go plugin ignores it, and the
/// delegate never sees it.
const OWNER: &str = "flannelAttachment";

/// A state file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the state file {path:?}")]
pub struct StateError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The directory of state files.
#[derive(Debug)]
pub struct StateDir(PathBuf);

/// The name of a state file inside the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateFile(OsString);

/// What a state file tells.
#[derive(Debug, PartialEq)]
pub enum Entry {
    /// There is none.
    Absent,
    /// Nothing a delegate could be run with: empty, cut off, no object, no type.
    Bad,
    /// A configuration and, unless the Go plugin wrote it, whose it is.
    Saved(DelegateConfig, Option<Owner>),
}

/// The attachment a state file was written for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The interface in the container.
    pub ifname: String,
    /// The container's network namespace at ADD; for people who read the file.
    pub netns: String,
}

/// Where ADD keeps its state.
#[derive(Debug, PartialEq, Eq)]
pub enum Slot {
    /// Nothing usable is there.
    Fresh(StateFile),
    /// An earlier ADD of the same attachment left its state, which must not be lost.
    Taken(StateFile),
}

/// A state file as GC sees it.
#[derive(Debug)]
pub struct Listed {
    /// The file.
    pub file: StateFile,
    /// The container in its name.
    pub container: ContainerId,
    /// The interface in its name or, for a first attachment, in its text.
    pub ifname: Option<IfName>,
    /// What it tells.
    pub entry: Entry,
}

impl StateDir {
    /// The directory `path`, which need not exist.
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// The state of an attachment and the file it is in.
    ///
    /// # Errors
    /// A file that is there and cannot be read.
    pub fn find(&self, at: &Attachment) -> Result<(StateFile, Entry), StateError> {
        let own = StateFile::further(at);
        match self.read(&own)? {
            Entry::Absent => {
                let first = StateFile::first(&at.container);
                let entry = self.read(&first)?;
                Ok((first, visible_to(&at.ifname, entry)))
            }
            entry => Ok((own, entry)),
        }
    }

    /// As [`find`](Self::find), and [`lock`](Self::lock)s what it finds.
    ///
    /// # Errors
    /// As `find`.
    pub fn find_locked(&self, at: &Attachment) -> Result<(StateFile, Entry, Option<Lock>), StateError> {
        match self.find(at)? {
            (file, Entry::Absent) => Ok((file, Entry::Absent, None)),
            (file, _) => {
                let lock = self.lock(&file);
                // Again, since whoever had the lock may have been a DEL.
                self.find(at).map(|(file, entry)| (file, entry, lock))
            }
        }
    }

    /// The file ADD shall write.
    ///
    /// # Errors
    /// A file that is there and cannot be read.
    pub fn slot(&self, at: &Attachment) -> Result<Slot, StateError> {
        let (first, own) = (StateFile::first(&at.container), StateFile::further(at));
        let (in_first, in_own) = (self.read(&first)?, self.read(&own)?);
        Ok(choose(&at.ifname, (first, in_first), (own, in_own)))
    }

    /// Writes a state file so that a reader, now or after a power cut, sees the old text or the
    /// new one.
    ///
    /// # Errors
    /// Any step that failed; then the old text is still there.
    pub fn save(&self, file: &StateFile, config: &DelegateConfig, at: &Attachment) -> Result<(), StateError> {
        let owner = json!({"ifname": at.ifname.to_text(), "netns": at.netns.to_string_lossy()});
        let text = config.with(OWNER, owner).to_bytes();
        let temporary = self.0.join(file.temporary());
        self.replace(file, &temporary, &text).map_err(|source| {
            let _ = std::fs::remove_file(&temporary);
            self.error("write", file, source)
        })
    }

    /// Waits until no delegate of an earlier, killed run works on the attachment, and keeps later runs waiting as long as
    /// one of this run does. Without the lock, because the file is gone or the patience is over, the run goes on.
    pub fn lock(&self, file: &StateFile) -> Option<Lock> {
        // Runtimes give one plugin minutes; a delegate that hangs must not make its container undeletable.
        const PATIENCE: Duration = Duration::from_secs(30);
        let announce = || log::note("waiting for the delegate of an earlier run, which was killed");
        Lock::acquire(&self.0.join(&file.0), PATIENCE, announce).map(Lock::bequeathed)
    }

    /// Removes a state file and what a killed [`save`](Self::save) may have left beside it.
    /// A failure only means that a later DEL or GC finds the file again.
    pub fn remove(&self, file: &StateFile) {
        let _ = std::fs::remove_file(self.0.join(&file.0));
        let _ = std::fs::remove_file(self.0.join(file.temporary()));
    }

    /// Removes what a killed ADD of this attachment may have left before its state was complete.
    pub fn remove_temporaries(&self, at: &Attachment) {
        for file in [StateFile::first(&at.container), StateFile::further(at)] {
            let _ = std::fs::remove_file(self.0.join(file.temporary()));
        }
    }

    /// Every state file, in order of name. Files whose names cannot be ours are left out.
    ///
    /// # Errors
    /// The directory or a file in it cannot be read; an absent directory is an empty one.
    pub fn list(&self) -> Result<Vec<Listed>, StateError> {
        let whole = |source| StateError { action: "list", path: self.0.clone(), source };
        let directory = match std::fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(whole)?,
        };
        let names: io::Result<Vec<OsString>> =
            directory.map(|entry| entry.map(|entry| entry.file_name())).collect();
        let mut names = names.map_err(whole)?;
        names.sort_unstable();
        names.into_iter().filter_map(split_name).map(|(file, at)| self.listed(file, at)).collect()
    }

    fn listed(
        &self,
        file: StateFile,
        (container, ifname): (ContainerId, Option<IfName>),
    ) -> Result<Listed, StateError> {
        let entry = self.read(&file)?;
        let recorded = || match &entry {
            Entry::Saved(_, Some(owner)) => IfName::new(OsStr::new(&owner.ifname)),
            _ => None,
        };
        let ifname = ifname.or_else(recorded);
        Ok(Listed { file, container, ifname, entry })
    }

    fn read(&self, file: &StateFile) -> Result<Entry, StateError> {
        match std::fs::read(self.0.join(&file.0)) {
            Ok(text) => Ok(parse(&text)),
            // A name too long for the file system was never written.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidFilename) =>
            {
                Ok(Entry::Absent)
            }
            Err(error) => Err(self.error("read", file, error)),
        }
    }

    fn replace(&self, file: &StateFile, temporary: &Path, text: &[u8]) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        match std::fs::remove_file(temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut output = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
        output.write_all(text)?;
        output.sync_all()?;
        std::fs::rename(temporary, self.0.join(&file.0))?;
        File::open(&self.0)?.sync_all()
    }

    fn error(&self, action: &'static str, file: &StateFile, source: io::Error) -> StateError {
        StateError { action, path: self.0.join(&file.0), source }
    }
}

impl StateFile {
    fn first(container: &ContainerId) -> Self {
        Self(container.as_str().into())
    }

    /// `:` is legal neither in an ID nor in an interface name, so this is nobody's first name.
    fn further(at: &Attachment) -> Self {
        let mut name = OsString::from(at.container.as_str());
        name.push(":");
        name.push(at.ifname.as_os_str());
        Self(name)
    }

    /// Always the same for one file, so that what a kill left is found again; short, so that an
    /// ID of 255 bytes still has one. The number is the FNV-1a hash of the name.
    fn temporary(&self) -> String {
        let hash = self.0.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        format!(".{hash:016x}.tmp")
    }
}

/// Understands a state file, whoever wrote it. Never panics.
pub fn parse(text: &[u8]) -> Entry {
    let Ok(mut object) = serde_json::from_slice::<Object>(text) else { return Entry::Bad };
    let owner = object.shift_remove(OWNER).and_then(|owner| {
        let field = |key| owner.get(key).and_then(Value::as_str).map(str::to_owned);
        Some(Owner { ifname: field("ifname")?, netns: field("netns").unwrap_or_default() })
    });
    let config = DelegateConfig::from_object(object);
    if config.text("type").is_empty() { Entry::Bad } else { Entry::Saved(config, owner) }
}

/// A first attachment's state as another attachment of the container sees it: not at all.
fn visible_to(ifname: &IfName, entry: Entry) -> Entry {
    match entry {
        Entry::Saved(_, Some(owner)) if owner.ifname != ifname.to_text() => Entry::Absent,
        other => other,
    }
}

/// Keeps what exists, prefers the plain name, and leaves a file of the Go plugin alone, because
/// nobody knows which interface it is for.
fn choose(ifname: &IfName, first: (StateFile, Entry), own: (StateFile, Entry)) -> Slot {
    match (first, own) {
        (_, (own, Entry::Saved(..))) => Slot::Taken(own),
        (_, (own, Entry::Bad)) => Slot::Fresh(own),
        ((first, Entry::Absent | Entry::Bad), _) => Slot::Fresh(first),
        ((first, Entry::Saved(_, Some(owner))), _) if owner.ifname == ifname.to_text() => Slot::Taken(first),
        (_, (own, Entry::Absent)) => Slot::Fresh(own),
    }
}

fn split_name(name: OsString) -> Option<(StateFile, (ContainerId, Option<IfName>))> {
    let mut parts = name.as_bytes().splitn(2, |byte| *byte == b':').map(OsStr::from_bytes);
    let container = ContainerId::new(parts.next()?)?;
    let ifname = match parts.next() {
        Some(text) => Some(IfName::new(text)?),
        None => None,
    };
    Some((StateFile(name), (container, ifname)))
}

#[cfg(test)]
mod tests;
