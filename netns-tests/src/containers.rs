//! What podman and containerd need in a node alike: flannel among the CNI plugins, and a root for containers.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Context, Result};

use crate::binaries;
use crate::cni::DEBIAN_PLUGINS;
use crate::node::Node;

/// The root of containers, inside a node: busybox under its names, and one page to serve.
pub const ROOT: &str = "/run/container-root";
/// What `httpd -h /www` answers.
pub const PAGE: &str = "hello from a container\n";

/// Puts flannel into Debian's plugin folder, where both engines look, and makes [`ROOT`]. Of the node only.
///
/// # Errors
/// When a file or mount cannot be made, or a package is not unpacked.
pub fn prepare(node: &Node) -> Result<()> {
    install_flannel(node)?;
    let root = node.host_path(ROOT);
    for folder in ["bin", "proc", "sys", "dev", "etc", "tmp", "run", "www"] {
        fs::create_dir_all(root.join(folder)).with_context(|| format!("make {folder} in {ROOT}"))?;
    }
    fs::copy(binaries::unpacked("bin/busybox")?, root.join("bin/busybox")).context("copy busybox")?;
    for name in ["sh", "ip", "ping", "httpd", "nc", "sleep", "cat"] {
        symlink("busybox", root.join("bin").join(name)).with_context(|| format!("link {name}"))?;
    }
    fs::write(root.join("www/index.html"), PAGE).context("write the page")
}

/// `mount -t overlay` with a folder that holds flannel alone on top of Debian's.
fn install_flannel(node: &Node) -> Result<()> {
    let own = node.folder().join("plugins");
    fs::create_dir(&own).with_context(|| format!("make {}", own.display()))?;
    fs::copy(binaries::cni_folder()?.join("flannel"), own.join("flannel")).context("copy flannel")?;
    let layers = format!("lowerdir={}:{DEBIAN_PLUGINS}", own.display());
    node.run(&format!("mount -t overlay overlay -o {layers} {DEBIAN_PLUGINS}")).map(drop)
}
