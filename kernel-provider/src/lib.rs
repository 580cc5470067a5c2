//! Jupyter kernels behind one trait, a manager for them, and an ordered log of every message.

#[cfg(feature = "testing")]
pub mod conformance;
#[cfg(feature = "testing")]
pub mod fake;
pub mod fold;
mod kernel_id;
pub mod log;
pub mod manager;
pub mod provider;
pub mod resume;
pub mod session;
#[cfg(feature = "testing")]
pub mod simulation;

pub use kernel_id::{KernelId, NoKernelId};
