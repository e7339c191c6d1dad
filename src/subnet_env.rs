//! `subnet.env`: what the CNI plugin and Docker learn about this node, and what the node learns about its former self.
//!
//! The functions here only turn values into text and back; [`file`] touches the disk.

pub mod file;
pub mod watch;

use ipnetwork::Ipv4Network;

use crate::model::Mtu;

/// What the file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The overlay network.
    pub network: Ipv4Network,
    /// The leased subnet. Its first address is the bridge's.
    pub subnet: Ipv4Network,
    /// MTU of the tunnel.
    pub mtu: Mtu,
    /// Whether the daemon masquerades, so that nobody else needs to.
    pub ip_masq: bool,
}

impl SubnetEnv {
    /// The file's text, byte for byte as the Go daemon writes it: this order, no quotes, a newline at the end.
    #[must_use]
    pub fn render(&self) -> String {
        format!(
            "FLANNEL_NETWORK={}\nFLANNEL_SUBNET={}\nFLANNEL_MTU={}\nFLANNEL_IPMASQ={}\n",
            normal(self.network),
            bridge(self.subnet),
            self.mtu,
            self.ip_masq
        )
    }
}

/// The subnet with its network address raised by one: `10.200.88.1/24`.
fn bridge(subnet: Ipv4Network) -> String {
    let first = std::net::Ipv4Addr::from_bits(u32::from(subnet.network()).wrapping_add(1));
    format!("{first}/{}", subnet.prefix())
}

fn normal(network: Ipv4Network) -> String {
    format!("{}/{}", network.network(), network.prefix())
}

/// What a former start left in the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Previous {
    /// `FLANNEL_NETWORK`
    pub network: Option<Ipv4Network>,
    /// `FLANNEL_SUBNET`, as network address and length.
    pub subnet: Option<Ipv4Network>,
    /// Why a value that is there counts as absent, in words.
    pub ignored: Vec<String>,
}

impl Previous {
    /// Reads a file in dotenv syntax: comments, `export` and quotes are tolerated, the last of several values counts, and
    /// lines about anything else are skipped.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut ignored = Vec::new();
        let mut cidr_of = |key: &str| {
            let value = value_of(text, key)?;
            cidr(value).map_err(|reason| ignored.push(format!("{key}={value:?}: {reason}"))).ok()
        };
        let network = cidr_of("FLANNEL_NETWORK");
        let subnet = cidr_of("FLANNEL_SUBNET");
        Self { network, subnet, ignored }
    }
}

/// What the file says for a key, without quotes: the last of several values.
#[must_use]
pub fn value_of<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    Some(text.lines().filter_map(assignment).rfind(|(name, _)| *name == key)?.1)
}

/// Name and value of a line; `None` for a comment, an empty line or one without `=`.
fn assignment(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    let line = line.strip_prefix("export ").map_or(line, str::trim_start);
    let (name, value) = line.split_once('=')?;
    Some((name.trim_end(), unquoted(value.trim_start())))
}

/// The value without quotes, or without a comment behind a blank.
fn unquoted(value: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some(rest) = value.strip_prefix(quote) {
            return rest.split_once(quote).map_or(rest, |(inside, _)| inside);
        }
    }
    value.split_once(" #").map_or(value, |(before, _)| before).trim_end()
}

