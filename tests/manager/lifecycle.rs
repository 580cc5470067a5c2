//! Starting, using, interrupting and ending a kernel.

use kernelmux::log::Seq;
use kernelmux::protocol::content::{Content, ExecuteRequest};
use kernelmux::{AtClose, KernelEventKind, ManagerOptions, StartRequest};

use crate::fixture::{TestFolder, run, within_deadline};

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_can_be_started_used_restarted_and_shut_down() {
    let Some(test_folder) = TestFolder::new() else { return };
    let manager = test_folder.manager(ManagerOptions::default()).await;
    let mut events = manager.events();
    let kernel = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
    assert_eq!(run(&kernel, "x = 6; print(x * 7)").await, "42\n");
    within_deadline(kernel.restart()).await.unwrap();
    assert_eq!(
        run(&kernel, "print('x' in globals())").await,
        "False\n",
        "the restarted process has kept a variable"
    );
    within_deadline(kernel.shutdown()).await.unwrap();
    assert!(manager.get(kernel.id()).is_none());
    let kinds: Vec<_> = std::iter::from_fn(|| events.try_recv().ok())
        .map(|event| event.kind)
        .collect();
    assert_eq!(
        kinds,
        [
            KernelEventKind::Started,
            KernelEventKind::Restarted,
            KernelEventKind::ShutDown
        ]
    );
    // The log remains readable after the kernel has ended.
    let log = manager.logs().open(kernel.id()).await.unwrap();
    assert!(log.head() > Seq(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_ends_the_cell_and_not_the_kernel() {
    let Some(test_folder) = TestFolder::new() else { return };
    let manager = test_folder.manager(ManagerOptions::default()).await;
    let kernel = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
    run(&kernel, "kept = 1").await;
    let mut execution = kernel
        .execute(ExecuteRequest::new(
            // The test interrupts the cell when its output arrives. The main thread only sleeps and another one prints,
            // because Python ignores a KeyboardInterrupt that is raised in a destructor. Without a line end, the output
            // is a single message.
            "import threading, time\n\
             threading.Timer(0.5, lambda: print('now', end='', flush=True)).start()\n\
             time.sleep(600)",
        ))
        .await
        .unwrap();
    let mut error = None;
    while let Some(message) = within_deadline(execution.next()).await {
        match message.unwrap().content {
            Content::Stream(_) => within_deadline(kernel.interrupt()).await.unwrap(),
            Content::Error(content) => error = Some(content.ename),
            _ => {}
        }
    }
    assert_eq!(error.as_deref(), Some("KeyboardInterrupt"));
    assert_eq!(run(&kernel, "print(kept)").await, "1\n");
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}
