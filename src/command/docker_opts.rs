//! `flanneld docker-opts`: turns `subnet.env` into options for Docker's daemon, with the options and the output of the Go project's
//! script mk-docker-opts. Touches only the file it writes.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ipnetwork::Ipv4Network;

use super::Command;
use crate::subnet_env::{Previous, file, value_of};

/// The row of the table of commands.
pub(super) const COMMAND: Command = Command {
    name: "docker-opts",
    summary: "write options for Docker's daemon from subnet.env, as mk-docker-opts.sh does",
    run,
};

const USAGE: &str = "\
Usage: flanneld docker-opts [-f FILE] [-d FILE] [-i] [-c] [-m] [-k NAME]

Writes options for Docker's daemon from what flanneld wrote to subnet.env.
  -f FILE   what flanneld wrote (default /run/flannel/subnet.env)
  -d FILE   where to write, replacing what is there (default /run/docker_opts.env)
  -i        one variable per option: DOCKER_OPT_BIP, DOCKER_OPT_IPMASQ, DOCKER_OPT_MTU
  -c        all options in one variable; without -i and -c both are written
  -k NAME   name of that one variable (default DOCKER_OPTS); its value in the environment is kept in front
  -m        leave out --ip-masq
";

/// Where the kernel shows the routes of the main table.
const ROUTES: &str = "/proc/net/route";

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Choice {
    subnet_file: PathBuf,
    docker_file: PathBuf,
    individual: bool,
    combined: bool,
    name: String,
    ip_masq: bool,
}

/// Why nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Problem {
    #[error("FLANNEL_IPMASQ={0} is neither true nor false")]
    IpMasq(String),
    #[error(
        "the routing table already leads to {subnet} via {gateway}: another node has this subnet, or a route is left over \
         (ip route show {subnet})"
    )]
    Routed { subnet: Ipv4Network, gateway: Ipv4Addr },
}

fn run(words: Vec<OsString>) -> ExitCode {
    let Some(choice) = read(words) else {
        eprint!("{USAGE}");
        return ExitCode::FAILURE;
    };
    match write(&choice) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flanneld docker-opts: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(choice: &Choice) -> Result<(), Box<dyn std::error::Error>> {
    let text = read_subnet_file(&choice.subnet_file)?;
    let routes = std::fs::read_to_string(ROUTES).unwrap_or_default();
    let existing = std::env::var(&choice.name).unwrap_or_default();
    let options = render(choice, &text, &existing)?;
    if let Some(subnet) = Previous::parse(&text).subnet {
        refuse_routed(subnet, &routes)?;
    }
    file::write_if_changed(&choice.docker_file, &options)?;
    Ok(())
}

/// A missing file makes empty options, as it always did; but it is mentioned.
fn read_subnet_file(path: &Path) -> Result<String, String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("flanneld docker-opts: there is no {}; Docker gets no options", path.display());
            Ok(String::new())
        }
        Err(error) => Err(format!("cannot read {}: {error}", path.display())),
    }
}

/// Reads options in the manner of getopts(1): `-ic`, `-fFILE` and `-f FILE`. What follows the options is ignored. `None`: show
/// the usage.
fn read(words: Vec<OsString>) -> Option<Choice> {
    let mut choice = Choice {
        subnet_file: "/run/flannel/subnet.env".into(),
        docker_file: "/run/docker_opts.env".into(),
        individual: false,
        combined: false,
        name: "DOCKER_OPTS".to_owned(),
        ip_masq: true,
    };
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let word = word.into_string().ok()?;
        let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty() && *letters != "-")
        else {
            break;
        };
        let mut letters = letters.chars();
        while let Some(letter) = letters.next() {
            match letter {
                'i' => choice.individual = true,
                'c' => choice.combined = true,
                'm' => choice.ip_masq = false,
                'f' | 'd' | 'k' => {
                    let rest: String = letters.by_ref().collect();
                    let value = if rest.is_empty() { words.next()?.into_string().ok()? } else { rest };
                    match letter {
                        'f' => choice.subnet_file = value.into(),
                        'd' => choice.docker_file = value.into(),
                        _ => choice.name = value,
                    }
                }
                _ => return None,
            }
        }
    }
    if !choice.individual && !choice.combined {
        (choice.individual, choice.combined) = (true, true);
    }
    Some(choice)
}

/// The file for Docker's unit. `existing` is what the combined variable holds already.
fn render(choice: &Choice, subnet_env: &str, existing: &str) -> Result<String, Problem> {
    let value = |key| value_of(subnet_env, key).filter(|value| !value.is_empty());
    let mut options = Vec::new();
    if let Some(subnet) = value("FLANNEL_SUBNET") {
        options.push(("BIP", format!("--bip={subnet}")));
    }
    // When flanneld masquerades, Docker need not, and the other way round.
    match value("FLANNEL_IPMASQ").filter(|_| choice.ip_masq) {
        Some("true") => options.push(("IPMASQ", "--ip-masq=false".to_owned())),
        Some("false") => options.push(("IPMASQ", "--ip-masq=true".to_owned())),
        Some(other) => return Err(Problem::IpMasq(other.to_owned())),
        None => {}
    }
    if let Some(mtu) = value("FLANNEL_MTU") {
        options.push(("MTU", format!("--mtu={mtu}")));
    }
    let mut text = String::new();
    if choice.individual {
        text.extend(options.iter().map(|(name, option)| format!("DOCKER_OPT_{name}=\"{option}\"\n")));
    }
    if choice.combined {
        let all: String = options.iter().map(|(_, option)| format!(" {option}")).collect();
        text.push_str(&format!("{}=\"{existing}{all}\"\n", choice.name));
    }
    Ok(text)
}

