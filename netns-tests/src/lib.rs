//! The lab: machines made of namespaces, a real etcd, real `flanneld` processes, real CNI plugins, real packets.
//!
//! As a library it serves the tests in `tests/`; as the command `cargo lab` it is the front door of the repository.
//!
//! ```text
//! Lab ── Switch (bridge in a namespace of its own) ── veth ── Node ── Flanneld, Pod (flannel → bridge → portmap)
//!   └─── Etcd (members in nodes of their own)                  └──── wireguard-go (Mesh), if that is the underlay
//! ```
//!
//! Nothing here touches the host: every interface, mount and file below `/run`, `/etc` and `/var/lib` belongs to a
//! namespace that ends with the process that started it.

pub mod bench;
pub mod binaries;
pub mod certificates;
pub mod cgroups;
pub mod cni;
pub mod command;
pub mod containerd;
pub mod containers;
pub mod etcd;
pub mod etcd_faults;
pub mod etcd_v2;
pub mod eventually;
pub mod fault;
pub mod flanneld;
pub mod flows;
pub mod folder;
pub mod holder;
pub mod http;
pub mod lab;
pub mod lease;
pub mod monitor;
pub mod namespaces;
pub mod nft_monitor;
pub mod node;
pub mod notify;
pub mod observe;
pub mod ping;
pub mod pod;
pub mod podman;
pub mod process;
pub mod random;
pub mod recorded;
pub mod scenario;
#[path = "../../src/scheduling.rs"]
pub mod scheduling;
pub mod systemd;
pub mod tcp;
pub mod underlay;
pub mod wireguard;

pub use etcd::Api;
pub use eventually::{eventually, throughout};
pub use flanneld::{Flanneld, Options};
pub use lab::{Lab, Spec};
pub use node::Node;
pub use pod::Pod;
pub use underlay::Underlay;
