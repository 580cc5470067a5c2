//! Ended kernels leave nothing in memory.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::{Arc, Weak};
use std::time::Duration;

use kernel_log::{LogOptions, Logs, MemoryStore};
use kernel_manager::{Kernel, Manager, ManagerOptions, StartRequest};
use kernel_provider::ExitCause;
use kernel_provider::fake::FakeProvider;

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_kernel_is_dropped() {
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
            // The kernel dies, and its supervisor restarts it during the shutdown.
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
    let all_dropped = async {
        // The supervisors, which hold the kernels, end asynchronously.
        while kernels.iter().any(|kernel| kernel.strong_count() > 0) {
            tokio::task::yield_now().await;
        }
    };
    let dropped = tokio::time::timeout(Duration::from_secs(60), all_dropped).await;
    assert!(dropped.is_ok(), "ended kernels are still in memory");
}
