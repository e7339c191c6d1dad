//! placeholder
pub mod clock;
pub mod daemon;
pub mod kernel;
pub mod metrics;
pub mod model;
pub mod notify;
pub mod options;
pub mod status;
pub mod store;
pub mod subnet_env;
