//! The unix socket beside `subnet.env` on which the daemon tells `flanneld status` and `flanneld check` how it is.
//!
//! Whoever may connect (its mode says: root) is told everything at once, as one JSON value; nothing is ever read from a
//! client, so there is nothing to ask for and nothing to change. The number of clients and the time of each are bounded.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::clock::Clock;
use crate::status::answer::Answer;
use crate::status::{PeerState, Status};

/// How much clients may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Clients served at a time; more have to wait.
    pub clients: usize,
    /// How long a client may take to read its answer.
    pub client: Duration,
    /// How long the loop may take to tell about the peers.
    pub loop_answer: Duration,
    /// How often it is looked whether the socket still stands where clients look for it.
    pub look: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients: 4,
            client: Duration::from_secs(5),
            loop_answer: Duration::from_secs(2),
            look: Duration::from_secs(60),
        }
    }
}

/// How long somebody who asks waits for the answer, which includes `Limits::loop_answer`.
const WAIT: Duration = Duration::from_secs(5);
/// Pause after a failed accept. The usual reason is a lack of file descriptors, which does not go away at once.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;
/// More than 100 000 peers take; a bound on what is read.
const LARGEST: u64 = 64 << 20;

/// Where the socket of the daemon stands that writes this `subnet.env`.
#[must_use]
pub fn path_beside(subnet_file: &Path) -> PathBuf {
    subnet_file.with_file_name("flanneld.sock")
}

/// Asks the daemon's loop for every peer. That list is long and changes often, so it is no part of [`Status`] but made when
/// somebody wants it.
#[derive(Debug)]
pub struct PeersQuestion(oneshot::Sender<Vec<PeerState>>);

impl PeersQuestion {
    /// Answers. It does not matter whether somebody still waits.
    pub fn answer(self, peers: Vec<PeerState>) {
        let _ = self.0.send(peers);
    }
}

/// What the server reads. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The published state.
    pub status: watch::Receiver<Status>,
    /// The way to the loop.
    pub peers: mpsc::Sender<PeersQuestion>,
    /// The time by which [`Status`] is stamped: `CLOCK_BOOTTIME`.
    pub clock: fn() -> Duration,
}

impl Sources {
    async fn answer(&self, patience: Duration) -> Answer {
        let peers = timeout(patience, self.ask_for_peers()).await.ok().flatten();
        Answer::new(&self.status.borrow(), peers, std::process::id(), (self.clock)())
    }

    async fn ask_for_peers(&self) -> Option<Vec<PeerState>> {
        let (question, answer) = oneshot::channel();
        self.peers.send(PeersQuestion(question)).await.ok()?;
        answer.await.ok()
    }
}

/// Serves at `path` for ever. A socket that cannot be made, or that somebody removed, is made again later.
pub async fn serve(path: PathBuf, sources: Sources, limits: Limits) {
    let mut told = false;
    loop {
        match Bound::at(&path) {
            Ok(bound) => {
                told = false;
                bound.serve(&sources, limits).await;
                continue;
            }
            Err(error) if !told => {
                told = true;
                tracing::warn!(socket = %path.display(), %error, "flanneld status and check will not reach this daemon");
            }
            Err(_) => {}
        }
        sleep(limits.look).await;
    }
}

/// A socket with a name, which it gives up when it is dropped.
struct Bound {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Bound {
    /// Takes the place of a socket that a former daemon left. Nobody but root can connect at any moment: the mode is set
    /// before the socket listens, and the name is given last.
    fn at(path: &Path) -> io::Result<Self> {
        let directory = path.parent().unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        let temporary = path.with_extension(format!("sock.{}", std::process::id()));
        let _ = fs::remove_file(&temporary);
        let named = Self::listen(&temporary, path);
        if named.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        named
    }

    fn listen(temporary: &Path, path: &Path) -> io::Result<Self> {
        if is_served(path)? {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another flanneld listens there"));
        }
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&socket2::SockAddr::unix(temporary)?)?;
        fs::set_permissions(temporary, Permissions::from_mode(0o600))?;
        socket.listen(BACKLOG)?;
        let listener = UnixListener::from_std(socket.into())?;
        let inode = fs::metadata(temporary)?.ino();
        fs::rename(temporary, path)?;
        Ok(Self { listener, path: path.to_owned(), inode })
    }

    fn is_in_place(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode)
    }

    /// Serves until the name is gone or somebody else's.
    async fn serve(&self, sources: &Sources, limits: Limits) {
        let mut clients = JoinSet::new();
        let mut clock = Clock::boot_or_tokio();
        let mut look = clock.now().after(limits.look);
        loop {
            tokio::select! {
                () = clock.sleep_until(Some(look)) => {
                    if !self.is_in_place() {
                        return;
                    }
                    look = clock.now().after(limits.look);
                }
                Some(_) = clients.join_next() => {}
                accepted = self.listener.accept(), if clients.len() < limits.clients => match accepted {
                    Ok((stream, _)) => { clients.spawn(tell(stream, sources.clone(), limits)); }
                    Err(_) => sleep(ACCEPT_PAUSE).await,
                }
            }
        }
    }
}

/// Whether somebody listens at `path`. Does not wait.
fn is_served(path: &Path) -> io::Result<bool> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    let connected = socket.connect(&socket2::SockAddr::unix(path)?);
    // A full queue is somebody's, too.
    Ok(connected.map_or_else(|error| error.kind() == io::ErrorKind::WouldBlock, |()| true))
}

impl Drop for Bound {
    fn drop(&mut self) {
        if self.is_in_place() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whatever goes wrong with a client is its own business.
async fn tell(mut stream: tokio::net::UnixStream, sources: Sources, limits: Limits) {
    let answer = sources.answer(limits.loop_answer).await;
    if let Ok(text) = serde_json::to_vec(&answer) {
        let _ = timeout(limits.client, stream.write_all(&text)).await;
    }
}

/// Why the daemon did not tell.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// There is nobody.
    #[error("no flanneld answers at {}", .0.display())]
    NobodyThere(PathBuf),
    /// It may be running, but cannot be asked.
    #[error("cannot ask flanneld at {}: {source}{}", path.display(), cure(source))]
    Failed {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn cure(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; run it as root",
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            "; it is stopped or stuck (systemctl status flanneld)"
        }
        io::ErrorKind::InvalidData => "; another version of flanneld may be running: restart it",
        _ => "",
    }
}

/// Asks the daemon whose socket stands at `path`. Waits for a few seconds at most.
///
/// # Errors
/// When nobody is there, or it does not tell.
pub fn ask(path: &Path) -> Result<Answer, AskError> {
    exchange(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AskError::NobodyThere(path.to_owned()),
        _ => AskError::Failed { path: path.to_owned(), source },
    })
}

fn exchange(path: &Path) -> io::Result<Answer> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    // The write timeout bounds `connect`, which waits while a daemon that is stopped has a full queue.
    socket.set_write_timeout(Some(WAIT))?;
    socket.set_read_timeout(Some(WAIT))?;
    socket.connect(&socket2::SockAddr::unix(path)?)?;
    let mut text = Vec::new();
    UnixStream::from(socket).take(LARGEST).read_to_end(&mut text)?;
    serde_json::from_slice(&text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests;
