//! Values and decisions: functions from values to values.
//!
//! Nothing here touches the world: no sockets, files, clock, randomness, async or logging. What must be
//! random or timed is passed in; what must happen is returned as data.

pub mod acquire;
pub mod addr;
pub mod allocate;
pub mod device;
pub mod diff;
pub mod ext_iface;
pub mod fights;
pub mod host;
pub mod json;
pub mod lease;
pub mod lease_set;
pub mod masquerade;
pub mod network_config;
pub mod overlay;
pub mod state;
pub mod two_stores;
pub mod tx_checksum;
pub mod underlay;

pub use addr::{IfName, MacAddr, Mtu, Vni};
pub use lease::{BootId, Lease, LeaseAttrs, NodeId, VxlanData};
pub use network_config::{NetworkConfig, VxlanConfig};
pub use tx_checksum::{KernelVersion, TxChecksum};
