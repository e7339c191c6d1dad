//! systemd's notification protocol: `READY=1` and its siblings as datagrams to `$NOTIFY_SOCKET` (`sd_notify(3)`).
//!
//! Written out, as the sd-notify crate takes the socket from the process environment where we want it passed in. Nothing here
//! decides when to tell what.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// One thing to tell systemd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Start-up is complete.
    Ready,
    /// The configuration is being read again; `Ready` ends it.
    Reloading,
    /// The process is about to end.
    Stopping,
    /// One line for `systemctl status`.
    Status(String),
    /// Do not give up on the start, or stop, before this much more time has passed.
    ExtendTimeout(Duration),
    /// The process is alive.
    Watchdog,
}

impl State {
    /// The protocol's line, without newline.
    fn line(&self) -> String {
        match self {
            Self::Ready => "READY=1".to_owned(),
            Self::Reloading => format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic().as_micros()),
            Self::Stopping => "STOPPING=1".to_owned(),
            Self::Status(text) => format!("STATUS={}", text.replace('\n', " ")),
            Self::ExtendTimeout(time) => format!("EXTEND_TIMEOUT_USEC={}", time.as_micros()),
            Self::Watchdog => "WATCHDOG=1".to_owned(),
        }
    }
}

/// How often systemd wants to hear that this process (`pid`) is alive, from `$WATCHDOG_USEC` and `$WATCHDOG_PID`
/// (`sd_watchdog_enabled(3)`). `None`: it does not ask, or asks another process.
#[must_use]
pub fn watchdog_interval(usec: Option<&OsStr>, for_pid: Option<&OsStr>, pid: u32) -> Option<Duration> {
    let number = |text: &OsStr| text.to_str()?.parse::<u64>().ok();
    if for_pid.is_some_and(|text| number(text) != Some(u64::from(pid))) {
        return None;
    }
    usec.and_then(number).filter(|usec| *usec > 0).map(Duration::from_micros)
}

/// `$NOTIFY_SOCKET` names nothing that can be talked to.
#[derive(Debug, thiserror::Error)]
#[error("cannot notify systemd at NOTIFY_SOCKET={address:?}: {source}")]
pub struct NotifyError {
    address: OsString,
    source: io::Error,
}

/// The way to systemd, or to nowhere when the process was not started by it.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<(UnixDatagram, OsString)>,
}

impl Notifier {
    /// Connects to the socket that the environment names: a path, or `@` and an abstract name. `None` and an empty text lead
    /// to nowhere.
    ///
    /// # Errors
    /// When there is no such socket.
    pub fn new(notify_socket: Option<OsString>) -> Result<Self, NotifyError> {
        let Some(address) = notify_socket.filter(|text| !text.is_empty()) else { return Ok(Self::default()) };
        match connect(&address) {
            Ok(socket) => Ok(Self { socket: Some((socket, address)) }),
            Err(source) => Err(NotifyError { address, source }),
        }
    }

    /// Whether anybody listens.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.socket.is_some()
    }

    /// Sends all states in one datagram; never blocks.
    ///
    /// # Errors
    /// When the socket does not take it.
    pub fn tell(&self, states: &[State]) -> Result<(), NotifyError> {
        let Some((socket, address)) = &self.socket else { return Ok(()) };
        let text = states.iter().map(State::line).collect::<Vec<_>>().join("\n");
        match socket.send(text.as_bytes()) {
            Ok(_) => Ok(()),
            Err(source) => Err(NotifyError { address: address.clone(), source }),
        }
    }
}

/// systemd compares with its own clock when it asked for the reload (`Type=notify-reload`).
#[expect(clippy::disallowed_methods, reason = "systemd's clock, not ours")]
fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&socket_address(address)?)?;
    Ok(socket)
}

fn socket_address(address: &OsStr) -> io::Result<SocketAddr> {
    match address.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn states_arrive_as_lines_of_one_datagram() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::new(Some(path.into())).unwrap();
        assert!(notifier.is_connected());
        for (states, text) in [
            (vec![State::Ready, State::Status("running".to_owned())], "READY=1\nSTATUS=running"),
            (vec![State::Status("two\nlines".to_owned())], "STATUS=two lines"),
            (vec![State::ExtendTimeout(Duration::from_millis(1500))], "EXTEND_TIMEOUT_USEC=1500000"),
            (vec![State::Stopping], "STOPPING=1"),
            (vec![State::Watchdog], "WATCHDOG=1"),
        ] {
            notifier.tell(&states).unwrap();
            assert_eq!(received(&systemd), text);
        }
    }

    #[test]
    fn the_watchdog_is_fed_only_if_it_watches_this_process() {
        let interval = |usec: Option<&str>, for_pid: Option<&str>| {
            watchdog_interval(usec.map(OsStr::new), for_pid.map(OsStr::new), 42)
        };
        let asked = Some(Duration::from_secs(30));
        assert_eq!(interval(Some("30000000"), Some("42")), asked);
        assert_eq!(interval(Some("30000000"), None), asked);
        for (usec, for_pid) in [
            (None, Some("42")),
            (Some("30000000"), Some("43")),
            (Some("30000000"), Some("x")),
            (Some("0"), Some("42")),
            (Some("often"), None),
        ] {
            assert_eq!(interval(usec, for_pid), None, "{usec:?} {for_pid:?}");
        }
    }

    #[test]
    fn a_reload_carries_the_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        let before = monotonic().as_micros();
        Notifier::new(Some(path.into())).unwrap().tell(&[State::Reloading]).unwrap();
        let text = received(&systemd);
        let time: u128 = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().parse().unwrap();
        assert!(before > 0 && (before..=monotonic().as_micros()).contains(&time), "{text}");
    }

    #[test]
    fn abstract_sockets_begin_with_an_at_sign() {
        let name = format!("flanneld-test-{}", std::process::id());
        let systemd = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Notifier::new(Some(format!("@{name}").into())).unwrap().tell(&[State::Ready]).unwrap();
        assert_eq!(received(&systemd), "READY=1");
    }

    #[test]
    fn without_systemd_everything_succeeds() {
        for socket in [None, Some(OsString::new())] {
            let notifier = Notifier::new(socket).unwrap();
            assert!(!notifier.is_connected());
            notifier.tell(&[State::Ready]).unwrap();
        }
    }

    #[test]
    fn a_socket_that_is_not_there_is_named() {
        let text = Notifier::new(Some("/nowhere/notify".into())).unwrap_err().to_string();
        assert!(text.starts_with("cannot notify systemd at NOTIFY_SOCKET=\"/nowhere/notify\": "), "{text}");
    }
}
