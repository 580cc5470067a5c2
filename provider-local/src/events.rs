//! File system events (inotify). A provider uses one descriptor and one task for the files of all its kernels.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustix::fd::OwnedFd;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDrop;

/// Watches files and directories.
pub(crate) struct Events {
    inner: Arc<Inner>,
    _task: AbortOnDrop,
}

struct Inner {
    fd: AsyncFd<OwnedFd>,
    watches: Mutex<HashMap<i32, Watched>>,
}

struct Watched {
    wake: Arc<Notify>,
    /// Number of [`Watch`]es that share this entry: the system returns the same watch for the same path.
    count: usize,
}

/// A watch on a path. Dropping it ends the watch.
pub(crate) struct Watch {
    inner: Arc<Inner>,
    wd: i32,
}

impl Events {
    /// Creates an instance without watches. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// [`io::Error`] if this user cannot have more instances (`fs.inotify.max_user_instances`).
    pub(crate) fn new() -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let inner = Arc::new(Inner {
            fd: crate::readable(fd)?,
            watches: Mutex::default(),
        });
        let task = tokio::spawn({
            let inner = Arc::clone(&inner);
            async move { inner.deliver().await }
        });
        Ok(Self {
            inner,
            _task: AbortOnDrop::new(task.abort_handle()),
        })
    }

    /// Notifies `wake` when one of the `events` occurs at `path`. If the path is already watched, `events` and `wake`
    /// replace the earlier ones.
    ///
    /// # Errors
    /// [`io::Error`] if the path does not exist, or this user cannot have more watches.
    pub(crate) fn watch(&self, path: &Path, events: WatchFlags, wake: &Arc<Notify>) -> io::Result<Watch> {
        let mut watches = crate::lock(&self.inner.watches);
        let wd = inotify::add_watch(self.inner.fd.get_ref(), path, events)?;
        watches
            .entry(wd)
            .and_modify(|watched| {
                watched.count += 1;
                watched.wake = Arc::clone(wake);
            })
            .or_insert_with(|| Watched {
                wake: Arc::clone(wake),
                count: 1,
            });
        Ok(Watch {
            inner: Arc::clone(&self.inner),
            wd,
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watches = crate::lock(&self.inner.watches);
        if let Some(watched) = watches.get_mut(&self.wd) {
            watched.count -= 1;
            if watched.count == 0 {
                watches.remove(&self.wd);
                // Fails if the system has ended the watch, after the path was removed or the only requested event.
                let _ = inotify::remove_watch(self.inner.fd.get_ref(), self.wd);
            }
        }
    }
}

impl Inner {
    async fn deliver(&self) {
        // Fails only if the runtime is shutting down.
        while let Ok(mut ready) = self.fd.readable().await {
            if self.deliver_available() {
                ready.clear_ready();
            }
        }
    }

    /// Delivers the events of one read. Returns whether there are no more.
    fn deliver_available(&self) -> bool {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(self.fd.get_ref(), &mut buffer);
        loop {
            match reader.next() {
                Ok(event) => {
                    self.wake(event.wd(), event.events());
                }
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return true,
                Err(error) => {
                    tracing::warn!(%error, "cannot read file system events");
                    return true;
                }
            }
            if reader.is_buffer_empty() {
                return false;
            }
        }
    }

    fn wake(&self, wd: i32, events: ReadFlags) {
        let watches = crate::lock(&self.watches);
        if events.contains(ReadFlags::QUEUE_OVERFLOW) {
            // It is unknown which events were lost.
            watches.values().for_each(|watched| watched.wake.notify_one());
        } else if let Some(watched) = watches.get(&wd) {
            watched.wake.notify_one();
        }
    }
}
