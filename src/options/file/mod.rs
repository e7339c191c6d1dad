//! The configuration file: YAML with names of options as keys, with the variables of the Ansible role githubixx.flanneld, or
//! both. No I/O: text and facts are passed in, and facts are asked for only when a template needs them.
//!
//! ```text
//! text ─► yaml (tree with lines) ─► layer (keys, types) ─► template (references) ─► Raw, below command line and environment
//!                                                              └─► written: what the role installs
//! ```

mod error;
pub mod facts;
mod layer;
pub mod role;
mod template;
mod written;
mod yaml;

pub use error::FileError;
pub(super) use layer::Layer;
pub use template::Gather;
pub use yaml::MAX_SIZE;

/// Reads the text of a configuration file.
///
/// # Errors
/// On the first thing that is wrong, with its line.
pub(super) fn read(text: &str, gather: Gather) -> Result<Layer, FileError> {
    Layer::new(yaml::mapping(text)?, gather)
}

#[cfg(test)]
mod tests;
