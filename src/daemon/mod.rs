//! placeholder
pub mod acquire;
pub mod data_plane;
