//! The bench both test binaries work on: a temporary directory with plugins, `subnet.env` and
//! state, and runs of the real `flannel` on it. Everything dies with the test.

// Two test binaries include this file, and neither uses all of it.
#![allow(dead_code, unreachable_pub, clippy::needless_pass_by_value)]

use serde_json::{Value, json};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Upstream's fixtures: MTU 1472, masquerading by flanneld.
pub const V4: &str =
    "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";
pub const V6: &str =
    "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00::1/64\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";
pub const DUAL: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00::1/64\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";
pub const TWO_NETWORKS: &str = "FLANNEL_NETWORK=10.1.0.0/16,192.168.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";

pub const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The plugin under test.
pub fn flannel() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_flannel"))
}

/// The test double, which cargo builds beside the plugin.
pub fn fake_delegate() -> PathBuf {
    let path = flannel().with_file_name("examples").join("fake-delegate");
    assert!(path.is_file(), "{path:?} is missing: run 'cargo build -p flannel-cni --examples'");
    path
}

/// Waits until `what` comes true. The limit only ends a test that would hang.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "never happened: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A directory with everything one network needs, and `bridge` as a fake delegate.
pub struct Bench {
    scratch: TempDir,
}

impl Bench {
    pub fn new() -> Self {
        let bench = Self { scratch: tempfile::tempdir().unwrap() };
        fs::create_dir(bench.path("bin")).unwrap();
        bench.link("bridge");
        bench.subnet_env(V4);
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Puts the fake delegate under another name as well.
    pub fn link(&self, name: &str) {
        std::os::unix::fs::symlink(fake_delegate(), self.path("bin").join(name)).unwrap();
    }

    pub fn subnet_env(&self, text: &str) {
        fs::write(self.path("subnet.env"), text).unwrap();
    }

    pub fn no_subnet_env(&self) {
        fs::remove_file(self.path("subnet.env")).unwrap();
    }

    /// What `bridge` does from now on.
    pub fn behave(&self, table: Value) {
        self.behave_as("bridge", table);
    }

    pub fn behave_as(&self, name: &str, table: Value) {
        fs::write(self.path("bin").join(format!("{name}.json")), table.to_string()).unwrap();
    }

    /// The plugin's entry of a conflist, as a runtime sends it, with `extra` keys on top.
    pub fn conf(&self, extra: Value) -> Value {
        let mut conf = json!({
            "name": "cni-flannel", "type": "flannel", "cniVersion": "0.3.1",
            "subnetFile": self.path("subnet.env"), "dataDir": self.path("state"),
        });
        for (key, value) in extra.as_object().unwrap() {
            conf[key] = value.clone();
        }
        conf
    }

    /// A run for container `pod`, interface `eth0`, with the default configuration.
    pub fn call(&self, command: &str) -> Run {
        let mut env: HashMap<OsString, OsString> = HashMap::new();
        for (key, value) in [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "pod"),
            ("CNI_NETNS", "/run/netns/nowhere"),
            ("CNI_IFNAME", "eth0"),
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        ] {
            env.insert(key.into(), value.into());
        }
        env.insert("CNI_PATH".into(), self.path("bin").into());
        let stdin = self.conf(json!({})).to_string().into_bytes();
        Run { env, stdin, wrapper: Vec::new() }
    }

    pub fn add(&self) -> Outcome {
        self.call("ADD").run()
    }

    pub fn del(&self) -> Outcome {
        self.call("DEL").run()
    }

    /// What `bridge` was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked_of("bridge")
    }

    pub fn asked_of(&self, name: &str) -> Vec<Asked> {
        let text = fs::read_to_string(self.path("bin").join(format!("{name}.log"))).unwrap_or_default();
        text.lines().map(|line| Asked(serde_json::from_str(line).unwrap())).collect()
    }

    /// The commands `bridge` was asked, such as `ADD DEL`.
    pub fn commands(&self) -> String {
        let commands: Vec<String> = self.asked().iter().map(Asked::command).collect();
        commands.join(" ")
    }

    pub fn state(&self, name: &str) -> PathBuf {
        self.path("state").join(name)
    }

    /// All names in the state directory, also hidden ones.
    pub fn state_names(&self) -> Vec<String> {
        let Ok(directory) = fs::read_dir(self.path("state")) else { return Vec::new() };
        let mut names: Vec<String> =
            directory.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// A state file without the plugin's own key: the delegate's configuration.
    pub fn saved(&self, name: &str) -> Value {
        let mut saved: Value = serde_json::from_slice(&fs::read(self.state(name)).unwrap()).unwrap();
        saved.as_object_mut().unwrap().remove("flannelAttachment");
        saved
    }

    /// A state file as the Go plugin writes it.
    pub fn write_state(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path("state")).unwrap();
        fs::write(self.state(name), text).unwrap();
    }
}

