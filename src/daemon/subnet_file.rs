//! Keeps `subnet.env` as the lease asks for, whoever touches it, and says once when it cannot.

use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::Ipv4Network;
use tracing::{error, info, warn};

use super::Settings;
use super::acquire::OwnLease;
use crate::model::Mtu;
use crate::model::fights::{Fights, Verdict};
use crate::subnet_env::SubnetEnv;
use crate::subnet_env::file::{self, Outcome};
use crate::subnet_env::watch::FileWatch;

/// The file and whether it is right.
#[derive(Debug)]
pub(super) struct SubnetFile {
    path: PathBuf,
    network: Ipv4Network,
    mtu: Mtu,
    ip_masq: bool,
    problem: Option<String>,
    /// What the file said when it was right.
    right: Option<String>,
    watched: bool,
    watch: Option<FileWatch>,
    /// Its problem was told.
    unwatched: bool,
    fights: Fights<()>,
    /// Somebody keeps changing the file: when it may be corrected.
    due: Option<Duration>,
}

impl SubnetFile {
    /// A file that nobody has looked at yet.
    pub(super) fn new(settings: &Settings, network: Ipv4Network, mtu: Mtu) -> Self {
        Self {
            path: settings.subnet_file.clone(),
            network,
            mtu,
            ip_masq: settings.ip_masq,
            problem: None,
            right: None,
            watched: settings.watch_file,
            watch: None,
            unwatched: false,
            fights: Fights::default(),
            due: None,
        }
    }

    /// The file has to name another MTU.
    pub(super) fn set_mtu(&mut self, mtu: Mtu) {
        self.mtu = mtu;
    }

    /// The file has to say something else about masquerading.
    pub(super) fn set_ip_masq(&mut self, ip_masq: bool) {
        self.ip_masq = ip_masq;
    }

    /// Whether the file was right when it was looked at last.
    pub(super) fn is_written(&self) -> bool {
        self.right.is_some() && self.due.is_none()
    }

    /// When the file has to be looked at again although nobody touches it.
    pub(super) fn due(&self) -> Option<Duration> {
        self.due
    }

    /// Waits until somebody (perhaps we ourselves) touched the file or its directory. Cancel-safe.
    pub(super) async fn touched(&mut self) {
        match &mut self.watch {
            Some(watch) => watch.changed().await,
            None => std::future::pending().await,
        }
    }

    /// Writes the file unless it says already what it should, and watches it. Returns whether somebody else had changed what we
    /// wrote.
    pub(super) fn keep(&mut self, lease: &OwnLease, now: Duration) -> bool {
        let mut repaired = self.write_if_changed(lease, now);
        if self.follow() {
            // Nobody watched until now.
            repaired |= self.write_if_changed(lease, now);
        }
        repaired
    }

    fn write_if_changed(&mut self, lease: &OwnLease, now: Duration) -> bool {
        let (network, subnet, mtu, ip_masq) = (self.network, lease.held.subnet, self.mtu, self.ip_masq);
        let text = SubnetEnv { network, subnet, mtu, ip_masq }.render();
        let was_right = self.right.as_ref() == Some(&text);
        if was_right && !file::holds(&self.path, &text) && !self.may_correct(now) {
            return false;
        }
        self.due = None;
        match file::write_if_changed(&self.path, &text) {
            Ok(outcome) => {
                let written = outcome == Outcome::Written;
                if written {
                    info!(file = %self.path.display(), %subnet, %mtu, "subnet.env written");
                }
                self.problem = None;
                self.right = Some(text);
                written && was_right
            }
            Err(problem) => {
                let text = problem.to_string();
                if self.problem.as_ref() != Some(&text) {
                    error!(problem = %text, "not ready: subnet.env cannot be written");
                }
                self.problem = Some(text);
                self.right = None;
                false
            }
        }
    }

    fn may_correct(&mut self, now: Duration) -> bool {
        let Verdict::Wait { until, begins } = self.fights.ask((), now) else { return true };
        if begins {
            warn!(file = %self.path.display(), "somebody keeps changing subnet.env: it is corrected every ten seconds from now \
                on. Look for a second flanneld and for what manages its directory");
        }
        self.due = Some(until);
        false
    }

    /// Whether the file is watched and was not before.
    fn follow(&mut self) -> bool {
        if self.right.is_none() || !self.watched {
            return false;
        }
        if self.watch.is_none() {
            self.watch = FileWatch::open(&self.path).map_err(|error| self.tell_unwatched(&error)).ok();
        }
        match self.watch.as_mut().map(FileWatch::follow) {
            Some(Ok(new)) => new,
            Some(Err(error)) => {
                self.tell_unwatched(&error);
                false
            }
            None => false,
        }
    }

    fn tell_unwatched(&mut self, error: &std::io::Error) {
        if !std::mem::replace(&mut self.unwatched, true) {
            warn!(file = %self.path.display(), %error, "subnet.env cannot be watched: changes to it are only found every five \
                minutes (fs.inotify.max_user_instances, fs.inotify.max_user_watches, open files)");
        }
    }
}
