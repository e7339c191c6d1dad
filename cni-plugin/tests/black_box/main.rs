//! The real `flannel` against a table-driven fake delegate: every row of the contract that can be
//! seen from outside, without root and without the network.

// Helpers of tests may fail as tests do; clippy only knows functions marked as tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
// A `json!` literal is handed over, not lent.
#![allow(clippy::needless_pass_by_value)]

#[path = "../common/mod.rs"]
mod common;

mod add;
mod check;
mod config;
mod del;
mod delegate;
mod gc;
mod invocation;
mod lifecycle;
mod shell;
mod state;
mod status;
mod subnet_file;
