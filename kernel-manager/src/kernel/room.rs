//! The memory for messages that wait for a kernel.

use std::fmt;
use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::Kernel;

/// The most bytes of messages that may wait for a kernel that does not read them.
pub(super) const ROOM: usize = 256 << 20;

/// A reservation from [`Kernel::room`] for one message; released when dropped.
pub struct Room {
    permit: Option<OwnedSemaphorePermit>,
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room").finish_non_exhaustive()
    }
}

impl Room {
    /// Adds the reservation `other`, for another piece of the same message.
    ///
    /// # Panics
    /// If `other` is a reservation of another kernel.
    pub fn merge(&mut self, mut other: Self) {
        match (&mut self.permit, other.permit.take()) {
            (Some(permit), Some(other)) => permit.merge(other),
            (permit, other) => *permit = permit.take().or(other),
        }
    }
}

impl Kernel {
    /// Reserves room for a message of this many bytes among those that wait for the kernel: 256 MiB in total, so that a
    /// kernel that reads nothing cannot fill the memory. Keep the reservation until the message is sent.
    pub async fn room(&self, bytes: usize) -> Room {
        let bytes = u32::try_from(bytes.min(ROOM)).unwrap_or(u32::MAX);
        Room {
            // The semaphore is never closed.
            permit: Arc::clone(&self.room).acquire_many_owned(bytes).await.ok(),
        }
    }
}
