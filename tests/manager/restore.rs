//! Kernels that outlive their manager, and the next manager that finds them.

use std::path::Path;
use std::time::Duration;

use kernelmux::ManagerBuilderExt as _;
use kernelmux::local::LocalOptions;
use kernelmux::log::{DiskStore, LIFECYCLE};
use kernelmux::protocol::kernelspec::SearchPath;
use kernelmux::{AtClose, ExecutionState, KernelId, Manager, ManagerOptions, StartRequest};

use crate::fixture::{TestFolder, content, kill, msg_type, run, within_deadline};

#[tokio::test(flavor = "multi_thread")]
async fn kernels_outlive_the_manager_and_their_logs_continue() {
    let Some(test_folder) = TestFolder::new() else { return };
    let manager = test_folder.manager(ManagerOptions::default()).await;
    let kernel = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
    let id = kernel.id();
    run(&kernel, "kept = 'kept'").await;
    let (epoch, head) = (kernel.log().epoch(), kernel.log().head());
    within_deadline(manager.close(AtClose::LeaveKernels)).await.unwrap();
    drop((kernel, manager));

    let manager = reopen(&test_folder).await;
    assert_eq!(within_deadline(manager.restore()).await, 1);
    let kernel = manager.get(id).unwrap();
    assert_eq!(kernel.log().epoch(), epoch);
    assert_eq!(run(&kernel, "print(kept)").await, "kept\n");
    let mut reader = kernel.log().reader(head);
    // The log has an entry for the time without a recorder.
    let gap = loop {
        let block = within_deadline(reader.next()).await.unwrap().unwrap();
        if let Some(entry) = block.entries().find(|entry| msg_type(entry) == LIFECYCLE) {
            break content(&entry);
        }
    };
    assert_eq!(gap["event"], "attached");
    assert!(gap["unrecorded_ms"].is_i64());
    within_deadline(kernel.state().wait_for(|state| *state == ExecutionState::Idle))
        .await
        .unwrap();
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}

/// Opens a new manager on the folder once the previous one has released it.
async fn reopen(test_folder: &TestFolder) -> Manager {
    let lock = test_folder.folder.path().to_owned();
    within_deadline(async move {
        while !is_free(&lock) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    test_folder.manager(ManagerOptions::default()).await
}

/// Whether the log store can be opened. A dropped store releases the folder on a background thread.
fn is_free(folder: &Path) -> bool {
    DiskStore::open(&folder.join("logs")).is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn kernels_that_do_not_respond_at_a_restore_delay_no_other_kernel() {
    let Some(test_folder) = TestFolder::new() else { return };
    let manager = test_folder.manager(ManagerOptions::default()).await;
    let mut pids = Vec::new();
    for _ in 0..3 {
        let kernel = within_deadline(manager.start(StartRequest::new("python3")))
            .await
            .unwrap();
        let pid = run(&kernel, "import os; print(os.getpid())").await.trim().to_owned();
        pids.push((kernel.id(), pid));
    }
    within_deadline(manager.close(AtClose::LeaveKernels)).await.unwrap();
    drop(manager);
    let [(one, _), (two, second), (three, third)] = &pids[..] else {
        panic!("expected three kernels")
    };
    kill(second, "-STOP");
    kill(third, "-STOP");

    let manager = test_folder.manager(ManagerOptions::default()).await;
    assert_eq!(
        within_deadline(manager.restore()).await,
        3,
        "kernels that do not respond must be listed too"
    );
    let kernel = |id: &KernelId| manager.get(*id).unwrap();
    assert_eq!(run(&kernel(one), "print('served')").await, "served\n");
    assert_eq!(*kernel(two).state().borrow(), ExecutionState::Busy);
    // An unresponsive kernel can be shut down, and can be used once it responds again.
    within_deadline(kernel(three).shutdown()).await.unwrap();
    assert!(manager.get(*three).is_none());
    kill(second, "-CONT");
    assert_eq!(run(&kernel(two), "print('back')").await, "back\n");
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_releases_the_folders_and_the_next_manager_finds_the_kernel() {
    let Some(folder) = TestFolder::new() else { return };
    let state = folder.folder.path().join("state");
    let open = async || {
        let mut config = LocalOptions::new(&state);
        config.search = SearchPath::new([folder.folder.path().join("kernels")]);
        let builder = Manager::builder().local_with(config);
        within_deadline(builder.on_disk(folder.folder.path().join("logs")).open())
            .await
            .unwrap()
    };
    let manager = open().await;
    let held = within_deadline(manager.start("python3")).await.unwrap();
    assert_eq!(run(&held, "n = 6").await, "");
    within_deadline(manager.close(AtClose::LeaveKernels)).await.unwrap();

    // The first manager and its kernel have not been dropped yet.
    let next = open().await;
    let kernel = next.get(held.id()).expect("the kernel is found again");
    assert_eq!(
        within_deadline(kernel.run("print(n * 7)")).await.unwrap().text(),
        "42\n"
    );
    let refused = held.handle().interrupt().await.unwrap_err();
    assert!(matches!(refused, kernelmux::ProviderError::Closed), "{refused}");
    within_deadline(next.close(AtClose::EndKernels)).await.unwrap();
    drop(manager);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_manager_kills_its_kernels_only_if_configured_to() {
    for end in [false, true] {
        let Some(folder) = TestFolder::new() else { return };
        let options = ManagerOptions::default().with_end_kernels_on_drop(end);
        let manager = folder.manager(options).await;
        let kernel = within_deadline(manager.start(StartRequest::new("python3")))
            .await
            .unwrap();
        let pid: u32 = run(&kernel, "import os; print(os.getpid())")
            .await
            .trim()
            .parse()
            .unwrap();
        let is_alive = || Path::new(&format!("/proc/{pid}/cwd")).exists();
        assert!(is_alive());
        drop((kernel, manager));
        if end {
            let gone = async {
                while std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            within_deadline(gone).await;
        } else {
            assert!(is_alive());
            let manager = folder.manager(ManagerOptions::default()).await;
            assert_eq!(within_deadline(manager.restore()).await, 1);
            within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
        }
    }
}
