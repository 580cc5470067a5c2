//! Jupyter kernels behind one trait, a manager over them, and every message of theirs in an ordered log.

#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(feature = "fake")]
pub mod fake;
mod kernel_id;
pub mod log;
pub mod manager;
pub mod provider;
pub mod session;

pub use kernel_id::{KernelId, NoKernelId};
