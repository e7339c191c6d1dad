//! The least that a flanneld can be: it asks etcd what the daemon asks, through the same libraries, and pushes messages into the
//! kernel that somebody else has prepared. It decides nothing: no choice of a subnet, no comparison, no rules, no log. What it takes is
//! the floor of whoever starts a process, asks etcd through etcd-client and changes the kernel, on this machine at this moment.
//!
//! ```text
//! no device: config ∥ list ─► grant ─► key ─► device (prepared) ─► subnet.env ─► READY
//! device:    config ∥ list ∥ dump of routes, neighbours, FDB ─► renew ∥ lease alive? ─► READY
//! then:      watch ─► for each event the next prepared batch
//! ```
//!
//! It asks for the same time slices as the daemon, with the daemon's own code: whoever is served first is no matter of libraries.
//!
//! `$BARE_MESSAGES` names a file of batches, each after its length (4 bytes, host order): first the device, then one for each event.

#[path = "../../../src/scheduling.rs"]
pub mod scheduling;

use std::collections::VecDeque;
use std::io::Error;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::thread;

use anyhow::{Context, Result, ensure};
use etcd_client::{Channel, Client, Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp, WatchOptions};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};
use tonic::transport::Endpoint;

const DEVICE: &str = "flannel.1";
/// As the daemon asks for it: seconds.
const TTL: i64 = 86_400;
/// As the daemon has it: bytes that etcd may send before they are read, and the largest answer.
const WINDOW: u32 = 8 << 20;
const LARGEST: usize = 64 << 20;
/// What it leases without asking whether it is free. The prepared device has its address.
const SUBNET: &str = "100.64.1.0-24";
const VALUE: &str = r#"{"PublicIP":"10.8.0.111","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}"#;
const SUBNET_ENV: &str =
    "FLANNEL_NETWORK=100.64.0.0/10\nFLANNEL_SUBNET=100.64.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
// linux/rtnetlink.h: RTM_GETROUTE and RTM_GETNEIGH, of AF_INET and AF_BRIDGE
const DUMPS: [(u16, u8); 3] = [(26, 2), (30, 2), (30, 7)];

fn main() -> Result<()> {
    // Where that is refused to the daemon, too, nothing is wrong with the floor.
    let _ = scheduling::ask_for_short_slices();
    // As a task, like the daemon: `block_on` costs a system call more for each event.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async { tokio::spawn(run()).await? })
}

async fn run() -> Result<()> {
    let flag = |name: &str| {
        let start = format!("-{name}=");
        let value = std::env::args().find_map(|word| word.strip_prefix(&start).map(str::to_owned));
        value.with_context(|| format!("no {start}"))
    };
    let (prefix, subnet_file) = (flag("etcd-prefix")?, flag("subnet-file")?);
    let (device, mut changes) = prepared()?;
    let endpoint = Endpoint::from_shared(flag("etcd-endpoints")?)?
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    let client = Client::from_channel(Channel::Tonic(endpoint.connect_lazy()), None).await?;
    let folder = format!("{prefix}/subnets/");
    let mut kv = client.kv_client().max_decoding_message_size(LARGEST);
    let mut lister = kv.clone();
    let listing = lister.get(folder.clone(), Some(GetOptions::new().with_prefix()));
    // Asked first, since etcd takes longest.
    let dump = async { if_nametoindex(DEVICE).is_ok().then(|| thread::spawn(dump)) };
    let (config, listing, dump) = tokio::join!(kv.get(format!("{prefix}/config"), None), listing, dump);
    let (_, listing) = (config?, listing?);
    let mut leases = client.lease_client();
    let netlink = open()?;
    match dump {
        Some(dump) => {
            let lease = listing.kvs().iter().map(etcd_client::KeyValue::lease).find(|id| *id != 0);
            let (lease, mut renewing) = (lease.context("no lease")?, client.lease_client());
            tokio::try_join!(renewing.keep_alive(lease), leases.time_to_live(lease, None))?;
            dump.join().ok().context("the dump panicked")??;
        }
        None => {
            let lease = leases.grant(TTL, None).await?.id();
            let key = format!("{folder}{SUBNET}");
            let put = TxnOp::put(key.clone(), VALUE, Some(PutOptions::new().with_lease(lease)));
            let absent = Compare::version(key, CompareOp::Equal, 0);
            kv.txn(Txn::new().when([absent]).and_then([put])).await?;
            push(&netlink, &device)?;
            std::fs::write(subnet_file, SUBNET_ENV).context("write subnet.env")?;
        }
    }
    if let Some(path) = std::env::var_os("NOTIFY_SOCKET") {
        UnixDatagram::unbound()?.send_to(b"READY=1", path).context("tell systemd")?;
    }
    let next = listing.header().context("no header")?.revision() + 1;
    let options = WatchOptions::new().with_prefix().with_start_revision(next);
    let mut watch = client.watch_client().watch(folder.clone(), Some(options)).await?;
    while let Some(message) = watch.message().await? {
        for batch in changes.drain(..message.events().len().min(changes.len())) {
            push(&netlink, &batch)?;
        }
    }
    Ok(())
}

