//! File system events (inotify): one descriptor and one task for all that a provider watches.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustix::fd::OwnedFd;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::AbortOnDrop;

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
    /// Only events about these names count; all do where it is empty.
    names: BTreeSet<OsString>,
    /// How many [`Watch`]es share it: the system gives the same watch for the same directory.
    count: usize,
}

/// A watch; ends when dropped.
pub(crate) struct Watch {
    inner: Arc<Inner>,
    wd: i32,
}

impl Events {
    /// Starts watching nothing. Must be called in an async runtime.
    ///
    /// # Errors
    /// Where the system has no more watchers for this user (`fs.inotify.max_user_instances`).
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
            _task: AbortOnDrop::new(&task),
        })
    }

    /// Wakes `wake` at each of the `events` at `path`; where a name is given, only at those about this entry of it.
    ///
    /// # Errors
    /// Where there is no such path, or the system has no more watches for this user.
    pub(crate) fn watch(
        &self,
        path: &Path,
        name: Option<&OsStr>,
        events: WatchFlags,
        wake: &Arc<Notify>,
    ) -> io::Result<Watch> {
        let mut watches = crate::lock(&self.inner.watches);
        let wd = inotify::add_watch(self.inner.fd.get_ref(), path, events)?;
        let names: BTreeSet<OsString> = name.into_iter().map(OsStr::to_owned).collect();
        watches
            .entry(wd)
            .and_modify(|watched| {
                watched.count += 1;
                watched.wake = Arc::clone(wake);
                if watched.names.is_empty() || names.is_empty() {
                    watched.names.clear();
                } else {
                    watched.names.extend(names.iter().cloned());
                }
            })
            .or_insert_with(|| Watched {
                wake: Arc::clone(wake),
                names: names.clone(),
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
                // Fails where what was watched is gone, and its watch with it.
                let _ = inotify::remove_watch(self.inner.fd.get_ref(), self.wd);
            }
        }
    }
}

impl Inner {
    async fn deliver(&self) {
        // Fails only where the async runtime is going down.
        while let Ok(mut ready) = self.fd.readable().await {
            if self.deliver_those_there() {
                ready.clear_ready();
            }
        }
    }

    /// Delivers what one read gives; says whether there is nothing more.
    fn deliver_those_there(&self) -> bool {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(self.fd.get_ref(), &mut buffer);
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
                    self.wake(event.wd(), event.events(), name);
                }
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return true,
                Err(error) => {
                    tracing::warn!(%error, "file system events cannot be read");
                    return true;
                }
            }
            if reader.is_buffer_empty() {
                return false;
            }
        }
    }

    fn wake(&self, wd: i32, events: ReadFlags, name: Option<&OsStr>) {
        let watches = crate::lock(&self.watches);
        if events.contains(ReadFlags::QUEUE_OVERFLOW) {
            // Nobody knows what was lost.
            watches.values().for_each(|watched| watched.wake.notify_one());
        } else if let Some(watched) = watches.get(&wd)
            && (watched.names.is_empty() || name.is_none_or(|name| watched.names.contains(name)))
        {
            watched.wake.notify_one();
        }
    }
}
