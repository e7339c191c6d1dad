//! The table of options: the single source of every name, type, default, help text and of what is built.
//!
//! Nothing here reads or interprets; whoever needs an option refers to its constant.

/// One option, settable as `-name=VALUE` and as `FLANNELD_NAME`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flag {
    /// The name without dashes.
    pub name: &'static str,
    /// Type, default and range.
    pub kind: Kind,
    /// One or two sentences for `-help`.
    pub help: &'static str,
    /// Whether the daemon can do what it asks for.
    pub support: Support,
    /// Whether another value can take effect while the daemon runs.
    pub live: bool,
}

/// Type, default and range of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text. An empty default means "not given".
    Text {
        /// Value when nothing is given.
        default: &'static str,
    },
    /// URLs separated by commas. What looks like a password in them is never shown.
    Urls {
        /// Value when nothing is given.
        default: &'static str,
    },
    /// A text that is never shown. Empty by default.
    Secret,
    /// A text that may be given several times. None by default.
    List,
    /// `true` or `false`.
    Bool {
        /// Value when nothing is given.
        default: bool,
    },
    /// An integer within a range.
    Int {
        /// Value when nothing is given.
        default: i64,
        /// Smallest value accepted.
        min: i64,
        /// Largest value accepted.
        max: i64,
        /// What it counts, for `-help` and messages.
        unit: &'static str,
    },
}

/// Whether the daemon can do what an option asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// It can.
    Built,
    /// Accepted for compatibility; setting it changes nothing and is warned about.
    NoEffect,
    /// Not yet. Only the value that asks for nothing, and the default, are accepted.
    NotBuilt {
        /// The value that asks for nothing.
        off: &'static str,
        /// What to use instead, completing "supported is …".
        supported: &'static str,
    },
}

impl Flag {
    /// The environment variable that sets it: upper case, `-` replaced by `_`.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.name.to_uppercase().replace('-', "_"))
    }

    /// Whether a bare `-name` is complete.
    #[must_use]
    pub fn is_bool(&self) -> bool {
        matches!(self.kind, Kind::Bool { .. })
    }

    const fn not_built(self, off: &'static str, supported: &'static str) -> Self {
        Self { support: Support::NotBuilt { off, supported }, ..self }
    }

    const fn no_effect(self) -> Self {
        Self { support: Support::NoEffect, ..self }
    }

    const fn live(self) -> Self {
        Self { live: true, ..self }
    }
}

/// What the names of all our environment variables begin with.
pub const VARIABLE_PREFIX: &str = "FLANNELD_";

const fn built(name: &'static str, kind: Kind, help: &'static str) -> Flag {
    Flag { name, kind, help, support: Support::Built, live: false }
}

const fn text(name: &'static str, default: &'static str, help: &'static str) -> Flag {
    built(name, Kind::Text { default }, help)
}

const fn list(name: &'static str, help: &'static str) -> Flag {
    built(name, Kind::List, help)
}

const fn boolean(name: &'static str, default: bool, help: &'static str) -> Flag {
    built(name, Kind::Bool { default }, help)
}

const fn int(
    name: &'static str,
    default: i64,
    range: (i64, i64),
    unit: &'static str,
    help: &'static str,
) -> Flag {
    built(name, Kind::Int { default, min: range.0, max: range.1, unit }, help)
}

const ETCD_ONLY: &str = "leases in etcd (kube-subnet-mgr=false, see etcd-endpoints and etcd-prefix)";

/// `config-file`
pub const CONFIG_FILE: Flag =
    text("config-file", "", "YAML file with options by name, or with the variables of the Ansible role");
/// `etcd-api`
pub const ETCD_API: Flag = text(
    "etcd-api",
    "auto",
    "which of etcd's two stores holds the leases: v2, v3, both while a cluster moves from v2 to v3, or auto: the one with the network config; if both have one, v2 while another node lives there (our lease is kept in v3 as well), else v3",
);
/// `etcd-cafile`
pub const ETCD_CAFILE: Flag =
    text("etcd-cafile", "", "PEM file with the certificates that may have signed etcd's own");
