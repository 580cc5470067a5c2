//! Kernels whose log is on a full disk.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

#[path = "../../kernel-log/tests/tmpfs/mod.rs"]
mod tmpfs;

use std::fs;
use std::io::Write;
use std::sync::Arc;

use kernel_log::{DiskStore, LogOptions, Logs, StoreError};
use kernel_manager::{AtClose, ExecutionState, Manager, ManagerOptions, RestartError, StartRequest};
use kernel_provider::fake::FakeProvider;

use tmpfs::Tmpfs;

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_with_a_full_disk_fails_and_keeps_the_kernel_running() {
    let Some(disk) = Tmpfs::mount("size=200m") else { return };
    let store = DiskStore::open(disk.path()).unwrap();
    let provider = FakeProvider::new();
    let manager = Manager::new(
        vec![Arc::new(provider.clone())],
        Logs::new(Arc::new(store), LogOptions::default()).unwrap(),
        ManagerOptions::default(),
    );
    let kernel = manager.start(StartRequest::new("echo")).await.unwrap();
    let filler = disk.path().join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    let full = loop {
        if let Err(error) = file.write_all(&vec![1; 1 << 20]) {
            break error;
        }
    };
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let refused = kernel.restart().await.unwrap_err();
    assert!(
        matches!(refused, RestartError::Log(StoreError::Full { .. })),
        "{refused}"
    );
    assert_eq!(provider.running(), 1);
    assert_eq!(*kernel.state().borrow(), ExecutionState::Idle);
    fs::remove_file(&filler).unwrap();
    drop(file);
    kernel.restart().await.unwrap();
    manager.close(AtClose::EndKernels).await.unwrap();
}
