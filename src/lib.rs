//! placeholder
pub mod clock;
pub mod daemon;
pub mod kernel;
pub mod model;
pub mod notify;
pub mod options;
pub mod store;
pub mod subnet_env;
