//! `cargo lab install`: daemon, CNI plugin, unit and examples at the places where the Ansible role and Kubernetes expect them.
//!
//! Every file appears by rename, whole or not at all, so a running daemon and a plugin in use can be replaced. What holds a
//! node's own configuration is never written over.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::binaries;
use crate::cni::ROLE_CONFLIST;

const UNIT: &str = include_str!("../../../systemd/flanneld.service");
const OPTIONS: &str = include_str!("../../../systemd/flanneld.service.d/10-options.conf");
const DOCKER: &str = include_str!("../../../systemd/docker.service.d/10-flannel.conf");

/// Where the unit is expected. The role writes its own there, with the node's options in it.
const UNIT_PATH: &str = "etc/systemd/system/flanneld.service";

/// Builds and installs below `prefix`, and says what is where.
///
/// # Errors
/// When the build fails or a file cannot be written.
pub fn run(prefix: &Path) -> Result<()> {
    for line in install(&binaries::cni_folder()?, prefix)? {
        println!("{line}");
    }
    Ok(())
}

/// Installs the programs of a folder below `prefix`; a line per file.
///
/// # Errors
/// When a file cannot be read or written. Files that were replaced before stay replaced.
pub fn install(programs: &Path, prefix: &Path) -> Result<Vec<String>> {
    let program = |name: &str| {
        let path = programs.join(name);
        fs::read(&path).with_context(|| format!("read {}", path.display()))
    };
    let (daemon, plugin) = (program("flanneld")?, program("flannel")?);
    let mut said = Vec::new();
    let mut put = |path: &str, content: &[u8], mode: u32| -> Result<()> {
        replace(&prefix.join(path), content, mode)?;
        said.push(format!("installed {}", prefix.join(path).display()));
        Ok(())
    };
    put("usr/local/sbin/flanneld", &daemon, 0o750)?;
    put("opt/cni/bin/flannel", &plugin, 0o755)?;
    // The name under which the role downloads the daemon, to serve or copy from here.
    put("usr/local/share/flannel/flanneld-amd64", &daemon, 0o755)?;
    put("etc/cni/net.d/10-flannel.conflist.example", ROLE_CONFLIST.as_bytes(), 0o644)?;
    put("etc/systemd/system/flanneld.service.d/10-options.conf.example", OPTIONS.as_bytes(), 0o644)?;
    put("etc/systemd/system/docker.service.d/10-flannel.conf.example", DOCKER.as_bytes(), 0o644)?;
    let present = fs::read_to_string(prefix.join(UNIT_PATH)).ok();
    if present.is_none_or(|text| is_ours(&text)) {
        put(UNIT_PATH, UNIT.as_bytes(), 0o644)?;
    } else {
        let beside = format!("{UNIT_PATH}.example");
        put(&beside, UNIT.as_bytes(), 0o644)?;
        said.push(format!(
            "kept {}: it holds the node's options; ours is beside it",
            prefix.join(UNIT_PATH).display()
        ));
    }
    Ok(said)
}

/// Whether a unit is a version of ours, which holds no options.
fn is_ours(unit: &str) -> bool {
    let first = |text: &str| text.lines().nth(1).map(str::to_owned);
    first(unit) == first(UNIT)
}

/// Writes beside the file, to disk, and renames over it: "text file busy" is for those who write into a running program.
fn replace(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let folder = path.parent().context("a path without a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let mut beside =
        tempfile::Builder::new().prefix(".install-").tempfile_in(folder).context("make a temporary file")?;
    let write = |file: &mut File| -> std::io::Result<()> {
        file.write_all(content)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()
    };
    write(beside.as_file_mut()).with_context(|| format!("write beside {}", path.display()))?;
    beside.persist(path).with_context(|| format!("replace {}", path.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// Two programs that can be run: what they do is not the matter.
    fn programs() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in ["flanneld", "flannel"] {
            fs::copy("/bin/cat", folder.path().join(name)).unwrap();
        }
        folder
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn everything_is_where_it_is_expected() {
        let (programs, prefix) = (programs(), tempfile::tempdir().unwrap());
        let said = install(programs.path(), prefix.path()).unwrap();
        let expected = [
            ("usr/local/sbin/flanneld", 0o750),
            ("opt/cni/bin/flannel", 0o755),
            ("usr/local/share/flannel/flanneld-amd64", 0o755),
            ("etc/cni/net.d/10-flannel.conflist.example", 0o644),
            ("etc/systemd/system/flanneld.service.d/10-options.conf.example", 0o644),
            ("etc/systemd/system/docker.service.d/10-flannel.conf.example", 0o644),
            ("etc/systemd/system/flanneld.service", 0o644),
        ];
        for (path, bits) in expected {
            assert_eq!(mode(&prefix.path().join(path)), bits, "{path}");
        }
        assert_eq!(said.len(), expected.len());
        for (path, _) in expected {
            let folder = prefix.path().join(path);
            let left = fs::read_dir(folder.parent().unwrap()).unwrap().flatten();
            let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
            assert!(!left.iter().any(|name| name.to_string_lossy().starts_with('.')), "{left:?}");
        }
    }

    /// Writing into a running program fails with ETXTBSY; it must be replaced, and go on running as it is.
    #[test]
    fn a_running_program_is_replaced() {
        let (programs, prefix) = (programs(), tempfile::tempdir().unwrap());
        install(programs.path(), prefix.path()).unwrap();
        let daemon = prefix.path().join("usr/local/sbin/flanneld");
        let mut running = Command::new(&daemon).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let busy = fs::OpenOptions::new().write(true).open(&daemon).unwrap_err();
        assert_eq!(busy.kind(), std::io::ErrorKind::ExecutableFileBusy);
        fs::write(programs.path().join("flanneld"), "another version").unwrap();
        install(programs.path(), prefix.path()).unwrap();
        assert_eq!(fs::read_to_string(&daemon).unwrap(), "another version");
        running.stdin.take().unwrap().write_all(b"still here").unwrap();
        let output = running.wait_with_output().unwrap();
        assert_eq!((output.stdout.as_slice(), output.status.success()), (&b"still here"[..], true));
    }

    #[test]
    fn a_unit_of_somebody_else_is_kept_and_an_older_one_of_ours_replaced() {
        let (programs, prefix) = (programs(), tempfile::tempdir().unwrap());
        let unit = prefix.path().join(UNIT_PATH);
        let role = include_str!("../../fixtures/role/flanneld.service");
        fs::create_dir_all(unit.parent().unwrap()).unwrap();
        for (present, kept) in [(role.to_owned(), true), (format!("{UNIT}# older\n"), false)] {
            fs::write(&unit, &present).unwrap();
            let said = install(programs.path(), prefix.path()).unwrap();
            assert_eq!(fs::read_to_string(&unit).unwrap(), if kept { present } else { UNIT.to_owned() });
            assert_eq!(said.iter().any(|line| line.starts_with("kept ")), kept);
        }
        assert_eq!(fs::read_to_string(unit.with_extension("service.example")).unwrap(), UNIT);
    }
}
