//! placeholder
pub mod clock;
pub mod daemon;
pub mod kernel;
pub mod model;
pub mod options;
pub mod store;
