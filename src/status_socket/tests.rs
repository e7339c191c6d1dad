//! The server over a real socket, and the one who asks.

use std::os::unix::fs::FileTypeExt;

use tempfile::TempDir;
use tokio::task::spawn_blocking;

use super::*;
use crate::model::MacAddr;
use crate::status::Phase;

struct Daemon {
    folder: TempDir,
    questions: Option<mpsc::Receiver<PeersQuestion>>,
    _status: watch::Sender<Status>,
}

impl Daemon {
    fn start(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (ask, questions) = mpsc::channel(1);
        let (status, published) = watch::channel(Status { phase: Phase::Running, ..Status::default() });
        let sources = Sources { status: published, peers: ask, clock: || Duration::from_secs(10) };
        tokio::spawn(serve(folder.path().join("run/flanneld.sock"), sources, limits));
        Self { folder, questions: Some(questions), _status: status }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("run/flanneld.sock")
    }

    /// Tells about `count` peers whenever somebody asks, as a healthy loop does.
    fn turn(&mut self, count: u8) {
        let mut questions = self.questions.take().unwrap();
        tokio::spawn(async move {
            while let Some(question) = questions.recv().await {
                question.answer((1..=count).map(peer).collect());
            }
        });
    }

    async fn ask(&self) -> Result<Answer, AskError> {
        let path = self.path();
        spawn_blocking(move || ask(&path)).await.unwrap()
    }

    /// Asks until somebody answers: the server makes its socket in its own time, and a busy machine answers in its own.
    async fn answer(&self) -> Answer {
        loop {
            match self.ask().await {
                Ok(answer) => return answer,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }
}

fn peer(number: u8) -> PeerState {
    PeerState {
        subnet: format!("10.200.{number}.0/24").parse().unwrap(),
        public_ip: [10, 8, 0, number].into(),
        mac: MacAddr::new([2, 0, 0, 0, 0, number]),
        direct: false,
        problem: None,
    }
}

#[tokio::test]
async fn whoever_asks_is_told_everything_and_only_root_may_ask() {
    let mut daemon = Daemon::start(Limits::default());
    daemon.turn(3);
    let answer = daemon.answer().await;
    assert_eq!((answer.phase.as_str(), answer.peers.unwrap().len()), ("running", 3));
    let metadata = fs::metadata(daemon.path()).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.mode() & 0o777, 0o600);
    let names: Vec<_> = fs::read_dir(daemon.path().parent().unwrap()).unwrap().collect();
    assert_eq!(names.len(), 1, "no temporary name is left");
}

#[tokio::test]
async fn a_stuck_loop_does_not_keep_the_rest_from_being_told() {
    let daemon = Daemon::start(Limits { loop_answer: Duration::from_millis(50), ..Limits::default() });
    assert_eq!(daemon.answer().await.peers, None);
}

#[tokio::test]
async fn clients_that_do_not_read_are_cut_off_and_make_room() {
    let (client, loop_answer) = (Duration::from_millis(300), Duration::from_secs(60));
    let limits = Limits { clients: 2, client, loop_answer, ..Limits::default() };
    let mut daemon = Daemon::start(limits);
    // An answer that fits into no socket buffer, so that the server waits for its clients.
    let mut questions = daemon.questions.take().unwrap();
    tokio::spawn(async move {
        while let Some(question) = questions.recv().await {
            question.answer((0..4_000).map(|_| peer(1)).collect());
        }
    });
    daemon.answer().await;
    let silent: Vec<UnixStream> = (0..3).map(|_| UnixStream::connect(daemon.path()).unwrap()).collect();
    assert_eq!(daemon.answer().await.peers.unwrap().len(), 4_000);
    drop(silent);
}

#[tokio::test]
async fn a_socket_that_somebody_removed_is_made_again() {
    let mut daemon = Daemon::start(Limits { look: Duration::from_millis(20), ..Limits::default() });
    daemon.turn(0);
    daemon.answer().await;
    fs::remove_dir_all(daemon.path().parent().unwrap()).unwrap();
    daemon.answer().await;
}

#[tokio::test]
async fn the_socket_of_a_dead_daemon_is_taken_over_that_of_a_living_one_is_not_and_our_own_goes_with_us() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flanneld.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let dead = fs::metadata(&path).unwrap().ino();
    let bound = Bound::at(&path).unwrap();
    assert_ne!(fs::metadata(&path).unwrap().ino(), dead);
    let error = Bound::at(&path).err().unwrap();
    assert_eq!(error.to_string(), "another flanneld listens there");
    assert!(bound.is_in_place());
    drop(bound);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_socket_nobody_listens_on_means_that_nobody_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flanneld.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert_eq!(ask(&path).unwrap_err().to_string(), format!("no flanneld answers at {}", path.display()));
}

#[tokio::test]
async fn what_is_no_answer_is_an_error_with_a_cure() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flanneld.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let asked = spawn_blocking(move || ask(&path));
    let (mut stream, _) = listener.accept().await.unwrap();
    stream.write_all(b"{}").await.unwrap();
    drop(stream);
    let error = asked.await.unwrap().unwrap_err().to_string();
    assert!(error.ends_with("; another version of flanneld may be running: restart it"), "{error}");
}
