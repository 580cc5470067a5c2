//! What kernelmux promises, measured: one file a benchmark, and what they share.
//!
//! Each benchmark gives a [`report::Section`]: its figures, and beside them the marks that it is to meet.

pub mod by_hand;
pub mod clients;
pub mod cut;
pub mod fold;
pub mod idle;
pub mod k8s;
pub mod log;
pub mod measure;
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

/// What goes wrong in a benchmark is told and ends it.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
