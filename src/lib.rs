//! placeholder
pub mod health;
pub mod kernel;
pub mod logging;
pub mod metrics;
pub mod model;
pub mod notify;
pub mod options;
pub mod status;
pub mod store;
pub mod subnet_env;
