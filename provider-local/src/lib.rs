#![doc = include_str!("../README.md")]
//! [`LocalProvider`] is a [`KernelProvider`](kernel_provider::KernelProvider). It finds the installed kernelspecs, and
//! starts, watches and ends their kernels. Each kernel leads its own session.
//!
//! # Processes and output
//!
//! A kernel is a process and the session that it leads. When a kernel that a provider watches ends, for whatever
//! reason, the provider kills all remaining processes of that session. Processes that have started their own session,
//! as daemons do, are not affected.
//!
//! The kernel's standard output and error go to a file in its state directory. While a provider watches the kernel, the
//! provider discards the beginning of the file once the file exceeds 2 MiB.
//!
//! If a kernel ends after the program that started it has dropped the provider and all handles, nothing reaps the
//! kernel. It remains a zombie process until the program opens the state directory again or ends.
//!
//! This crate supports Linux only: it uses pidfds, inotify and `/proc`.

mod agents;
mod context;
mod endpoints;
mod environment;
mod events;
mod kernel;
mod launch;
mod options;
mod output;
mod output_pipe;
mod ports;
mod process;
mod provider;
mod ready;
mod registry;
mod salvage;
mod state;

use kernel_provider::lock;
use rustix::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub use options::{AdjustCommand, InheritEnv, KernelCommand, LocalOptions, TransportChoice};
pub use provider::LocalProvider;

/// Wraps a descriptor to wait until it is readable.
fn readable(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    with_interest(fd, Interest::READABLE)
}

/// Wraps a descriptor to wait for these events.
///
/// tokio has deprecated this constructor because a custom descriptor type could be closed too early. This cannot happen
/// with an `OwnedFd`.
#[allow(deprecated)]
fn with_interest(fd: OwnedFd, interest: Interest) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}
