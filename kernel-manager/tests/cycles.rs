//! What is left of kernels that were started and ended: nothing but their logs.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::{Arc, Weak};
use std::time::Duration;

use kernel_log::{LogOptions, Logs, MemoryStore};
use kernel_manager::{Kernel, Manager, ManagerOptions, StartRequest};
use kernel_provider::ExitCause;
use kernel_provider::fake::FakeProvider;

#[tokio::test(flavor = "multi_thread")]
async fn no_kernel_is_kept_after_its_end() {
    let provider = FakeProvider::new();
    let logs = Logs::new(Arc::new(MemoryStore::default()), LogOptions::default()).unwrap();
    let mut options = ManagerOptions::default();
    options.restart_limit = 1;
    let manager = Manager::new(vec![Arc::new(provider.clone())], logs, options);
    let mut kernels: Vec<Weak<Kernel>> = Vec::new();
    for round in 0..6 {
        let kernel = manager.start(StartRequest::new("echo")).await.unwrap();
        let attachment = kernel.attach("client");
        match round % 3 {
            0 => {}
            1 => kernel.restart().await.unwrap(),
            // It ends by itself, and what watches it starts it anew meanwhile.
            _ => provider.end(kernel.id(), ExitCause::Code(1)),
        }
        kernel.shutdown().await.unwrap();
        manager.logs().remove(kernel.id()).await.unwrap();
        drop(attachment);
        kernels.push(Arc::downgrade(&kernel));
    }
    assert!(manager.list().is_empty());
    assert!(manager.logs().list().await.unwrap().is_empty());
    assert_eq!(provider.running(), 0);
    let all_gone = async {
        // Their supervisors end on their own.
        while kernels.iter().any(|kernel| kernel.strong_count() > 0) {
            tokio::task::yield_now().await;
        }
    };
    let gone = tokio::time::timeout(Duration::from_secs(60), all_gone).await;
    assert!(gone.is_ok(), "kernels are kept after their end");
}
