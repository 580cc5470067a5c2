use std::sync::Arc;

use embedder_store::Store;
use kernel_log::LogStore;
use kernel_log::conformance::Subject;

struct InMemory;

impl Subject for InMemory {
    fn open(&self) -> Arc<dyn LogStore> {
        Arc::new(Store::default())
    }

    fn persists(&self) -> bool {
        false
    }
}

kernel_log::store_conformance!(Some(InMemory));