/// One IPv4 CIDR, as network address and length. An IPv6 one is none: the Go daemon dies of it.
fn cidr(value: &str) -> Result<Ipv4Network, &'static str> {
    const FORM: &str = "expected an IPv4 subnet such as 10.200.88.1/24";
    if value.contains(',') {
        return Err("expected one subnet, got a list");
    }
    let (address, length) = value.split_once('/').ok_or(FORM)?;
    let address: std::net::Ipv4Addr = address.parse().map_err(|_| FORM)?;
    let length = length.parse().map_err(|_| FORM)?;
    let network = Ipv4Network::new(address, length).map_err(|_| FORM)?;
    Ipv4Network::new(network.network(), length).map_err(|_| FORM)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> Ipv4Network {
        text.parse().unwrap()
    }

    fn env(subnet: &str) -> SubnetEnv {
        let mtu = Mtu::try_from(1450).unwrap();
        SubnetEnv { network: net("10.200.0.0/16"), subnet: net(subnet), mtu, ip_masq: true }
    }

    #[test]
    fn the_text_is_the_go_daemon_s_byte_for_byte() {
        let golden = "FLANNEL_NETWORK=10.200.0.0/16\nFLANNEL_SUBNET=10.200.88.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        assert_eq!(golden.len(), 97);
        assert_eq!(env("10.200.88.0/24").render(), golden);
        let unmasked = SubnetEnv { ip_masq: false, ..env("10.200.88.0/24") };
        assert_eq!(unmasked.render(), golden.replace("true", "false"));
    }

    #[test]
    fn host_bits_do_not_reach_the_file() {
        let odd = SubnetEnv { network: net("10.200.9.9/16"), ..env("10.200.88.7/24") };
        assert_eq!(odd.render(), env("10.200.88.0/24").render());
    }

    #[test]
    fn every_spelling_of_the_subnet_is_read() {
        for line in [
            "FLANNEL_SUBNET=10.200.88.1/24",
            "FLANNEL_SUBNET=\"10.200.88.1/24\"",
            "FLANNEL_SUBNET='10.200.88.1/24' # ours",
            "export FLANNEL_SUBNET=10.200.88.1/24",
            "  export   FLANNEL_SUBNET = 10.200.88.1/24  # ours",
            "FLANNEL_SUBNET=10.200.88.1/24\r",
            "# comment\n\nother line\nFLANNEL_SUBNET=10.9.9.1/24\nFLANNEL_SUBNET=10.200.88.1/24\nX=1",
        ] {
            let previous = Previous::parse(line);
            assert_eq!(previous.subnet, Some(net("10.200.88.0/24")), "{line:?}");
            assert!(previous.ignored.is_empty(), "{line:?}");
        }
    }

    #[test]
    fn what_is_no_subnet_is_absent_with_a_reason() {
        for value in [
            "",
            "x",
            "10.200.88.1",
            "10.200.88.1/33",
            "10.200.88.1/255.255.255.0",
            "fd00::1/64",
            "1.2.3.4/24,5.6.7.8/24",
        ] {
            let previous = Previous::parse(&format!("FLANNEL_SUBNET={value}\n"));
            assert_eq!(previous.subnet, None, "{value}");
            assert_eq!(previous.ignored.len(), 1, "{value}");
        }
        assert_eq!(
            Previous::parse("FLANNEL_SUBNET=fd00::1/64").ignored,
            ["FLANNEL_SUBNET=\"fd00::1/64\": expected an IPv4 subnet such as 10.200.88.1/24"]
        );
    }

    #[test]
    fn what_is_not_there_is_absent_without_a_reason() {
        for text in ["", "# FLANNEL_SUBNET=10.200.88.1/24", "FLANNEL_SUBNETS=1", "FLANNEL_SUBNET"] {
            assert_eq!(Previous::parse(text), Previous::default(), "{text:?}");
        }
    }

    #[test]
    fn the_own_text_is_read_back() {
        let previous = Previous::parse(&env("10.200.88.0/24").render());
        let network = Some(net("10.200.0.0/16"));
        assert_eq!(previous, Previous { network, subnet: Some(net("10.200.88.0/24")), ignored: vec![] });
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "(?s).*") {
            let _ = Previous::parse(&text);
        }

        #[test]
        fn every_subnet_round_trips(address: u32, length in 0u8..=30, mtu in 68u64..=65535, ip_masq: bool) {
            let subnet = Ipv4Network::new(address.into(), length).unwrap();
            let env = SubnetEnv { network: subnet, subnet, mtu: Mtu::try_from(mtu).unwrap(), ip_masq };
            let expected = Ipv4Network::new(subnet.network(), length).unwrap();
            prop_assert_eq!(Previous::parse(&env.render()).subnet, Some(expected));
        }
    }
}