/// Docker would make a bridge for a subnet that packets leave the host for. `routes` is the text of `/proc/net/route`: name, then
/// destination, gateway, flags, three counters and mask in hexadecimal digits, addresses in memory order.
fn refuse_routed(subnet: Ipv4Network, routes: &str) -> Result<(), Problem> {
    let address =
        |text: &str| u32::from_str_radix(text, 16).ok().map(|number| Ipv4Addr::from(number.to_ne_bytes()));
    for line in routes.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, dst, gateway, _, _, _, _, mask, ..] = fields.as_slice() else { continue };
        let (Some(dst), Some(gateway), Some(mask)) = (address(dst), address(gateway), address(mask)) else {
            continue;
        };
        if (dst, mask) == (subnet.network(), subnet.mask()) && !gateway.is_unspecified() {
            return Err(Problem::Routed { subnet, gateway });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENV: &str = "FLANNEL_NETWORK=10.200.0.0/16\nFLANNEL_SUBNET=10.200.88.1/24\nFLANNEL_MTU=1370\nFLANNEL_IPMASQ=true\n";

    fn choice(line: &str) -> Option<Choice> {
        read(line.split_whitespace().map(OsString::from).collect())
    }

    fn written(line: &str, env: &str, existing: &str) -> String {
        render(&choice(line).unwrap(), env, existing).unwrap()
    }

    #[test]
    fn the_files_are_those_of_the_script() {
        let individual = "DOCKER_OPT_BIP=\"--bip=10.200.88.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=false\"\nDOCKER_OPT_MTU=\"--mtu=1370\"\n";
        let combined = "DOCKER_OPTS=\" --bip=10.200.88.1/24 --ip-masq=false --mtu=1370\"\n";
        assert_eq!(written("", ENV, ""), format!("{individual}{combined}"));
        assert_eq!(written("-ic", ENV, ""), format!("{individual}{combined}"));
        assert_eq!(written("-i", ENV, ""), individual);
        assert_eq!(written("-c", ENV, ""), combined);
        assert_eq!(
            written("-c -k DOCKER_NETWORK_OPTIONS -m", ENV, "--debug"),
            "DOCKER_NETWORK_OPTIONS=\"--debug --bip=10.200.88.1/24 --mtu=1370\"\n"
        );
    }

    #[test]
    fn docker_masquerades_when_flanneld_does_not() {
        let off = ENV.replace("IPMASQ=true", "IPMASQ=false");
        assert_eq!(
            written("-c", &off, ""),
            "DOCKER_OPTS=\" --bip=10.200.88.1/24 --ip-masq=true --mtu=1370\"\n"
        );
        let odd = ENV.replace("IPMASQ=true", "IPMASQ=yes");
        assert_eq!(
            render(&choice("-c").unwrap(), &odd, "").unwrap_err().to_string(),
            "FLANNEL_IPMASQ=yes is neither true nor false"
        );
        assert_eq!(written("-c -m", &odd, ""), "DOCKER_OPTS=\" --bip=10.200.88.1/24 --mtu=1370\"\n");
    }

    #[test]
    fn what_the_file_does_not_say_is_left_out() {
        assert_eq!(written("", "", ""), "DOCKER_OPTS=\"\"\n");
        assert_eq!(
            written("", "FLANNEL_SUBNET=\nFLANNEL_MTU='1450'\n", "x"),
            "DOCKER_OPT_MTU=\"--mtu=1450\"\nDOCKER_OPTS=\"x --mtu=1450\"\n"
        );
    }

    #[test]
    fn options_are_read_as_getopts_reads_them() {
        let all = choice("-f/a -d /b -imk NAME stray -c").unwrap();
        assert_eq!((all.subnet_file, all.docker_file), ("/a".into(), "/b".into()));
        assert_eq!(
            (all.name.as_str(), all.individual, all.combined, all.ip_masq),
            ("NAME", true, false, false)
        );
        let default = choice("--").unwrap();
        assert_eq!(default.subnet_file, Path::new("/run/flannel/subnet.env"));
        assert_eq!(default.docker_file, Path::new("/run/docker_opts.env"));
        for usage in ["-h", "-?", "-x", "-f", "-ik", "--help"] {
            assert_eq!(choice(usage), None, "{usage}");
        }
    }

    #[test]
    fn a_subnet_that_is_reached_through_a_gateway_is_refused() {
        let header = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let route = |dst, gateway, length| {
            let hex = |text: &str| {
                format!("{:08X}", u32::from_ne_bytes(text.parse::<Ipv4Addr>().unwrap().octets()))
            };
            format!("eth0\t{}\t{}\t0003\t0\t0\t0\t{}\t0\t0\t0\n", hex(dst), hex(gateway), hex(length))
        };
        let ours: Ipv4Network = "10.200.88.0/24".parse().unwrap();
        let harmless = [
            route("0.0.0.0", "10.8.0.1", "0.0.0.0"),
            route("10.200.88.0", "0.0.0.0", "255.255.255.0"),
            route("10.200.88.0", "10.8.0.112", "255.255.255.128"),
            route("10.200.89.0", "10.8.0.112", "255.255.255.0"),
            "nonsense\n".to_owned(),
        ];
        let harmless = format!("{header}{}", harmless.concat());
        assert_eq!(refuse_routed(ours, &harmless), Ok(()));
        let routed = harmless + &route("10.200.88.0", "10.8.0.112", "255.255.255.0");
        assert_eq!(
            refuse_routed(ours, &routed).unwrap_err().to_string(),
            "the routing table already leads to 10.200.88.0/24 via 10.8.0.112: another node has this subnet, or a route is \
             left over (ip route show 10.200.88.0/24)"
        );
    }
}
