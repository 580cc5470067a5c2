//! Benchmarks of kernelmux, one per file, and their shared code.
//!
//! Each benchmark returns a [`report::Section`] with its figures and targets.

// Nothing outside this package uses its types.
#![allow(missing_debug_implementations)]

pub mod agent;
pub mod by_hand;
pub mod clients;
pub mod cut;
pub mod fold;
pub mod idle;
pub mod k8s;
pub mod log;
pub mod measure;
pub mod notebook;
pub mod peers;
pub mod process;
pub mod protocol;
pub mod recorder;
pub mod replay;
pub mod report;
pub mod round_trip;
pub mod setup;
pub mod start;
pub mod wire;

/// The result of a benchmark's steps. An error ends the benchmark.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
