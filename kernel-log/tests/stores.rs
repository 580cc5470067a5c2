//! The conformance suite of stores, run on each store of this crate.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[cfg(feature = "nats")]
mod nats_server;

use std::sync::Arc;

use kernel_log::conformance::Subject;
use kernel_log::{DiskStore, LogStore, MemoryStore};

struct Memory;

impl Subject for Memory {
    fn open(&self) -> Arc<dyn LogStore> {
        Arc::new(MemoryStore::new())
    }

    fn persists(&self) -> bool {
        false
    }
}

struct Folder(tempfile::TempDir);

impl Subject for Folder {
    fn open(&self) -> Arc<dyn LogStore> {
        Arc::new(DiskStore::open(self.0.path()).unwrap())
    }
}

mod memory {
    kernel_log::store_conformance!(Some(super::Memory));
}

mod disk {
    kernel_log::store_conformance!(Some(super::Folder(tempfile::tempdir().unwrap())));
}

#[cfg(feature = "nats")]
mod nats {
    kernel_log::store_conformance!(super::nats_server::Server::start());
}
