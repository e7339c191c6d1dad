//! What the options mean: typed groups, one per part of the daemon, that need no further validation.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::Ipv4Network;

use super::error::OptionsError;
use super::etcd::{Credentials, Endpoint, Etcd, Identity, Prefix, Tls};
use super::flags::{self, Flag};
use super::raw::Origin;
use super::secret::Secret;
use super::settings::{Setting, Settings};
use crate::firewall::Preference;
use crate::model::TxChecksum;
use crate::store::Api;

/// All options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The store.
    pub etcd: Etcd,
    /// How the external interface is chosen.
    pub iface: IfaceSelection,
    /// Where subnet.env is written.
    pub subnet_file: PathBuf,
    /// Times of the own lease.
    pub lease: LeaseTimes,
    /// Which firewall rules are wanted.
    pub firewall: Firewall,
    /// Drop what is sent to our own subnet while no pod bridge has it.
    pub blackhole: bool,
    /// TX checksum offload of the VXLAN device; `None`: nobody gave the option.
    pub tx_checksum: Option<TxChecksum>,
    /// Where health and metrics are served; `None`: nowhere.
    pub health: Option<SocketAddr>,
    /// Log verbosity, 0 upwards.
    pub verbosity: u8,
    /// The network config to write if there is none.
    pub seed: Option<String>,
}

/// How the external interface is chosen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IfaceSelection {
    /// Names or IPv4 addresses, as typed, in order; none is empty.
    pub ifaces: Vec<String>,
    /// Regular expressions, as typed, in order; none is empty.
    pub regexes: Vec<String>,
    /// An address that the interface must reach.
    pub can_reach: Option<Ipv4Addr>,
    /// The address published to the peers.
    pub public_ip: Option<Ipv4Addr>,
}

/// Times of leases. The margin is shorter than the ttl.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTimes {
    /// How long a lease lives without renewal.
    pub ttl: Duration,
    /// How long before its end it is renewed.
    pub renew_margin: Duration,
    /// How long peers are kept that a replaced store does not list.
    pub peer_grace: Duration,
}

/// Which firewall rules are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firewall {
    /// Masquerade what leaves the overlay network.
    pub ip_masq: bool,
    /// Accept forwarded traffic from and to the overlay network.
    pub forward_rules: bool,
    /// Period of checks where the kernel does not report changes.
    pub resync: Duration,
    /// Draw source ports at random when masquerading.
    pub fully_random: bool,
    /// Which firewall holds the rules.
    pub preference: Preference,
    /// Destinations that see a pod's own address.
    pub exclude: Vec<Ipv4Network>,
}

impl Options {
    /// Puts the settings together. `network` is the network config that the configuration file describes.
    pub(super) fn of(settings: &Settings, network: Option<String>) -> Result<Self, OptionsError> {
        Ok(Self {
            seed: seed(&settings.get(&flags::SEED_CONFIG), network)?,
            etcd: etcd(settings)?,
            iface: iface(settings)?,
            subnet_file: subnet_file(&settings.get(&flags::SUBNET_FILE))?,
            lease: lease(
                &settings.get(&flags::SUBNET_LEASE_RENEW_MARGIN),
                &settings.get(&flags::SUBNET_LEASE_TTL),
                &settings.get(&flags::PEER_GRACE),
            )?,
            firewall: firewall(settings)?,
            blackhole: settings.get(&flags::IP_BLACKHOLE_ROUTE).bool(),
            tx_checksum: tx_checksum(&settings.get(&flags::VXLAN_TX_CHECKSUM))?,
            health: health(&settings.get(&flags::HEALTHZ_IP), settings.get(&flags::HEALTHZ_PORT).int())?,
            verbosity: clamped(settings.get(&flags::V).int()),
        })
    }

    /// What is in effect instead of a setting's value: a default margin too long for the ttl was halved.
    pub(super) fn overrules(&self, setting: &Setting) -> Option<String> {
        let margin = self.lease.renew_margin.as_secs();
        let shrunk = setting.flag.name == flags::SUBNET_LEASE_RENEW_MARGIN.name
            && margin != setting.int().unsigned_abs().saturating_mul(60);
        shrunk.then(|| format!("{margin}s, half of {}", flags::SUBNET_LEASE_TTL.name))
    }
}

fn seed(wanted: &Setting, network: Option<String>) -> Result<Option<String>, OptionsError> {
    match (wanted.bool(), network) {
        (true, None) => Err(OptionsError::NothingToSeed),
        (true, network) => Ok(network),
        (false, _) => Ok(None),
    }
}

fn etcd(settings: &Settings) -> Result<Etcd, OptionsError> {
    let prefix = settings.get(&flags::ETCD_PREFIX);
    let api = settings.get(&flags::ETCD_API);
    Ok(Etcd {
        api: api.text().parse().map_err(|_| api.bad(Api::EXPECTED))?,
        endpoints: endpoints(&settings.get(&flags::ETCD_ENDPOINTS))?,
        prefix: Prefix::clean(prefix.text())
            .ok_or_else(|| prefix.bad("a key such as /coreos.com/network"))?,
        tls: Tls {
            ca: optional(&settings.get(&flags::ETCD_CAFILE)).map(PathBuf::from),
            identity: pair(settings, &flags::ETCD_CERTFILE, &flags::ETCD_KEYFILE)?
                .map(|(cert, key)| Identity { cert: cert.into(), key: key.into() }),
        },
        credentials: pair(settings, &flags::ETCD_USERNAME, &flags::ETCD_PASSWORD)?
            .map(|(username, password)| Credentials { username, password: Secret::new(password) }),
    })
}

