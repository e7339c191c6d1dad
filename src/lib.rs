//! placeholder
pub mod kernel;
pub mod model;
pub mod options;
pub mod store;
pub mod subnet_env;
