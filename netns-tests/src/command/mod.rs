//! The verbs of `cargo lab`, one file each.

pub mod bench;
pub mod demo;
pub mod faults;
pub mod install;
pub mod kept;
pub mod packages;
pub mod soak;
pub mod suite;
pub mod table;