/// `etcd-certfile`
pub const ETCD_CERTFILE: Flag =
    text("etcd-certfile", "", "PEM file with the client certificate shown to etcd");
/// `etcd-endpoints`
pub const ETCD_ENDPOINTS: Flag = built(
    "etcd-endpoints",
    Kind::Urls { default: "http://127.0.0.1:4001,http://127.0.0.1:2379" },
    "URLs of the etcd members, separated by commas",
);
/// `etcd-keyfile`
pub const ETCD_KEYFILE: Flag = text("etcd-keyfile", "", "PEM file with the key of the client certificate");
/// `etcd-password`
pub const ETCD_PASSWORD: Flag = built("etcd-password", Kind::Secret, "password of etcd-username");
/// `etcd-prefix`
pub const ETCD_PREFIX: Flag = text(
    "etcd-prefix",
    "/coreos.com/network",
    "key below which etcd holds the network config and the leases",
);
/// `etcd-username`
pub const ETCD_USERNAME: Flag = text("etcd-username", "", "user name for etcd");
/// `firewall`
pub const FIREWALL: Flag = text(
    "firewall",
    "auto",
    "where masquerade and forward rules stand: nftables, iptables, or auto for what fits this host",
);
/// `healthz-ip`
pub const HEALTHZ_IP: Flag =
    text("healthz-ip", "0.0.0.0", "address on which /healthz, /readyz and /metrics are served");
/// `healthz-port`
pub const HEALTHZ_PORT: Flag = int(
    "healthz-port",
    0,
    (i64::MIN, 65535),
    "port",
    "port on which /healthz, /readyz and /metrics are served; 0 or negative serves nothing",
);
/// `iface`
pub const IFACE: Flag = list(
    "iface",
    "interface, by name or IPv4 address, that carries the traffic between nodes; may be repeated, the first one found is used",
);
/// `iface-can-reach`
pub const IFACE_CAN_REACH: Flag =
    text("iface-can-reach", "", "IPv4 address; the interface from which it is reached carries the traffic");
/// `iface-regex`
pub const IFACE_REGEX: Flag = list(
    "iface-regex",
    "regular expression matched with addresses, then with names of interfaces; tried after iface, may be repeated",
);
/// `ip-blackhole-route`
pub const IP_BLACKHOLE_ROUTE: Flag = boolean(
    "ip-blackhole-route",
    false,
    "drop packets for addresses of this node's subnet that no pod bridge has, by a blackhole route",
);
/// `ip-masq`
pub const IP_MASQ: Flag =
    boolean("ip-masq", false, "masquerade traffic that leaves the overlay network").live();
/// `ip-masq-exclude`
pub const IP_MASQ_EXCLUDE: Flag =
    text("ip-masq-exclude", "", "CIDRs, separated by commas, to which pods keep their own source address")
        .live();
/// `ip-masq-fully-random-disable`
pub const IP_MASQ_FULLY_RANDOM_DISABLE: Flag = boolean(
    "ip-masq-fully-random-disable",
    false,
    "let masquerading keep source ports instead of drawing them at random",
)
.live();
/// `iptables-forward-rules`
pub const IPTABLES_FORWARD_RULES: Flag =
    boolean("iptables-forward-rules", true, "accept forwarded traffic from and to the overlay network")
        .live();
/// `iptables-resync`
pub const IPTABLES_RESYNC: Flag = int(
    "iptables-resync",
    5,
    (1, 86_400),
    "seconds",
    "how often firewall rules are checked where the kernel does not report their changes",
)
.live();
/// `kube-annotation-prefix`
pub const KUBE_ANNOTATION_PREFIX: Flag = text(
    "kube-annotation-prefix",
    "flannel.alpha.coreos.com",
    "prefix of the annotations of Kubernetes nodes",
)
.not_built("flannel.alpha.coreos.com", ETCD_ONLY);
/// `kube-api-url`
pub const KUBE_API_URL: Flag =
    built("kube-api-url", Kind::Urls { default: "" }, "URL of the Kubernetes API server")
        .not_built("", ETCD_ONLY);
