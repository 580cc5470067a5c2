//! Run Jupyter kernels anywhere; attach, detach, re-attach, lose nothing.

#[cfg(feature = "resume-client")]
pub use gateway_client::resume;
pub use jupyter_protocol as protocol;
pub use jupyter_protocol::KernelId;
pub use kernel_log as log;
pub use kernel_manager::*;
pub use kernel_provider::*;
#[cfg(feature = "k8s")]
pub use provider_k8s as k8s;
#[cfg(feature = "local")]
pub use provider_local as local;