/// One run of a delegate, as the fake logged it.
pub struct Asked(Value);

impl Asked {
    pub fn command(&self) -> String {
        self.0["command"].as_str().unwrap().to_owned()
    }

    pub fn env(&self, key: &str) -> Option<String> {
        self.0["env"].get(key).map(|value| value.as_str().unwrap().to_owned())
    }

    pub fn argv(&self) -> Vec<String> {
        self.0["argv"].as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    }

    pub fn stdin(&self) -> String {
        self.0["stdin"].as_str().unwrap().to_owned()
    }

    pub fn config(&self) -> Value {
        serde_json::from_str(&self.stdin()).unwrap()
    }
}

/// A run that is being prepared.
pub struct Run {
    env: HashMap<OsString, OsString>,
    stdin: Vec<u8>,
    wrapper: Vec<OsString>,
}

impl Run {
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.insert(key.into(), value.as_ref().into());
        self
    }

    pub fn without(mut self, key: &str) -> Self {
        self.env.remove(OsStr::new(key));
        self
    }

    pub fn conf(mut self, conf: &Value) -> Self {
        self.stdin = conf.to_string().into_bytes();
        self
    }

    pub fn stdin(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.stdin = bytes.as_ref().to_vec();
        self
    }

    /// Runs under another program, such as `nsenter`.
    pub fn under(mut self, wrapper: &[OsString]) -> Self {
        self.wrapper = wrapper.to_vec();
        self
    }

    /// Runs another plugin than flannel.
    pub fn run_program(self, program: &Path) -> Outcome {
        let (child, stdin) = self.spawn_program(program, Stdio::piped());
        finish(child, &stdin)
    }

    pub fn run(self) -> Outcome {
        self.run_program(flannel())
    }

    /// Runs with something else than a pipe as stdin.
    pub fn run_with_stdin(self, stdin: Stdio) -> Outcome {
        let (child, _) = self.spawn_program(flannel(), stdin);
        Outcome::new(&child.wait_with_output().unwrap())
    }

    /// Starts the plugin and feeds it, in a process group of its own.
    pub fn start(self) -> Child {
        let (mut child, stdin) = self.spawn_program(flannel(), Stdio::piped());
        let _ = child.stdin.take().unwrap().write_all(&stdin);
        child
    }

    fn spawn_program(self, program: &Path, stdin: Stdio) -> (Child, Vec<u8>) {
        let mut words = self.wrapper.iter().map(OsString::as_os_str).chain([program.as_os_str()]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).env_clear().envs(&self.env).process_group(0);
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        (command.spawn().unwrap(), self.stdin)
    }
}

pub fn finish(mut child: Child, stdin: &[u8]) -> Outcome {
    // The plugin may end without reading.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    Outcome::new(&child.wait_with_output().unwrap())
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    pub fn new(output: &Output) -> Self {
        Self {
            code: output.status.code(),
            signal: output.status.signal(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Success with exactly one document on stdout.
    pub fn result(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Success with nothing on stdout.
    pub fn silent(&self) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(0), ""), "{self:?}");
    }

    /// Failure with exactly one error object on stdout, of this code.
    pub fn error(&self, code: u64) -> Value {
        assert_eq!(self.code, Some(1), "{self:?}");
        let object: Value =
            serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        assert_eq!(object["code"], code, "{self:?}");
        assert!(object["cniVersion"].is_string() && object["msg"].is_string(), "{self:?}");
        object
    }

    /// As `error`, giving message and details as one text to search in.
    pub fn refused(&self, code: u64) -> String {
        let object = self.error(code);
        format!("{}; {}", object["msg"].as_str().unwrap(), object["details"].as_str().unwrap_or_default())
    }
}
