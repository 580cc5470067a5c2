//! Run Jupyter kernels anywhere; attach, detach, re-attach, lose nothing.

pub use jupyter_protocol as protocol;
pub use kernel_provider as provider;
#[cfg(feature = "local")]
pub use provider_local as local;
