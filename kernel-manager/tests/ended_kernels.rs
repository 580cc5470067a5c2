//! Ended kernels leave nothing in memory, and their logs keep their owners.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::{Arc, Weak};
use std::time::Duration;

use jupyter_protocol::KernelId;
use kernel_log::{LogOptions, Logs, MemoryStore};
use kernel_manager::{Kernel, Manager, ManagerOptions, StartError, StartRequest};
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

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_not_continued_for_another_owner() {
    let provider = FakeProvider::new();
    let logs = Logs::new(Arc::new(MemoryStore::default()), LogOptions::default()).unwrap();
    let manager = Manager::new(vec![Arc::new(provider.clone())], logs, ManagerOptions::default());
    let id = KernelId::random();
    let start = async |owner: Option<&str>| {
        let mut request = StartRequest::new("echo");
        request.id = Some(id);
        request.owner = owner.map(str::to_owned);
        manager.start(request).await
    };
    start(Some("ada")).await.unwrap().shutdown().await.unwrap();
    // A reader has the log open.
    let _reader = manager.logs().find(id).await.unwrap();
    let refused = start(Some("bob")).await;
    assert!(matches!(refused.map(|_| ()), Err(StartError::OtherOwner(of)) if of == id));
    assert_eq!(provider.running(), 0);
    for owner in [Some("ada"), None] {
        start(owner).await.unwrap().shutdown().await.unwrap();
    }
}
