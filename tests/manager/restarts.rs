//! Kernels that die are restarted up to the limit.

use std::time::Duration;

use kernelmux::protocol::content::ExecuteRequest;
use kernelmux::{AtClose, ExecutionError, ExecutionState, ManagerOptions, StartRequest};
use serde_json::json;

use crate::fixture::{Attached, TestFolder, content, kill, python, run, within_deadline};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_kernel_is_restarted_and_its_clients_are_notified() {
    let Some(test_folder) = TestFolder::new() else { return };
    let manager = test_folder.manager(ManagerOptions::default()).await;
    let kernel = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
    let mut client = Attached::to(&kernel, "client");
    let pid = run(&kernel, "import os; print(os.getpid())").await;
    let mut execution = kernel
        .execute(ExecuteRequest::new("import time; time.sleep(600)"))
        .await
        .unwrap();
    within_deadline(kernel.state().wait_for(|state| *state == ExecutionState::Busy))
        .await
        .unwrap();
    kill(pid.trim(), "-KILL");
    let seen = client
        .until(|entry| content(entry)["execution_state"] == "restarting")
        .await;
    let status = content(seen.last().unwrap());
    assert!(status["reason"].as_str().unwrap().contains("SIGKILL"), "{status}");
    // Clients receive a synthetic idle status, because JupyterLab ignores the kernel's own, whose parent is the
    // recorder's request.
    let seen = client
        .until(|entry| {
            let message = entry.message();
            content(entry)["execution_state"] == "idle"
                && message
                    .parent_ref()
                    .is_ok_and(|parent| parent.msg_type == "kernelmux_lifecycle")
        })
        .await;
    let sessions: Vec<_> = seen[seen.len() - 2..]
        .iter()
        .map(|entry| entry.message().header_ref().unwrap().session.into_owned())
        .collect();
    assert_eq!(
        sessions[0], sessions[1],
        "the synthetic status must have the session of the kernel's own status before it"
    );
    let error = loop {
        match within_deadline(execution.next()).await {
            Some(Ok(_)) => {}
            other => break other,
        }
    };
    assert!(matches!(error, Some(Err(ExecutionError::KernelEnded { .. }))));
    assert_eq!(run(&kernel, "print('again')").await, "again\n");
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_that_keeps_dying_is_dead_with_a_reason() {
    let Some(test_folder) = TestFolder::new() else { return };
    let mut options = ManagerOptions::default();
    options.restart_limit = 1;
    // Counts both deaths towards the limit, regardless of the time between them.
    options.stable_after = Duration::MAX;
    let manager = test_folder.manager(options).await;
    let kernel = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
    let mut client = Attached::to(&kernel, "client");
    for state in ["restarting", "dead"] {
        let dying = kernel
            .execute(ExecuteRequest::new("import os; os._exit(7)"))
            .await
            .unwrap();
        let seen = client.until(|entry| content(entry)["execution_state"] == state).await;
        assert_eq!(content(seen.last().unwrap())["reason"], "exited with code 7");
        drop(dying);
        if state == "restarting" {
            within_deadline(kernel.state().wait_for(|state| *state == ExecutionState::Idle))
                .await
                .unwrap();
        }
    }
    within_deadline(kernel.state().wait_for(|state| *state == ExecutionState::Dead))
        .await
        .unwrap();
    assert!(
        kernel.execute(ExecuteRequest::new("1")).await.is_err(),
        "a dead kernel must refuse executions"
    );
    within_deadline(kernel.restart()).await.unwrap();
    assert_eq!(run(&kernel, "print('restarted')").await, "restarted\n");

    // The kernel is supervised again, and a requested restart does not count towards the limit.
    within_deadline(kernel.restart()).await.unwrap();
    let dying = kernel
        .execute(ExecuteRequest::new("import os; os._exit(7)"))
        .await
        .unwrap();
    client
        .until(|entry| content(entry)["execution_state"] == "restarting" && content(entry)["reason"].is_string())
        .await;
    drop(dying);
    within_deadline(kernel.state().wait_for(|state| *state == ExecutionState::Idle))
        .await
        .unwrap();
    assert_eq!(run(&kernel, "print('again')").await, "again\n");
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_that_dies_at_each_start_is_restarted_up_to_the_limit() {
    let Some(test_folder) = TestFolder::new() else { return };
    let python = python().unwrap();
    // A kernel that exits at its start while this file exists.
    let fatal = test_folder.folder.path().join("fatal");
    let code = "import os, sys; os.path.exists(sys.argv[2]) and os._exit(3)";
    let script = format!(
        "{code}\nfrom ipykernel.kernelapp import launch_new_instance; launch_new_instance(['-f', sys.argv[1]])"
    );
    test_folder.spec(
        "frail",
        &json!([python, "-c", script, "{connection_file}", fatal]),
        &json!({}),
    );
    let mut options = ManagerOptions::default();
    options.restart_limit = 3;
    let manager = test_folder.manager(options).await;
    let kernel = within_deadline(manager.start(StartRequest::new("frail")))
        .await
        .unwrap();
    let mut client = Attached::to(&kernel, "client");
    std::fs::write(&fatal, "").unwrap();
    drop(
        kernel
            .execute(ExecuteRequest::new("import os; os._exit(4)"))
            .await
            .unwrap(),
    );
    let seen = client.until(|entry| content(entry)["execution_state"] == "dead").await;
    let restarts = seen
        .iter()
        .filter(|entry| content(entry)["execution_state"] == "restarting");
    assert_eq!(restarts.count(), 3);
    assert_eq!(content(seen.last().unwrap())["reason"], "exited with code 3");
    client.client().acknowledge(seen.last().unwrap().seq());
    drop(client);
    // Clients that connect later receive the state too, even after they have acknowledged it.
    for session in ["client", "another"] {
        let mut late = Attached::to(&kernel, session);
        late.until(|entry| content(entry)["execution_state"] == "dead").await;
    }
    std::fs::remove_file(&fatal).unwrap();
    within_deadline(kernel.restart()).await.unwrap();
    assert_eq!(run(&kernel, "print('restarted')").await, "restarted\n");
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}
