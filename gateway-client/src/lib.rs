//! Clients of a kernelmux gateway.
//!
//! [`resume`] contains the resume protocol and its client, which follows a kernel's log across disconnects.

pub mod resume;