/// `kube-subnet-mgr`
pub const KUBE_SUBNET_MGR: Flag =
    boolean("kube-subnet-mgr", false, "take leases from Kubernetes instead of etcd")
        .not_built("false", ETCD_ONLY);
/// `kubeconfig-file`
pub const KUBECONFIG_FILE: Flag =
    text("kubeconfig-file", "", "kubeconfig file for the Kubernetes API server").not_built("", ETCD_ONLY);
/// `log_backtrace_at`
pub const LOG_BACKTRACE_AT: Flag =
    text("log_backtrace_at", "", "file:line of a log statement of the Go daemon").no_effect();
/// `net-config-path`
pub const NET_CONFIG_PATH: Flag = text(
    "net-config-path",
    "/etc/kube-flannel/net-conf.json",
    "network config when leases come from Kubernetes",
)
.not_built("/etc/kube-flannel/net-conf.json", ETCD_ONLY);
/// `peer-grace`
pub const PEER_GRACE: Flag = int(
    "peer-grace",
    3600,
    (0, 9_000_000_000),
    "seconds",
    "how long peers are kept that a replaced store (wiped, restored from a backup) does not list",
);
/// `public-ip`
pub const PUBLIC_IP: Flag = text("public-ip", "", "IPv4 address to which the other nodes send");
/// `public-ipv6`
pub const PUBLIC_IPV6: Flag = text("public-ipv6", "", "IPv6 address to which the other nodes send")
    .not_built("", "public-ip with an IPv4 address");
/// `set-node-network-unavailable`
pub const SET_NODE_NETWORK_UNAVAILABLE: Flag = boolean(
    "set-node-network-unavailable",
    true,
    "set NodeNetworkUnavailable of the node when leases come from Kubernetes",
)
.not_built("true", ETCD_ONLY);
/// `seed-config`
pub const SEED_CONFIG: Flag = boolean(
    "seed-config",
    false,
    "write a missing network config into etcd, from flannel_ip_range and flannel_backend_type of the configuration file",
);
/// `subnet-file`
pub const SUBNET_FILE: Flag = text(
    "subnet-file",
    "/run/flannel/subnet.env",
    "file that tells the CNI plugin and Docker about the subnet",
);
/// `subnet-lease-renew-margin`
pub const SUBNET_LEASE_RENEW_MARGIN: Flag = int(
    "subnet-lease-renew-margin",
    60,
    (1, 1439),
    "minutes",
    "how long before its end the lease is renewed; half of subnet-lease-ttl if that is less and this is not given",
).live();
/// `subnet-lease-ttl`
pub const SUBNET_LEASE_TTL: Flag = int(
    "subnet-lease-ttl",
    86_400,
    (10, 9_000_000_000),
    "seconds",
    "how long the lease lives without renewal",
);
/// `v`
pub const V: Flag = int(
    "v",
    0,
    (-0x8000_0000, 0x7fff_ffff),
    "int",
    "log verbosity: 1 and more tell about each peer, 4 and more about each message to the kernel",
)
.live();
/// `version`
pub const VERSION: Flag = boolean("version", false, "print the version and exit");
/// `vmodule`
pub const VMODULE: Flag =
    text("vmodule", "", "verbosity per source file of the Go daemon, pattern=N,…").no_effect();

/// `vxlan-tx-checksum`
pub const VXLAN_TX_CHECKSUM: Flag = text(
    "vxlan-tx-checksum",
    "auto",
    "TX checksum offload of the VXLAN device: on, off, keep for as it is, or auto for off on kernels that spoil checksums \
     (before 5.8) and else as it is; wins over TxChecksum of the network config",
);

