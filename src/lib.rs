//! A node agent: it takes a lease on a subnet from a shared store, announces how to reach it, and makes the kernel forward
//! to every other node's subnet through one VXLAN device. The kernel moves every packet; this decides what the kernel holds.
//!
//! ```text
//! argv, environment,
//! configuration file ─► options ─► daemon::bootstrap: config, interface, device seen once ─► lease
//!                                                                                            │
//! store.watch ─► LeaseSet ─► desired entries ─► diff against the mirror ─► Plan ─► kernel.apply
//!                                                   ▲                                  │ one result per operation
//!                       kernel notifications ───────┘                                  ▼
//!                                                              status ─► health, metrics, systemd, log
//! ```
//!
//! | module | may use | may not |
//! |---|---|---|
//! | [`model`] | values | I/O, clock, randomness, async, logging, any other module |
//! | [`options`], [`status`], [`metrics`] | model | I/O |
//! | [`store`] | model, etcd | kernel, daemon |
//! | [`kernel`] | model, netlink | store, daemon |
//! | [`firewall`] | model | store, kernel, daemon |
//! | [`subnet_env`], [`notify`], [`logging`], [`clock`] | model | each other's business |
//! | [`health`], [`status_socket`] | status, metrics | anything that changes state |
//! | [`facts`] | options | anything but reading the host |
//! | [`scheduling`] | nothing | anything but asking for time slices |
//! | [`reload`] | options, logging | the daemon's state |
//! | [`command`] | all of the above | the daemon's loop |
//! | [`daemon`] | all of the above through traits and values | netlink or etcd types |

pub mod clock;
pub mod command;
pub mod daemon;
pub mod facts;
pub mod firewall;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod health;
pub mod kernel;
pub mod logging;
pub mod metrics;
pub mod model;
pub mod notify;
pub mod options;
pub mod reload;
pub mod scheduling;
pub mod status;
pub mod status_socket;
pub mod store;
pub mod subnet_env;
