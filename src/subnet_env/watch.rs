//! Tells when somebody touched `subnet.env`: its directory is watched (`inotify(7)`), so that a file that was replaced, deleted
//! or deleted with its directory is noticed. Reads and repairs nothing.
//!
//! Not noticed: a file system mounted over the directory, and a directory further up that was renamed.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What happens to a file, to its name, and to the directory itself.
const EVENTS: AddWatchFlags = AddWatchFlags::IN_MODIFY
    .union(AddWatchFlags::IN_ATTRIB)
    .union(AddWatchFlags::IN_CREATE)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVE)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_ONLYDIR);

/// The directory is not the one that was watched any more.
const GONE: AddWatchFlags = AddWatchFlags::IN_IGNORED
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_UNMOUNT);

/// A watch of one file's directory.
#[derive(Debug)]
pub struct FileWatch {
    inotify: AsyncFd<OwnedInotify>,
    directory: PathBuf,
    name: OsString,
    watched: Option<WatchDescriptor>,
}

/// An inotify instance that can be registered with the runtime.
#[derive(Debug)]
struct OwnedInotify(Inotify);

impl AsRawFd for OwnedInotify {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl FileWatch {
    /// Opens an inotify instance; nothing is watched before [`FileWatch::follow`]. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the kernel gives none (`fs.inotify.max_user_instances`, open files).
    pub fn open(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        // SAFETY: the instance owns its descriptor and always gives the same one; it is moved into the `AsyncFd`.
        let inotify = unsafe { AsyncFd::register_with_interest(OwnedInotify(inotify), Interest::READABLE) }?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        Ok(Self {
            inotify,
            directory: directory.unwrap_or(Path::new(".")).to_owned(),
            name: path.file_name().unwrap_or_default().to_owned(),
            watched: None,
        })
    }

    /// Watches the directory that has the name now. `true`: it was not watched before, so what happened to the file until now
    /// was not noticed.
    ///
    /// # Errors
    /// When there is no such directory, or too much is watched already (`fs.inotify.max_user_watches`).
    pub fn follow(&mut self) -> io::Result<bool> {
        if self.watched.is_some() {
            return Ok(false);
        }
        self.watched = Some(self.inotify.get_ref().0.add_watch(&self.directory, EVENTS)?);
        Ok(true)
    }

    /// Waits until something happened to the file, by us or by others. Cancel-safe.
    pub async fn changed(&mut self) {
        loop {
            match self.inotify.readable().await {
                // Before reading, so that what happens meanwhile wakes again.
                Ok(mut guard) => guard.clear_ready(),
                // Only when the runtime is shutting down.
                Err(_) => std::future::pending().await,
            }
            if self.drain() {
                return;
            }
        }
    }

    /// Reads all events. Whether one concerns the file.
    fn drain(&mut self) -> bool {
        let mut concerned = false;
        loop {
            match self.inotify.get_ref().0.read_events() {
                Ok(events) => {
                    for event in &events {
                        concerned |= self.notice(event);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(_) => return concerned,
            }
        }
    }

    fn notice(&mut self, event: &InotifyEvent) -> bool {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return true;
        }
        if self.watched != Some(event.wd) {
            return false;
        }
        if event.mask.intersects(GONE) {
            // A directory that was only renamed is still watched. Failing means that the kernel was faster.
            let _ = self.inotify.get_ref().0.rm_watch(event.wd);
            self.watched = None;
            return true;
        }
        event.name.as_ref() == Some(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    async fn told(watch: &mut FileWatch) {
        tokio::time::timeout(Duration::from_secs(10), watch.changed()).await.expect("not noticed");
    }

    #[tokio::test]
    async fn whatever_happens_to_the_file_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("subnet.env"), folder.path().join("other"));
        let mut watch = FileWatch::open(&path).unwrap();
        assert!(watch.follow().unwrap());
        type Touch<'a> = &'a dyn Fn() -> io::Result<()>;
        let touches: [Touch<'_>; 6] = [
            &|| fs::write(&path, "a"),
            &|| fs::OpenOptions::new().append(true).open(&path).and_then(|file| file.set_len(0)),
            &|| fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)),
            &|| fs::rename(&path, &other),
            &|| fs::rename(&other, &path),
            &|| fs::remove_file(&path),
        ];
        for (number, touch) in touches.iter().enumerate() {
            touch().unwrap();
            tokio::time::timeout(Duration::from_secs(10), watch.changed())
                .await
                .unwrap_or_else(|_| panic!("touch {number} was not noticed"));
            assert!(!watch.follow().unwrap());
        }
    }

    #[tokio::test]
    async fn a_directory_that_goes_is_noticed_and_its_successor_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (directory, moved) = (folder.path().join("flannel"), folder.path().join("moved"));
        let path = directory.join("subnet.env");
        let mut watch = FileWatch::open(&path).unwrap();
        assert!(watch.follow().is_err(), "no directory yet");
        for leave in [&|| fs::remove_dir_all(&directory), &|| fs::rename(&directory, &moved)]
            as [&dyn Fn() -> io::Result<()>; 2]
        {
            fs::create_dir(&directory).unwrap();
            fs::write(&path, "a").unwrap();
            assert!(watch.follow().unwrap(), "not watched before");
            leave().unwrap();
            while watch.watched.is_some() {
                told(&mut watch).await;
            }
        }
        fs::create_dir(&directory).unwrap();
        assert!(watch.follow().unwrap());
        fs::write(moved.join("subnet.env"), "b").unwrap();
        fs::write(directory.join("another.file"), "c").unwrap();
        assert!(!watch.drain(), "neither is our file");
    }
}
