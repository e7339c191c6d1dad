//! The variables of the Ansible role githubixx.flanneld 8.0.0+0.16.1: names, types, defaults.
//!
//! A table only. What a variable means for the daemon is decided in [`super::layer`], what the role writes from them in
//! [`super::written`].

use super::yaml::Content;

/// A variable of the role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What it has to be.
    pub(super) shape: Shape,
    /// What the role takes when the file says nothing; a template. Lists and mappings have none here.
    pub(super) default: Option<&'static str>,
}

/// What a variable has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Text, number or boolean.
    Scalar,
    /// A list of scalars.
    List,
    /// A mapping of names of options to scalars.
    Settings,
}

impl Shape {
    pub(super) fn accepts(self, content: &Content) -> bool {
        match (self, content) {
            (Self::Scalar, Content::Bool(..) | Content::Int(_) | Content::Float(_) | Content::Text(_)) => {
                true
            }
            (Self::List, Content::List(items)) => {
                items.iter().all(|item| Self::Scalar.accepts(&item.content))
            }
            // What is in it is judged option by option.
            (Self::Settings, content) => matches!(content, Content::Map(_)),
            _ => false,
        }
    }

    pub(super) fn in_words(self) -> &'static str {
        match self {
            Self::Scalar => "a text",
            Self::List => "a list of texts",
            Self::Settings => "a mapping of options (NAME: VALUE)",
        }
    }
}

const fn text(name: &'static str, default: &'static str) -> Variable {
    Variable { name, shape: Shape::Scalar, default: Some(default) }
}

const fn without_default(name: &'static str, shape: Shape) -> Variable {
    Variable { name, shape, default: None }
}

/// Options of the daemon, laid over the role's own.
pub(super) const SETTINGS_USER: &str = "flannel_settings_user";
/// Options of the daemon.
pub(super) const SETTINGS: &str = "flannel_settings";
/// The interface between the nodes. It has no default here: the role's `tap0` fits nobody who does not say so.
pub(super) const INTERFACE: &str = "k8s_interface";
/// The overlay network.
pub(super) const IP_RANGE: &str = "flannel_ip_range";
/// How packets travel between nodes.
pub(super) const BACKEND_TYPE: &str = "flannel_backend_type";
/// The port of endpoints that name none.
pub(super) const CLIENT_PORT: &str = "etcd_client_port";
/// Ours, not the role's: the option `seed-config`.
pub(super) const SEED: &str = "flannel_seed_config";

/// Every variable, sorted by name.
pub const VARIABLES: &[Variable] = &[
    text("etcd_bin_dir", "/usr/local/bin"),
    without_default("etcd_certificates", Shape::List),
    text(CLIENT_PORT, "2379"),
    text(BACKEND_TYPE, "vxlan"),
    text("flannel_bin_dir", "/usr/local/sbin"),
    text(
        "flannel_cni_conf",
        r#"{"name": "{{flannel_cni_interface}}", "cniVersion": "{{flannel_cni_spec_version}}", "plugins": [{"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}}, {"type": "portmap", "capabilities": {"portMappings": true}}]}"#,
    ),
    text("flannel_cni_conf_file", "10-flannel"),
    text("flannel_cni_interface", "cni0"),
    text("flannel_cni_spec_version", "0.3.1"),
    text("flannel_etcd_prefix", "/kubernetes-cluster/network"),
    text(IP_RANGE, "10.200.0.0/16"),
    text("flannel_options_dir", "/etc/flannel"),
    without_default(SEED, Shape::Scalar),
    without_default(SETTINGS, Shape::Settings),
    without_default(SETTINGS_USER, Shape::Settings),
    text("flannel_subnet_file_dir", "/run/flannel"),
    without_default("flannel_systemd_execstartpost", Shape::Scalar),
    text("flannel_systemd_execstartpre", "/bin/mkdir -p {{flannel_subnet_file_dir}}"),
    text("flannel_systemd_limitnofile", "40000"),
    text("flannel_systemd_limitnproc", "1048576"),
    text("flannel_systemd_restartsec", "5"),
    text("flannel_version", "v0.16.1"),
    text("k8s_ca_conf_directory", "{{ '~/k8s/certs' | expanduser }}"),
    text("k8s_cni_conf_dir", "/etc/cni/net.d"),
    text("k8s_conf_dir", "/var/lib/kubernetes"),
    without_default(INTERFACE, Shape::Scalar),
];

/// An entry of the role's default for `flannel_settings`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Default {
    /// The option.
    pub(super) option: &'static str,
    /// Its value, a template.
    pub(super) value: &'static str,
    /// It needs [`INTERFACE`].
    pub(super) of_interface: bool,
}

const fn fixed(option: &'static str, value: &'static str) -> Default {
    Default { option, value, of_interface: false }
}

const fn of_interface(option: &'static str, value: &'static str) -> Default {
    Default { option, value, of_interface: true }
}

/// What the role takes for `flannel_settings` when the file does not have it.
pub(super) const DEFAULT_SETTINGS: &[Default] = &[
    fixed("etcd-cafile", "{{k8s_conf_dir}}/ca-etcd.pem"),
    fixed("etcd-certfile", "{{k8s_conf_dir}}/cert-etcd.pem"),
    fixed("etcd-keyfile", "{{k8s_conf_dir}}/cert-etcd-key.pem"),
    fixed("etcd-prefix", "{{flannel_etcd_prefix}}"),
    fixed("healthz-ip", "0.0.0.0"),
    fixed("healthz-port", "0"),
    of_interface("iface", "{{k8s_interface}}"),
    fixed("ip-masq", "true"),
    of_interface("public-ip", "{{hostvars[inventory_hostname]['ansible_' + k8s_interface].ipv4.address}}"),
    fixed("subnet-file", "{{flannel_subnet_file_dir}}/subnet.env"),
];

/// The variables that [`DEFAULT_SETTINGS`] is made of, and the mapping that is laid over it: with one of them in the file and
/// no `flannel_settings`, the role's default for that is meant.
pub(super) const IMPLY_SETTINGS: &[&str] =
    &[INTERFACE, "k8s_conf_dir", "flannel_etcd_prefix", "flannel_subnet_file_dir", SETTINGS_USER];

/// The variable of that name.
#[must_use]
pub(super) fn find(name: &str) -> Option<&'static Variable> {
    VARIABLES.iter().find(|variable| variable.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::flags;

    #[test]
    fn the_tables_are_sorted_and_name_what_exists() {
        assert!(VARIABLES.windows(2).all(|pair| pair[0].name < pair[1].name));
        assert!(DEFAULT_SETTINGS.iter().all(|default| flags::find(default.option).is_some()));
        assert!(IMPLY_SETTINGS.iter().all(|name| find(name).is_some()));
    }
}
