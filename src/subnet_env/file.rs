//! `subnet.env` on disk: read at start, replaced as a whole or not at all.
//!
//! Knows nothing about what stands in the file.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::Previous;

/// Mode of a file that was not there before: everybody may read, as the CNI plugin's caller need not be root.
const MODE: u32 = 0o644;
/// More than any `subnet.env`; a bound on what is read.
const LIMIT: u64 = 64 * 1024;

/// The file could not be read or replaced.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}: {source}{}", path.display(), cure(source))]
pub struct FileError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// What [`write_if_changed`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The file already said so and was not touched.
    Unchanged,
    /// The file was created or replaced.
    Written,
}

/// Reads what a former start wrote. A missing file is an empty one.
///
/// # Errors
/// When the file is there but cannot be read.
pub fn read_previous(path: &Path) -> Result<Previous, FileError> {
    match read(path) {
        Ok(bytes) => Ok(Previous::parse(&String::from_utf8_lossy(&bytes))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Previous::default()),
        Err(source) => Err(FileError { doing: "read", path: path.to_owned(), source }),
    }
}

/// Makes `path` hold exactly `text`, creating its directory if needed. Whoever reads meanwhile sees the old text or the new
/// one, whole, and so does the next start after a crash. An existing file keeps its mode.
///
/// # Errors
/// When any step fails; the file is then as it was, and nothing else is left in its directory.
pub fn write_if_changed(path: &Path, text: &str) -> Result<Outcome, FileError> {
    let mode = mode_of(path);
    if holds(path, text) {
        return Ok(Outcome::Unchanged);
    }
    let failed = |doing| move |source| FileError { doing, path: path.to_owned(), source };
    let directory = directory_of(path);
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)
        .map_err(failed("create the directory of"))?;
    remove_leftovers(path);
    let temporary = Temporary::beside(path).map_err(failed("create a temporary file beside"))?;
    temporary.fill(text, mode.unwrap_or(MODE)).map_err(failed("write a temporary file beside"))?;
    temporary.rename_to(path).map_err(failed("replace"))?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("flush the directory of"))?;
    Ok(Outcome::Written)
}

/// Whether `path` is a regular file that holds exactly `text`.
#[must_use]
pub fn holds(path: &Path, text: &str) -> bool {
    mode_of(path).is_some() && read(path).is_ok_and(|bytes| bytes == text.as_bytes())
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LIMIT).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Permission bits of a regular file; `None` for anything else.
fn mode_of(path: &Path) -> Option<u32> {
    let metadata = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file)?;
    Some(metadata.permissions().mode() & 0o7777)
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file that is removed again unless it takes the place of another.
struct Temporary {
    path: PathBuf,
    file: File,
}

impl Temporary {
    fn beside(target: &Path) -> io::Result<Self> {
        let random = RandomState::new().hash_one(std::process::id());
        let path = directory_of(target).join(format!("{}{random:016x}", temporary_prefix(target)));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { path, file })
    }

    /// Writes the whole content to disk. The mode is set on the file itself, so that no umask takes part.
    fn fill(&self, text: &str, mode: u32) -> io::Result<()> {
        (&self.file).write_all(text.as_bytes())?;
        self.file.set_permissions(Permissions::from_mode(mode))?;
        self.file.sync_all()
    }

    fn rename_to(self, target: &Path) -> io::Result<()> {
        fs::rename(&self.path, target)
    }
}

