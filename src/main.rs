//! The process: a command of [`flanneld::command`], or the daemon: argv and environment become options, a runtime runs the
//! daemon, the outcome becomes an exit code.

use std::pin::pin;
use std::process::ExitCode;

use anyhow::Context;
use flanneld::clock::{Clock, Now};
use flanneld::daemon::{self, Inputs, Reporter, Settings};
use flanneld::health::Limits;
use flanneld::kernel::{LinuxKernel, ReceiveBuffers};
use flanneld::model::BootId;
use flanneld::notify::{Notifier, watchdog_interval};
use flanneld::options::{self, Configured, Invocation, Options, OptionsError};
use flanneld::reload::Reloader;
use flanneld::store::Ourselves;
use flanneld::subnet_env::{Previous, file};
use flanneld::{command, facts, health, logging, scheduling, status_socket, store};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    if let Some(command) = words.next().as_deref().and_then(command::find) {
        return (command.run)(words.collect());
    }
    match read_again() {
        Ok(Invocation::Help(text)) => {
            eprintln!(
                "{}\n\nCommands, each with a -help of its own:\n{}",
                text.trim_end(),
                command::help().trim_end()
            );
            ExitCode::SUCCESS
        }
        Ok(Invocation::Version(text)) => {
            eprintln!("{}", text.trim_end());
            ExitCode::SUCCESS
        }
        Ok(Invocation::Run(configured)) => run(&configured),
        Err(error) => {
            eprintln!("flanneld: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(configured: &Configured) -> ExitCode {
    let verbosity =
        logging::init(configured.options.verbosity, std::env::var_os("JOURNAL_STREAM").as_deref())
            .inspect_err(|error| eprintln!("flanneld: cannot log: {error}"));
    info!(version = env!("CARGO_PKG_VERSION"), options = %configured.given(), "flanneld starts");
    for warning in &configured.warnings {
        warn!("{warning}");
    }
    if let Err(error) = scheduling::ask_for_short_slices() {
        debug!(%error, "the kernel grants no short time slices");
    }
    let (reloader, options) = Reloader::new(configured.clone(), read_again, verbosity.ok());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let served = runtime.context("start the runtime").and_then(|runtime| {
        let served = runtime.block_on(as_a_task(serve(configured.clone(), reloader, options)));
        // A name that is still being looked up would hold the end up for as long as the resolver likes.
        runtime.shutdown_background();
        served
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Reads argv, environment and configuration file as they are now.
fn read_again() -> Result<Invocation, OptionsError> {
    options::read(std::env::args_os(), std::env::vars_os(), &facts::outside())
}

/// Handles signals before anything can block, then runs the daemon beside the health server.
async fn serve(
    configured: Configured,
    reloader: Reloader,
    adjusted: watch::Receiver<Options>,
) -> anyhow::Result<()> {
    let stop = stop_signal(reloader)?;
    let options = &configured.options;
    let previous = file::read_previous(&options.subnet_file).unwrap_or_else(|error| {
        warn!(%error, "the subnet of a former start is not known");
        Previous::default()
    });
    for ignored in &previous.ignored {
        warn!(file = %options.subnet_file.display(), "{ignored}");
    }
    let machine_id = std::fs::read_to_string("/etc/machine-id").ok();
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    let mut settings = Settings {
        boot_id: boot_id.as_deref().and_then(BootId::from_kernel),
        ..Settings::new(options, machine_id.as_deref(), &previous)
    };
    let notifier = Notifier::new(std::env::var_os("NOTIFY_SOCKET"))?;
    let (reporter, mut questions, served) = Reporter::new(notifier, || Now::Boot.now().0);
    let mut reporter = reporter.watched_every(watchdog_interval(
        std::env::var_os("WATCHDOG_USEC").as_deref(),
        std::env::var_os("WATCHDOG_PID").as_deref(),
        std::process::id(),
    ));
    if let Some(address) = options.health {
        let listener = health::bind(address).await?;
        info!(%address, "health and metrics are served");
        tokio::spawn(health::serve(listener, served.health, Limits::default(), std::future::pending()));
    }
    let socket = status_socket::path_beside(&options.subnet_file);
    tokio::spawn(status_socket::serve(socket, served.local, status_socket::Limits::default()));
    let clock = Clock::boot().context("get a timer from the kernel")?;
    let kernel = LinuxKernel::open(ReceiveBuffers::default())?;
    let candidates = store::open(&options.etcd)?;
    let own = Ourselves { public_ip: options.iface.public_ip, node_id: settings.node_id };
    let mut stop = pin!(stop);
    let store = tokio::select! {
        store = daemon::choose_store(&candidates, own, options.seed.as_deref(), &mut reporter) => store?,
        () = &mut stop => return Ok(()),
        () = questions.answer_all() => return Ok(()),
    };
    settings.store_addresses.extend(daemon::look_up_store_names(&options.etcd.endpoints).await);
    daemon::run(settings, store, kernel, (clock, reporter), Inputs { stop, questions, options: adjusted })
        .await?;
    info!("flanneld stops; device, routes, rules, subnet.env and lease stay");
    Ok(())
}

/// Ends with SIGTERM or SIGINT. With SIGHUP the options are read again. A task of its own, so that whoever waits for the end does
/// not ask for each signal whenever something else happens.
fn stop_signal(mut reloader: Reloader) -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("handle SIGHUP")?;
    Ok(as_a_task(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
                _ = hangup.recv() => reloader.reload(),
            }
        }
    }))
}

/// Runs `future` as a task of its own: from a task to the future that `block_on` runs itself the way goes through a system call, which
/// asks the kernel for events. The connection to the store is a task, so that would be once for each change of a lease.
async fn as_a_task<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(future).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
