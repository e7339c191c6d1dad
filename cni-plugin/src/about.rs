//! What `flannel` says when a person starts it. Pure text.

use crate::version;

/// Two lines in the manner of every CNI plugin, then an explanation.
pub fn text() -> String {
    format!(
        "{}\nCNI protocol versions supported: {}\n\n{}",
        program(),
        version::listed(),
        "This is a CNI plugin: a container runtime (kubelet, containerd, podman) starts it with CNI_COMMAND\n\
         and other CNI_* variables set and a network configuration on stdin. It reads the file flanneld\n\
         wrote (/run/flannel/subnet.env), builds the configuration of another plugin (default: bridge,\n\
         with host-local) and runs that one. It belongs into the runtime's plugin directory, usually\n\
         /opt/cni/bin, and is named by a file in /etc/cni/net.d.\n\
         \n\
         To try a configuration without touching anything:\n\
         \n\
         \x20   flannel check-config < /etc/cni/net.d/10-flannel.conflist\n"
    )
}

/// What a wrong word on the command line gets.
pub fn usage(word: &str) -> String {
    format!(
        "flannel: unknown argument {word:?}; there is only 'check-config', and no argument explains the rest\n"
    )
}

/// Program, version, platform and commit; the commit comes from `FLANNEL_COMMIT` at build time.
fn program() -> String {
    let commit = option_env!("FLANNEL_COMMIT").unwrap_or("unknown");
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    format!("CNI Plugin flannel version {} ({os}/{arch}) commit {commit}", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_two_lines_are_those_of_every_plugin() {
        let text = text();
        let mut lines = text.lines();
        assert!(lines.next().unwrap().starts_with("CNI Plugin flannel version "));
        assert_eq!(
            lines.next().unwrap(),
            "CNI protocol versions supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"
        );
        assert!(text.contains("flannel check-config <"));
    }
}
