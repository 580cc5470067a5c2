//! Which kernels are culled.

use std::time::Duration;

use kernelmux::log::Seq;
use kernelmux::protocol::content::ExecuteRequest;
use kernelmux::{AtClose, Culling, ExecutionState, KernelEventKind, ManagerOptions, StartRequest};
use serde_json::json;

use crate::fixture::{TestFolder, content, python, within_deadline};

#[tokio::test(flavor = "multi_thread")]
async fn only_idle_and_unconnected_kernels_are_culled() {
    let Some(test_folder) = TestFolder::new() else { return };
    let python = python().unwrap();
    let argv = json!([python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]);
    test_folder.spec("kept", &argv, &json!({"cull_idle_timeout": 0}));
    let mut options = ManagerOptions::default();
    options.culling = Culling::default();
    // Longer than a client needs to attach.
    options.culling.idle_timeout = Duration::from_secs(5);
    options.culling.interval = Duration::from_millis(100);
    let manager = test_folder.manager(options).await;
    let mut events = manager.events();
    let idle = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
    let watched = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
    let _client = watched.attach("client");
    let busy = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
    let mut running = busy
        .execute(ExecuteRequest::new("import time; time.sleep(600)"))
        .await
        .unwrap();
    // The execution stays attached until the kernel is known to be busy.
    within_deadline(running.next()).await.unwrap().unwrap();
    within_deadline(busy.state().wait_for(|state| *state == ExecutionState::Busy))
        .await
        .unwrap();
    drop(running);
    let kept = within_deadline(manager.start(StartRequest::new("kept"))).await.unwrap();
    let culled = within_deadline(async {
        loop {
            let event = events.recv().await.unwrap();
            if event.kind == KernelEventKind::Culled {
                return event.id;
            }
        }
    })
    .await;
    assert_eq!(culled, idle.id());
    let mut reader = idle.log().reader(Seq::START);
    let dead = within_deadline(async {
        loop {
            let block = reader
                .next()
                .await
                .unwrap()
                .expect("the log has ended without the dead status");
            let mut contents = block.entries().map(|entry| content(&entry));
            if let Some(dead) = contents.find(|content| content["execution_state"] == "dead") {
                return dead;
            }
        }
    })
    .await;
    let reason = dead["reason"].as_str().unwrap();
    assert!(reason.starts_with("culled: idle for "), "{reason}");
    let mut left: Vec<_> = manager.list().iter().map(|kernel| kernel.id()).collect();
    let mut expected = vec![watched.id(), busy.id(), kept.id()];
    left.sort();
    expected.sort();
    assert_eq!(left, expected);
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}
