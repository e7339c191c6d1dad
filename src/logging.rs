//! Where log lines go and which of them: stderr, levels from `-v`, and the words a lasting trouble is worth.

mod recurring;

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry, fmt, reload};

pub use recurring::{Ended, Recurring, Tell};

/// How much is said, to be changed later.
#[derive(Debug, Clone)]
pub struct Verbosity(reload::Handle<Targets, Registry>);

impl Verbosity {
    /// Says as much as `-v=VERBOSITY` asks for, from now on.
    pub fn set(&self, verbosity: u8) {
        // It only fails when nothing is logged any more.
        let _ = self.0.reload(filter(verbosity));
    }
}

/// Sends log lines to stderr from now on. `journal_stream` is `$JOURNAL_STREAM`: if it names stderr, lines carry no time, as the
/// journal keeps its own.
///
/// # Errors
/// When it was called before.
pub fn init(verbosity: u8, journal_stream: Option<&OsStr>) -> Result<Verbosity, TryInitError> {
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_target(verbosity > 0);
    let lines = match is_journal(journal_stream, stderr_identity()) {
        true => lines.without_time().boxed(),
        false => lines.boxed(),
    };
    let (filter, handle) = reload::Layer::new(filter(verbosity));
    tracing_subscriber::registry().with(lines.with_filter(filter)).try_init()?;
    Ok(Verbosity(handle))
}

/// Says something about each message to the kernel, which only the highest verbosity wants.
const WIRE: &str = "flanneld::kernel::socket";

/// Libraries only speak when something is wrong, whatever `-v` says. 0 is about this node, 1 to 3 about each peer, 4 and more about
/// each message on the wire. (There is no `TRACE` in a release: see `Cargo.toml`.)
fn filter(verbosity: u8) -> Targets {
    let from = |least: u8| if verbosity >= least { LevelFilter::DEBUG } else { LevelFilter::INFO };
    Targets::new().with_target("flanneld", from(1)).with_target(WIRE, from(4)).with_default(LevelFilter::WARN)
}

/// Whether `DEVICE:INODE` of `$JOURNAL_STREAM` is that of stderr (`systemd.exec(5)`). The variable alone says nothing: it is
/// inherited by whoever is started from a service.
fn is_journal(journal_stream: Option<&OsStr>, stderr: Option<(u64, u64)>) -> bool {
    let named = journal_stream.and_then(OsStr::to_str).and_then(|text| text.split_once(':'));
    let named = named.and_then(|(device, inode)| Some((device.parse().ok()?, inode.parse().ok()?)));
    named.is_some() && named == stderr
}

fn stderr_identity() -> Option<(u64, u64)> {
    let metadata = std::fs::metadata("/proc/self/fd/2").ok()?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn verbosity_chooses_how_much_we_say_but_not_what_libraries_say() {
        for (verbosity, peers, wire) in
            [(0, false, false), (1, true, false), (3, true, false), (4, true, true), (255, true, true)]
        {
            let filter = filter(verbosity);
            for level in [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG] {
                let debug = level == Level::DEBUG;
                for (target, expected) in [
                    ("flanneld::store", !debug || peers),
                    (WIRE, !debug || wire),
                    ("hyper", level <= Level::WARN),
                ] {
                    assert_eq!(filter.would_enable(target, &level), expected, "{verbosity} {target} {level}");
                }
            }
        }
    }

    #[test]
    fn stderr_is_the_journal_only_if_the_variable_names_it() {
        let stderr = Some((9, 27_000));
        for (variable, journal) in [
            (None, false),
            (Some("9:27000"), true),
            (Some("9:27001"), false),
            (Some("27000"), false),
            (Some("a:b"), false),
            (Some(""), false),
        ] {
            assert_eq!(is_journal(variable.map(OsStr::new), stderr), journal, "{variable:?}");
        }
        assert!(!is_journal(Some(OsStr::new("x")), None));
    }
}
