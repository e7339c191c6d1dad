//! placeholder
pub mod kernel;
pub mod model;
pub mod options;
pub mod store;
