//! The receiving end of systemd's notification protocol (`NOTIFY_SOCKET`), with the time of each message.

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// One `KEY=VALUE` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// when it was received
    pub at: Instant,
    /// the line
    pub text: String,
}

/// A datagram socket and the thread that reads it.
#[derive(Debug)]
pub struct NotifySocket {
    path: PathBuf,
    received: Arc<Mutex<Vec<Notification>>>,
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl NotifySocket {
    /// Binds the socket. Unix sockets with a path are reached from every network namespace that sees the path.
    ///
    /// # Errors
    /// When the path cannot be bound (at most 107 bytes).
    pub fn bind(path: &Path) -> Result<Self> {
        let socket = UnixDatagram::bind(path).with_context(|| format!("bind {}", path.display()))?;
        // Only so that the thread notices the stop flag.
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let (received, stop) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<AtomicBool>::default());
        let (list, stopped) = (Arc::clone(&received), Arc::clone(&stop));
        let reader = thread::spawn(move || read(&socket, &list, &stopped));
        Ok(Self { path: path.to_path_buf(), received, stop, reader: Some(reader) })
    }

    /// What `NOTIFY_SOCKET` says.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Everything received so far.
    #[must_use]
    pub fn received(&self) -> Vec<Notification> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first message with this text.
    #[must_use]
    pub fn first(&self, text: &str) -> Option<Notification> {
        self.received().into_iter().find(|notification| notification.text == text)
    }
}

impl Drop for NotifySocket {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

fn read(socket: &UnixDatagram, list: &Mutex<Vec<Notification>>, stop: &AtomicBool) {
    let mut buffer = [0_u8; 4096];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv(&mut buffer) {
            Ok(length) => {
                let at = Instant::now();
                let message = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
                let lines = message.lines().map(|text| Notification { at, text: text.to_owned() });
                list.lock().unwrap_or_else(PoisonError::into_inner).extend(lines);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}