/// Every option, sorted by name.
pub const ALL: &[Flag] = &[
    CONFIG_FILE,
    ETCD_API,
    ETCD_CAFILE,
    ETCD_CERTFILE,
    ETCD_ENDPOINTS,
    ETCD_KEYFILE,
    ETCD_PASSWORD,
    ETCD_PREFIX,
    ETCD_USERNAME,
    FIREWALL,
    HEALTHZ_IP,
    HEALTHZ_PORT,
    IFACE,
    IFACE_CAN_REACH,
    IFACE_REGEX,
    IP_BLACKHOLE_ROUTE,
    IP_MASQ,
    IP_MASQ_EXCLUDE,
    IP_MASQ_FULLY_RANDOM_DISABLE,
    IPTABLES_FORWARD_RULES,
    IPTABLES_RESYNC,
    KUBE_ANNOTATION_PREFIX,
    KUBE_API_URL,
    KUBE_SUBNET_MGR,
    KUBECONFIG_FILE,
    LOG_BACKTRACE_AT,
    NET_CONFIG_PATH,
    PEER_GRACE,
    PUBLIC_IP,
    PUBLIC_IPV6,
    SEED_CONFIG,
    SET_NODE_NETWORK_UNAVAILABLE,
    SUBNET_FILE,
    SUBNET_LEASE_RENEW_MARGIN,
    SUBNET_LEASE_TTL,
    V,
    VERSION,
    VMODULE,
    VXLAN_TX_CHECKSUM,
];

/// The option of that name, without dashes.
#[must_use]
pub fn find(name: &str) -> Option<&'static Flag> {
    ALL.iter().find(|flag| flag.name == name)
}

/// The option whose name is nearest to a mistyped one, if any is near enough to be meant.
#[must_use]
pub fn closest(name: &str) -> Option<&'static Flag> {
    find(closest_of(name, ALL.iter().map(|flag| flag.name))?)
}

/// Of several names the one nearest to a mistyped one, if any is near enough to be meant.
pub(super) fn closest_of<'a>(typed: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let rated = names.map(|name| (distance(typed, name), name));
    let near = rated.filter(|(edits, _)| *edits <= 1 + typed.len() / 4);
    near.min_by_key(|(edits, _)| *edits).map(|(_, name)| name)
}

/// How many single-character edits lie between them. A one-letter flag is near to nothing but itself.
fn distance(typed: &str, name: &str) -> usize {
    let folded = typed.to_lowercase().replace('_', "-");
    let edits = strsim::damerau_levenshtein(&folded, &name.replace('_', "-"));
    if name.len() == 1 { edits.saturating_mul(2) } else { edits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_as_the_help_shows_it_and_names_nothing_twice() {
        assert!(ALL.windows(2).all(|pair| pair[0].name < pair[1].name));
    }

    #[test]
    fn variables_follow_the_names() {
        assert_eq!(ETCD_ENDPOINTS.variable(), "FLANNELD_ETCD_ENDPOINTS");
        assert_eq!(LOG_BACKTRACE_AT.variable(), "FLANNELD_LOG_BACKTRACE_AT");
        assert_eq!(V.variable(), "FLANNELD_V");
    }

    #[test]
    fn what_was_probably_meant_is_found() {
        for (typed, meant) in [
            ("ifac", Some("iface")),
            ("etcd-endpoint", Some("etcd-endpoints")),
            ("ip_masq", Some("ip-masq")),
            ("ipmasq", Some("ip-masq")),
            ("IFACE", Some("iface")),
            ("subnet-leese-ttl", Some("subnet-lease-ttl")),
            ("x", None),
            ("listen", None),
            ("remote", None),
        ] {
            assert_eq!(closest(typed).map(|flag| flag.name), meant, "{typed}");
        }
    }

    #[test]
    fn off_values_and_defaults_lie_within_the_type() {
        for flag in ALL {
            if let Kind::Int { default, min, max, .. } = flag.kind {
                assert!((min..=max).contains(&default), "{}", flag.name);
            }
            if let (Kind::Bool { .. }, Support::NotBuilt { off, .. }) = (flag.kind, flag.support) {
                assert!(off == "true" || off == "false", "{}", flag.name);
            }
        }
    }
}
