//! Clients of a kernelmux gateway.
//!
//! [`resume`] has the resume protocol and its client, which follows a kernel's log over any disconnect.

pub mod resume;
