//! Jupyter kernels as processes of this machine.
//!
//! [`LocalProvider`] is a [`KernelProvider`](kernel_provider::provider::KernelProvider): it finds the kernelspecs that
//! are installed, starts their kernels, tells how they fare, and ends them. Each kernel leads a session of its own and
//! outlives the program that started it.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use kernel_provider::KernelId;
//! use kernel_provider::provider::{KernelProvider as _, LaunchRequest, Progress};
//! use provider_local::{LocalConfig, LocalProvider};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let provider = LocalProvider::open(LocalConfig::new("/var/lib/example/kernels")).await?;
//! let request = LaunchRequest::new(KernelId::random(), "python3");
//! let kernel = provider.launch(request, Progress::ignored()).await?;
//! println!("its sockets are at {:?}", kernel.connection().await?.ip);
//! let exit = kernel.shutdown(Duration::from_secs(5)).await?;
//! println!("{}", exit.cause);
//! # Ok(())
//! # }
//! ```
//!
//! # What belongs to a kernel
//!
//! A kernel is its process and the session that it leads. When it ends, for whatever reason, everything left of that
//! session is killed. Only what made a session of its own, as daemons do, stays.
//!
//! Its standard output and error go to a file in its state directory; the file's beginning is given up once it is
//! longer than 2 MiB, as long as an embedder is there to do that.
//!
//! A kernel that ends after this program has dropped the provider and all handles stays in the system's table of
//! processes until this program ends, as there is nobody to reap it.
//!
//! Linux only: it stands on pidfds, inotify and `/proc`.

mod config;
mod endpoints;
mod environment;
mod events;
mod kernel;
mod launch;
mod output;
mod ports;
mod process;
mod provider;
mod ready;
mod registry;
mod salvage;
mod specs;
mod state;

use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::{AbortHandle, JoinHandle};

pub use config::{InheritEnv, LocalConfig, TransportChoice};
pub use provider::LocalProvider;

/// Nothing here panics while it holds a lock, so what a lock guards is whole even if it says otherwise.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a descriptor to be readable.
///
/// tokio has deprecated the safe ways to make one of these, since a type of one's own can close its descriptor too
/// early; an `OwnedFd` cannot.
#[allow(deprecated)]
fn readable(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

/// The owner of a task: ends it when dropped.
struct AbortOnDrop(Option<AbortHandle>);

impl AbortOnDrop {
    fn new<T>(task: &JoinHandle<T>) -> Self {
        Self(Some(task.abort_handle()))
    }

    /// Lets the task end by itself.
    fn release(mut self) {
        self.0 = None;
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}
