//! Run Jupyter kernels anywhere; attach, detach, re-attach, lose nothing.

pub use jupyter_protocol as protocol;
pub use kernel_provider as provider;
#[cfg(feature = "k8s")]
pub use provider_k8s as k8s;
#[cfg(feature = "local")]
pub use provider_local as local;
