//! placeholder
pub mod kernel;
pub mod model;
pub mod store;
