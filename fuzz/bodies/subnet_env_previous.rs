//! `subnet.env` as the daemon reads what its former self, a Go daemon or an operator left. Whatever the bytes are: a subnet that
//! can be asked for again, or words for why not.

use crate::model::Mtu;
use crate::subnet_env::{Previous, SubnetEnv, value_of};

/// The target.
pub fn check(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let previous = Previous::parse(&text);
    assert!(previous.ignored.len() <= 2);
    assert!(previous.ignored.iter().all(|words| words.len() <= 10 * text.len() + 200));
    for network in previous.network.iter().chain(&previous.subnet) {
        assert_eq!(network.ip(), network.network());
    }
    written_again(&previous);
    around(&text, &previous);
    assert!(
        ["FLANNEL_MTU", "FLANNEL_IPMASQ"]
            .iter()
            .all(|key| value_of(&text, key).is_none_or(|value| text.contains(value)))
    );
}

fn written_again(previous: &Previous) {
    let (Some(network), Some(subnet)) = (previous.network, previous.subnet) else { return };
    // A /32 has no second address, which the file names.
    if subnet.prefix() == 32 {
        return;
    }
    let env = SubnetEnv { network, subnet, mtu: Mtu::try_from(1450).unwrap(), ip_masq: true };
    let expected = Previous { network: Some(network), subnet: Some(subnet), ignored: Vec::new() };
    assert_eq!(Previous::parse(&env.render()), expected);
}

/// Other lines and line ends change nothing, and the last of several values counts.
fn around(text: &str, previous: &Previous) {
    assert_eq!(Previous::parse(&format!("{text}\n# a comment\nFOREIGN=1\n")), *previous);
    assert_eq!(Previous::parse(&text.replace('\n', "\r\n")), *previous);
    let later = Previous::parse(&format!("{text}\nFLANNEL_SUBNET=10.9.8.1/24\n"));
    assert_eq!((later.network, later.subnet), (previous.network, "10.9.8.0/24".parse().ok()));
}
