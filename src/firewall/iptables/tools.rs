//! The iptables programs: where they are, and running one with a time limit.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;
use std::{env, fmt};

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::firewall::FirewallError;

/// Which of its two back ends an iptables program writes to. A host can have rules in both; both are in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// `iptables-legacy`: tables of its own, no notifications.
    Legacy,
    /// `iptables-nft`: nftables tables with iptables' names.
    Nft,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Legacy => "iptables-legacy",
            Self::Nft => "iptables-nft",
        })
    }
}

/// Where programs are looked for besides `PATH`, which a service may have without `sbin`.
const PLACES: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];
/// How long a program may take beyond the time it waits for the lock.
const SLACK: Duration = Duration::from_secs(10);

/// The two programs of one variant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tool {
    variant: Variant,
    save: PathBuf,
    restore: PathBuf,
}

impl Tool {
    /// `iptables-nft-save` or `iptables-legacy-save`, else `iptables-save` if it is of that variant.
    pub(super) fn find(variant: Variant) -> Option<Self> {
        let pair = |prefix: &str| {
            Some((program(&format!("{prefix}-save"))?, program(&format!("{prefix}-restore"))?))
        };
        let (save, restore) = pair(&variant.to_string())
            .or_else(|| pair("iptables").filter(|(save, _)| variant_of(save) == variant))?;
        Some(Self { variant, save, restore })
    }

    /// `iptables-save`: all tables of the variant.
    pub(super) async fn save(&self) -> Result<String, FirewallError> {
        self.run(&self.save, &[], "", SLACK).await
    }

    /// `iptables-restore --noflush --wait=SECONDS`, with `input` as one transaction per table.
    pub(super) async fn restore(&self, input: &str, wait: Duration) -> Result<(), FirewallError> {
        // The wait option takes whole seconds, and 0 would mean not to wait.
        let arguments = ["--noflush", &format!("--wait={}", wait.as_secs().max(1))];
        self.run(&self.restore, &arguments, input, wait + SLACK).await.map(drop)
    }

    async fn run(
        &self,
        program: &Path,
        arguments: &[&str],
        input: &str,
        limit: Duration,
    ) -> Result<String, FirewallError> {
        let failed = |reason: String| FirewallError::Iptables {
            program: [&[&*program.to_string_lossy()], arguments].concat().join(" "),
            reason,
        };
        let output = tokio::time::timeout(limit, run(program, arguments, input))
            .await
            .map_err(|_| failed(format!("still running after {} s, so it was stopped", limit.as_secs())))?
            .map_err(|error| failed(error.to_string()))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let words = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        if words.contains("xtables lock") {
            return Err(FirewallError::Locked { variant: self.variant, reason: words });
        }
        Err(failed(format!("{}: {words}", output.status)))
    }
}

/// A dropped future takes the process with it.
async fn run(program: &Path, arguments: &[&str], input: &str) -> std::io::Result<Output> {
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends before it has read everything says why on stderr.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    child.wait_with_output().await
}

/// The variant that plain `iptables` stands for on this host.
pub(in crate::firewall) fn default_variant() -> Option<Variant> {
    program("iptables").map(|path| variant_of(&path))
}

/// The name of the program behind all links tells: `xtables-nft-multi`, or `xtables-legacy-multi` and older names.
fn variant_of(path: &Path) -> Variant {
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if name.contains("nft") { Variant::Nft } else { Variant::Legacy }
}

fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&path).chain(PLACES.map(PathBuf::from));
    places.map(|place| place.join(name)).find(|file| file.is_file())
}