impl Drop for Temporary {
    /// After a rename the name is gone and this does nothing.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// `.NAME.`, followed by 16 hex digits.
fn temporary_prefix(target: &Path) -> String {
    format!(".{}.", target.file_name().unwrap_or_default().to_string_lossy())
}

/// Removes temporary files of starts that were killed between creating and renaming one.
fn remove_leftovers(target: &Path) {
    let prefix = temporary_prefix(target);
    let is_leftover = |name: &str| {
        let random = name.strip_prefix(&prefix);
        random.is_some_and(|random| random.len() == 16 && random.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    for entry in fs::read_dir(directory_of(target)).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(is_leftover) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// What to do about it, where that is known.
fn cure(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => "; make its file system writable or choose another subnet-file",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free space there or choose another subnet-file"
        }
        io::ErrorKind::PermissionDenied => "; run as root or choose another subnet-file",
        io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory | io::ErrorKind::AlreadyExists => {
            "; subnet-file must be a file within a directory"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    const OLD: &str = "FLANNEL_SUBNET=10.200.1.1/24\n";
    const NEW: &str = "FLANNEL_SUBNET=10.200.2.1/24\n";

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_directory_and_file_are_created_with_their_modes() {
        let folder = folder();
        let path = folder.path().join("run/flannel/subnet.env");
        assert_eq!(write_if_changed(&path, NEW).unwrap(), Outcome::Written);
        assert_eq!(fs::read_to_string(&path).unwrap(), NEW);
        assert_eq!(mode_of(&path), Some(0o644));
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o755);
        assert_eq!(names(path.parent().unwrap()), ["subnet.env"]);
    }

    #[test]
    fn an_identical_file_is_not_touched() {
        let folder = folder();
        let path = folder.path().join("subnet.env");
        fs::write(&path, NEW).unwrap();
        let before = fs::metadata(&path).unwrap();
        assert_eq!(write_if_changed(&path, NEW).unwrap(), Outcome::Unchanged);
        let after = fs::metadata(&path).unwrap();
        assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
    }

    #[test]
    fn whoever_has_the_old_file_keeps_it_whole() {
        let folder = folder();
        let (path, link) = (folder.path().join("subnet.env"), folder.path().join("link"));
        fs::write(&path, OLD).unwrap();
        fs::hard_link(&path, &link).unwrap();
        let mut reader = File::open(&path).unwrap();
        write_if_changed(&path, NEW).unwrap();
        let mut seen = String::new();
        reader.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, OLD);
        assert_eq!(fs::read_to_string(&link).unwrap(), OLD);
        assert_eq!(fs::read_to_string(&path).unwrap(), NEW);
    }

    #[test]
    fn a_kill_before_the_rename_leaves_the_old_file_and_the_next_start_cleans_up() {
        let folder = folder();
        let path = folder.path().join("subnet.env");
        fs::write(&path, OLD).unwrap();
        let killed = Temporary::beside(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), OLD);
        killed.fill(NEW, MODE).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), OLD);
        std::mem::forget(killed);
        assert_eq!(names(folder.path()).len(), 2);
        fs::write(folder.path().join(".subnet.env.backup"), "an operator's").unwrap();

        write_if_changed(&path, NEW).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), NEW);
        assert_eq!(names(folder.path()), [".subnet.env.backup", "subnet.env"]);
    }

    #[test]
    fn an_existing_file_keeps_its_mode_and_a_link_is_replaced() {
        let folder = folder();
        let path = folder.path().join("subnet.env");
        fs::write(&path, OLD).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        write_if_changed(&path, NEW).unwrap();
        assert_eq!(mode_of(&path), Some(0o600));

        let (link, target) = (folder.path().join("link"), folder.path().join("target"));
        fs::write(&target, NEW).unwrap();
        symlink(&target, &link).unwrap();
        assert_eq!(write_if_changed(&link, NEW).unwrap(), Outcome::Written);
        assert_eq!(mode_of(&link), Some(0o644));
    }

    #[test]
    fn a_failure_names_path_cause_and_cure_and_leaves_nothing() {
        let folder = folder();
        let path = folder.path().join("subnet.env");
        fs::create_dir(&path).unwrap();
        let text = write_if_changed(&path, NEW).unwrap_err().to_string();
        assert!(text.starts_with(&format!("cannot replace {}: ", path.display())), "{text}");
        assert!(text.ends_with("; subnet-file must be a file within a directory"), "{text}");
        assert_eq!(names(folder.path()), ["subnet.env"]);

        let below_a_file = folder.path().join("file/subnet.env");
        fs::write(folder.path().join("file"), "").unwrap();
        let text = write_if_changed(&below_a_file, NEW).unwrap_err().to_string();
        assert!(text.starts_with("cannot create the directory of "), "{text}");
    }

    #[test]
    fn causes_have_cures() {
        for (errno, words) in [(30, "writable"), (28, "free space"), (122, "free space"), (13, "root")] {
            assert!(cure(&io::Error::from_raw_os_error(errno)).contains(words), "{errno}");
        }
    }

    #[test]
    fn a_missing_file_is_empty_and_an_unreadable_one_an_error() {
        let folder = folder();
        assert_eq!(read_previous(&folder.path().join("subnet.env")).unwrap(), Previous::default());
        let text = read_previous(folder.path()).unwrap_err().to_string();
        assert!(text.starts_with(&format!("cannot read {}: ", folder.path().display())), "{text}");
    }

    #[test]
    fn what_was_written_is_read_back_even_with_junk_around_it() {
        let folder = folder();
        let path = folder.path().join("subnet.env");
        fs::write(&path, [b"\xff\xfe\n", NEW.as_bytes()].concat()).unwrap();
        assert_eq!(read_previous(&path).unwrap().subnet, Some("10.200.2.0/24".parse().unwrap()));
    }
}
