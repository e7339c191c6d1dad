//! The control groups of containers that run in a lab. Container engines make them in hierarchies that the whole host
//! shares and that no namespace takes along at its end, so every lab has a parent of its own and removes it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::eventually::eventually;
use crate::node::Node;

/// A killed process leaves its group a moment after it is gone for everybody else.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the containers of a node belong, as `--cgroup-parent` names it: `/flannel-lab-XXXXXX/node1`.
///
/// # Errors
/// When the node's folder has no parent, which no lab makes.
pub fn parent_of(node: &Node) -> Result<String> {
    let lab = node.folder().parent().and_then(Path::file_name).context("a node outside of a lab")?;
    Ok(format!("/{}/{}", lab.to_string_lossy(), node.name()))
}

/// Puts this process into a group of its own in the v2 hierarchy, below the lab's.
///
/// # Errors
/// When there is no such hierarchy or the group cannot be made.
pub fn join(lab: &Path, name: &str) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read the mounts")?;
    let mut unified =
        mounts.lines().filter_map(|line| match line.split(' ').collect::<Vec<_>>().as_slice() {
            [_, point, "cgroup2", ..] => Some(PathBuf::from(point)),
            _ => None,
        });
    let root = unified.next().context("no cgroup2 is mounted on this host")?;
    let group = root.join(lab.file_name().context("a lab without a name")?).join(name);
    fs::create_dir_all(&group).with_context(|| format!("make {}", group.display()))?;
    fs::write(group.join("cgroup.procs"), "0").with_context(|| format!("enter {}", group.display()))
}

/// A lab's groups, one in each hierarchy that has one.
///
/// # Errors
/// When the mounts cannot be read.
pub fn of(lab: &Path) -> Result<Vec<PathBuf>> {
    let name = lab.file_name().context("a lab without a name")?;
    Ok(hierarchies()?.into_iter().map(|point| point.join(name)).filter(|group| group.exists()).collect())
}

/// Removes a lab's groups. Its processes must be gone.
///
/// # Errors
/// When a group stays in use.
pub fn remove(lab: &Path) -> Result<()> {
    for group in of(lab)? {
        eventually(PATIENCE, "the lab's control groups go", || {
            remove_tree(&group).with_context(|| format!("remove {}", group.display()))
        })?;
    }
    Ok(())
}

/// Mount points of cgroup v1 and v2.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read the mounts")?;
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    Ok(fields
        .filter_map(|fields| match fields.as_slice() {
            [_, point, "cgroup" | "cgroup2", ..] => Some(PathBuf::from(point)),
            _ => None,
        })
        .collect())
}

/// `rmdir` from the leaves up: the files in a group are no files one could remove.
fn remove_tree(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}
