//! placeholder
pub mod firewall;
pub mod kernel;
pub mod model;
pub mod store;