fn endpoints(setting: &Setting) -> Result<Vec<Endpoint>, OptionsError> {
    let parse = |url| Endpoint::parse(url).map_err(|expected| setting.bad(expected));
    setting.text().split(',').map(parse).collect()
}

/// Two options of which none or both are given.
fn pair(
    settings: &Settings,
    first: &'static Flag,
    second: &'static Flag,
) -> Result<Option<(String, String)>, OptionsError> {
    match (optional(&settings.get(first)), optional(&settings.get(second))) {
        (Some(a), Some(b)) => Ok(Some((a, b))),
        (None, None) => Ok(None),
        (Some(_), None) => Err(OptionsError::HalfOfPair { given: first.name, missing: second.name }),
        (None, Some(_)) => Err(OptionsError::HalfOfPair { given: second.name, missing: first.name }),
    }
}

fn optional(setting: &Setting) -> Option<String> {
    Some(setting.text()).filter(|text| !text.is_empty()).map(str::to_owned)
}

fn iface(settings: &Settings) -> Result<IfaceSelection, OptionsError> {
    Ok(IfaceSelection {
        ifaces: filled(&settings.get(&flags::IFACE), "an interface name or IPv4 address")?,
        regexes: filled(&settings.get(&flags::IFACE_REGEX), "a regular expression")?,
        can_reach: ipv4(&settings.get(&flags::IFACE_CAN_REACH))?,
        public_ip: ipv4(&settings.get(&flags::PUBLIC_IP))?,
    })
}

fn filled(setting: &Setting, expected: &str) -> Result<Vec<String>, OptionsError> {
    if setting.list().iter().any(String::is_empty) {
        Err(setting.bad(expected))
    } else {
        Ok(setting.list().to_vec())
    }
}

fn ipv4(setting: &Setting) -> Result<Option<Ipv4Addr>, OptionsError> {
    let parse = |text: String| text.parse().map_err(|_| setting.bad("an IPv4 address"));
    optional(setting).map(parse).transpose()
}

fn subnet_file(setting: &Setting) -> Result<PathBuf, OptionsError> {
    let path = PathBuf::from(setting.text());
    if setting.text().ends_with('/') || path.file_name().is_none() {
        return Err(setting.bad("the path of a file"));
    }
    Ok(path)
}

/// A margin nobody gave shrinks to half the ttl where the default would be too long.
fn lease(margin: &Setting, ttl: &Setting, grace: &Setting) -> Result<LeaseTimes, OptionsError> {
    let ttl_time = Duration::from_secs(ttl.int().unsigned_abs());
    let peer_grace = Duration::from_secs(grace.int().unsigned_abs());
    let margin_time = Duration::from_secs(margin.int().unsigned_abs().saturating_mul(60));
    if margin.origin == Origin::Default {
        return Ok(LeaseTimes { ttl: ttl_time, renew_margin: margin_time.min(ttl_time / 2), peer_grace });
    }
    if margin_time >= ttl_time {
        return Err(OptionsError::MarginNotBelowTtl {
            margin_minutes: margin.int(),
            margin_origin: margin.origin,
            ttl_seconds: ttl.int(),
            ttl_origin: ttl.origin,
        });
    }
    Ok(LeaseTimes { ttl: ttl_time, renew_margin: margin_time, peer_grace })
}

fn firewall(settings: &Settings) -> Result<Firewall, OptionsError> {
    let preference = settings.get(&flags::FIREWALL);
    Ok(Firewall {
        ip_masq: settings.get(&flags::IP_MASQ).bool(),
        forward_rules: settings.get(&flags::IPTABLES_FORWARD_RULES).bool(),
        resync: Duration::from_secs(settings.get(&flags::IPTABLES_RESYNC).int().unsigned_abs()),
        fully_random: !settings.get(&flags::IP_MASQ_FULLY_RANDOM_DISABLE).bool(),
        preference: preference.text().parse().map_err(|_| preference.bad("auto, nftables or iptables"))?,
        exclude: cidrs(&settings.get(&flags::IP_MASQ_EXCLUDE))?,
    })
}

/// The default is none, so that the network config can say something else.
fn tx_checksum(setting: &Setting) -> Result<Option<TxChecksum>, OptionsError> {
    let chosen = setting.text().parse().map_err(|_| setting.bad(TxChecksum::EXPECTED))?;
    Ok((setting.origin != Origin::Default).then_some(chosen))
}

/// CIDRs separated by commas, host bits dropped.
fn cidrs(setting: &Setting) -> Result<Vec<Ipv4Network>, OptionsError> {
    let parse = |text: &str| {
        let cidr: Option<Ipv4Network> = text.trim().parse().ok();
        let cidr = cidr.and_then(|cidr| Ipv4Network::new(cidr.network(), cidr.prefix()).ok());
        cidr.ok_or_else(|| setting.bad("IPv4 CIDRs such as 192.168.0.0/16, separated by commas"))
    };
    optional(setting).map_or_else(|| Ok(Vec::new()), |text| text.split(',').map(parse).collect())
}

/// The address is checked even when nothing is served: a typo is an error. An empty one means all of IPv4, as in Go.
fn health(ip: &Setting, port: i64) -> Result<Option<SocketAddr>, OptionsError> {
    let address = match optional(ip) {
        Some(text) => text.parse().map_err(|_| ip.bad("an IP address"))?,
        None => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    let port = u16::try_from(port).ok().filter(|port| *port > 0);
    Ok(port.map(|port| SocketAddr::new(address, port)))
}

fn clamped(verbosity: i64) -> u8 {
    u8::try_from(verbosity.clamp(0, 255)).unwrap_or(0)
}
