//! The world that a configuration file may ask for: its own text, and what Ansible would know of this host.
//!
//! Called only when a file is given; decides nothing.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::{LinkAddr, SockaddrIn};
use nix::unistd::{User, geteuid, gethostname};

use crate::options::Outside;
use crate::options::file::MAX_SIZE;
use crate::options::file::facts::{Facts, Interface};

/// The way to the file and to the host's facts.
#[must_use]
pub fn outside() -> Outside<'static> {
    Outside { read: &read, facts: Arc::new(gather) }
}

/// The text of a file. One that is too large is cut off behind the limit, so that it is noticed.
fn read(path: &Path) -> Result<String, String> {
    let limit = u64::try_from(MAX_SIZE).unwrap_or(u64::MAX).saturating_add(1);
    let mut text = String::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    file.take(limit).read_to_string(&mut text).map_err(|error| match error.kind() {
        ErrorKind::InvalidData => "it is not text in UTF-8".to_owned(),
        _ => error.to_string(),
    })?;
    Ok(text)
}

/// What cannot be found out is left empty: a template that needs it says so.
fn gather() -> Facts {
    Facts {
        hostname: gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        home: home(),
        interfaces: interfaces(),
    }
}

/// systemd sets no `HOME` for services of root.
fn home() -> String {
    let given = std::env::var("HOME").ok().filter(|home| !home.is_empty());
    let known = || User::from_uid(geteuid()).ok().flatten().map(|user| user.dir.display().to_string());
    given.or_else(known).unwrap_or_default()
}

fn interfaces() -> Vec<Interface> {
    let mut found: Vec<Interface> = Vec::new();
    for part in getifaddrs().into_iter().flatten() {
        let index = found.iter().position(|interface| interface.name == part.interface_name);
        let index = index.unwrap_or_else(|| {
            let active = part.flags.contains(InterfaceFlags::IFF_UP);
            found.push(Interface { name: part.interface_name.clone(), active, ..Interface::default() });
            found.len() - 1
        });
        let Some(interface) = found.get_mut(index) else { continue };
        let address = part.address.as_ref();
        let mac = address.and_then(|address| address.as_link_addr()).and_then(LinkAddr::addr);
        interface.mac = interface.mac.take().or_else(|| mac.map(colons));
        let ipv4 = address.and_then(|address| address.as_sockaddr_in()).map(SockaddrIn::ip);
        let mask = part.netmask.as_ref().and_then(|mask| mask.as_sockaddr_in()).map(SockaddrIn::ip);
        interface.ipv4 = interface.ipv4.or_else(|| Some((ipv4?, length(mask?))));
    }
    found
}

fn colons(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn length(mask: Ipv4Addr) -> u8 {
    u8::try_from(u32::from(mask).leading_ones()).unwrap_or(32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_a_name_a_home_and_a_loopback() {
        let facts = gather();
        assert!(!facts.hostname.is_empty() && facts.home.starts_with('/'), "{facts:?}");
        let loopback = facts.interfaces.iter().find(|interface| interface.name == "lo").unwrap();
        assert_eq!(loopback.ipv4, Some((Ipv4Addr::LOCALHOST, 8)));
        assert!(loopback.active);
    }

    #[test]
    fn files_are_read_up_to_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flanneld.yml");
        assert!(read(&path).unwrap_err().starts_with("No such file"));
        std::fs::write(&path, "v: 1\n").unwrap();
        assert_eq!(read(&path).unwrap(), "v: 1\n");
        std::fs::write(&path, " ".repeat(MAX_SIZE * 2)).unwrap();
        assert_eq!(read(&path).unwrap().len(), MAX_SIZE + 1);
        std::fs::write(&path, [b'a', 0xff]).unwrap();
        assert_eq!(read(&path).unwrap_err(), "it is not text in UTF-8");
        assert!(read(folder.path()).is_err());
    }
}
