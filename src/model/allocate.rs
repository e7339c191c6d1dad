//! Which subnets are free. Near-linear in the number of leases: one sort, one sweep.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::NetworkConfig;

/// How many candidates a node chooses from, so that nodes that start together rarely want the same one.
const CANDIDATES: usize = 100;

/// The first free subnets from `SubnetMin` upward, at most 100. Free means: overlaps no lease of any size.
#[must_use]
pub fn free_subnets(config: &NetworkConfig, leased: &[Ipv4Network]) -> Vec<Ipv4Network> {
    let mut taken: Vec<(u32, u32)> = leased.iter().map(range).collect();
    taken.sort_unstable();
    let size = 1_u64 << (32 - config.subnet_len);
    let last = u64::from(u32::from(config.subnet_max));
    let mut candidate = u64::from(u32::from(config.subnet_min));
    let mut next_taken = taken.iter().peekable();
    let mut free = Vec::new();
    while candidate <= last && free.len() < CANDIDATES {
        match next_taken.peek() {
            Some(&&(_, end)) if u64::from(end) < candidate => {
                next_taken.next();
            }
            Some(&&(start, end)) if u64::from(start) < candidate + size => {
                candidate = (u64::from(end) / size + 1) * size;
            }
            _ => {
                let address = u32::try_from(candidate).map_or(Ipv4Addr::BROADCAST, Ipv4Addr::from);
                free.extend(Ipv4Network::new(address, config.subnet_len));
                candidate += size;
            }
        }
    }
    free
}

fn range(subnet: &Ipv4Network) -> (u32, u32) {
    (subnet.network().into(), subnet.broadcast().into())
}

/// Whether two subnets share an address.
#[must_use]
pub fn overlap(a: Ipv4Network, b: Ipv4Network) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(network: &str, subnet_len: u8) -> NetworkConfig {
        let text =
            format!(r#"{{"Network":"{network}","SubnetLen":{subnet_len},"Backend":{{"Type":"vxlan"}}}}"#);
        NetworkConfig::from_json(text.as_bytes()).unwrap()
    }

    fn names(free: &[Ipv4Network]) -> Vec<String> {
        free.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn starts_at_the_second_subnet_and_gives_at_most_a_hundred() {
        let free = free_subnets(&config("10.200.0.0/16", 24), &[]);
        assert_eq!((free.len(), free[0].to_string().as_str()), (100, "10.200.1.0/24"));
        assert_eq!(free[99].to_string(), "10.200.100.0/24");
    }

    #[test]
    fn leases_of_any_size_are_avoided() {
        let leased = ["10.0.0.64/28", "10.0.0.96/29", "10.0.0.168/32"].map(|text| text.parse().unwrap());
        let free = free_subnets(&config("10.0.0.0/24", 27), &leased);
        assert_eq!(names(&free), ["10.0.0.32/27", "10.0.0.128/27", "10.0.0.192/27", "10.0.0.224/27"]);
    }

    #[test]
    fn a_lease_larger_than_the_network_leaves_nothing() {
        assert_eq!(free_subnets(&config("10.0.0.0/24", 27), &["10.0.0.0/8".parse().unwrap()]), []);
        assert_eq!(free_subnets(&config("255.255.255.0/24", 26), &["0.0.0.0/0".parse().unwrap()]), []);
    }

    proptest! {
        #[test]
        fn equals_the_obvious_search(leased in prop::collection::vec((0_u32..256, 22_u8..=32), 0..40)) {
            let config = config("10.0.0.0/22", 26);
            let leased: Vec<Ipv4Network> = leased.iter()
                .map(|(step, length)| Ipv4Network::new((0x0a00_0000 + step * 4).into(), *length).unwrap())
                .map(|subnet| Ipv4Network::new(subnet.network(), subnet.prefix()).unwrap())
                .collect();
            let obvious: Vec<Ipv4Network> = (1..16_u32)
                .map(|step| Ipv4Network::new((0x0a00_0000 + step * 64).into(), 26).unwrap())
                .filter(|subnet| !leased.iter().any(|lease| overlap(*subnet, *lease)))
                .collect();
            prop_assert_eq!(free_subnets(&config, &leased), obvious);
        }
    }
}