/// The device's messages, and those of each event.
fn prepared() -> Result<(Vec<u8>, VecDeque<Vec<u8>>)> {
    let path = std::env::var_os("BARE_MESSAGES").context("no BARE_MESSAGES")?;
    let (bytes, mut batches) = (std::fs::read(path).context("read BARE_MESSAGES")?, VecDeque::new());
    let mut rest = bytes.as_slice();
    while let Some((length, after)) = rest.split_first_chunk() {
        let length = usize::try_from(u32::from_ne_bytes(*length))?;
        let (batch, after) = after.split_at_checked(length).context("BARE_MESSAGES ends within a batch")?;
        batches.push_back(batch.to_vec());
        rest = after;
    }
    Ok((batches.pop_front().unwrap_or_default(), batches))
}

fn open() -> Result<OwnedFd> {
    let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
    let fd =
        socket(AddressFamily::Netlink, kind, flags, SockProtocol::NetlinkRoute).context("open netlink")?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).context("bind netlink")?;
    Ok(fd)
}

/// Sends messages of which only the last is acknowledged, and looks whether it was carried out.
fn push(fd: &OwnedFd, batch: &[u8]) -> Result<()> {
    send(fd.as_raw_fd(), batch, MsgFlags::empty()).context("send to the kernel")?;
    let mut answer = [0_u8; 4096];
    let length = recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty()).context("no acknowledgement")?;
    // nlmsghdr, then the errno of nlmsgerr
    let errno = answer.get(16..20).filter(|_| length >= 20).and_then(|bytes| bytes.try_into().ok());
    let errno = i32::from_ne_bytes(errno.context("a short acknowledgement")?);
    ensure!(errno == 0, "the kernel refuses a prepared message: {}", Error::from_raw_os_error(-errno));
    Ok(())
}

/// Has the kernel dump what a restart has to know, and drops it.
fn dump() -> Result<()> {
    let (fd, mut answer) = (open()?, vec![0_u8; 64 << 10]);
    for (kind, family) in DUMPS {
        // nlmsghdr with NLM_F_REQUEST | NLM_F_DUMP, and the 12 bytes of rtmsg or ndmsg
        let mut request = [0_u8; 28];
        let fields = [(0, 28_u16.to_ne_bytes()), (4, kind.to_ne_bytes()), (6, 0x301_u16.to_ne_bytes())];
        for (at, bytes) in fields {
            request.iter_mut().skip(at).zip(bytes).for_each(|(byte, value)| *byte = value);
        }
        request.iter_mut().skip(16).take(1).for_each(|byte| *byte = family);
        send(fd.as_raw_fd(), &request, MsgFlags::empty()).context("ask for a dump")?;
        // NLMSG_DONE stands alone or last: the length of what comes before it is a multiple of 4, its own is 20.
        loop {
            let length = recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty()).context("no end of a dump")?;
            let last = answer
                .get(..length)
                .and_then(|part| part.len().checked_sub(20).and_then(|at| part.get(at..)));
            if last.is_some_and(|end| end.starts_with(&[20, 0, 0, 0, 3, 0])) {
                break;
            }
        }
    }
    Ok(())
}
