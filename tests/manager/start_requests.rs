//! Starts that succeed or are refused, by limits, ids and kernelspecs.

use std::time::Duration;

use kernelmux::{AtClose, Counted, KernelId, ManagerOptions, StartError, StartRequest};
use serde_json::json;

use crate::fixture::{TestFolder, python, within_deadline};

#[tokio::test(flavor = "multi_thread")]
async fn limits_and_unique_ids_are_enforced_during_concurrent_starts() {
    let Some(test_folder) = TestFolder::new() else { return };
    let mut options = ManagerOptions::default();
    options.max_kernels = Some(3);
    options.max_kernels_per_owner = Some(1);
    let manager = test_folder.manager(options).await;
    let request = |owner: &str| {
        let mut request = StartRequest::new("python3");
        request.owner = Some(owner.to_owned());
        request
    };
    let id = KernelId::random();
    let (mut named, mut twin) = (request("ann"), request("bob"));
    (named.id, twin.id) = (Some(id), Some(id));
    let (first, second) = within_deadline(async { tokio::join!(manager.start(named), manager.start(twin)) }).await;
    let (kernel, refused) = if first.is_ok() {
        (first, second)
    } else {
        (second, first)
    };
    let kernel = kernel.unwrap();
    assert!(matches!(refused.map(|_| ()), Err(StartError::Duplicate(twice)) if twice == id));
    let owner = kernel.owner().unwrap().to_owned();
    let error = within_deadline(manager.start(request(&owner)))
        .await
        .map(|_| ())
        .unwrap_err();
    assert!(
        matches!(
            error,
            StartError::LimitReached {
                limit: 1,
                counted: Counted::Owner(_)
            }
        ),
        "{error}"
    );
    within_deadline(manager.start(request("cid"))).await.unwrap();
    within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
    let error = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .map(|_| ())
        .unwrap_err();
    assert!(
        matches!(
            error,
            StartError::LimitReached {
                limit: 3,
                counted: Counted::All
            }
        ),
        "{error}"
    );
    within_deadline(kernel.shutdown()).await.unwrap();
    within_deadline(manager.start(request(&owner))).await.unwrap();
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
    let error = within_deadline(manager.start(request("dan")))
        .await
        .map(|_| ())
        .unwrap_err();
    assert!(matches!(error, StartError::ShuttingDown), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_start_reports_the_cause_and_leaves_no_kernel() {
    let Some(test_folder) = TestFolder::new() else { return };
    test_folder.spec(
        "broken",
        &json!(["sh", "-c", "echo no licence found >&2; exit 3"]),
        &json!({}),
    );
    test_folder.spec("missing", &json!(["/no/such/interpreter"]), &json!({}));
    let manager = test_folder.manager(ManagerOptions::default()).await;
    for (spec, expected) in [
        ("broken", &["exited with code 3", "no licence found"][..]),
        ("missing", &["/no/such/interpreter"]),
        ("unheard-of", &["unheard-of", "python3"]),
    ] {
        let error = within_deadline(manager.start(StartRequest::new(spec)))
            .await
            .map(|_| ())
            .unwrap_err()
            .to_string();
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
        assert!(manager.list().is_empty());
    }
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn shutting_down_the_manager_cancels_pending_starts() {
    let Some(test_folder) = TestFolder::new() else { return };
    let pid_file = test_folder.folder.path().join("pid");
    let script = format!("echo $$ >{0}.new; mv {0}.new {0}; exec sleep 600", pid_file.display());
    test_folder.spec("mute", &json!(["sh", "-c", script]), &json!({}));
    let manager = test_folder.manager(ManagerOptions::default()).await;
    let starting = tokio::spawn({
        let manager = manager.clone();
        async move { manager.start(StartRequest::new("mute")).await.map(drop) }
    });
    let pid = within_deadline(async {
        loop {
            match std::fs::read_to_string(&pid_file) {
                Ok(pid) => return pid.trim().to_owned(),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    })
    .await;
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
    let error = within_deadline(starting).await.unwrap().unwrap_err();
    assert!(matches!(error, StartError::ShuttingDown), "{error}");
    let left = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    assert!(!left.contains("sleep"), "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn kernelspec_names_match_as_in_jupyter_client_and_broken_ones_have_a_reason() {
    let Some(test_folder) = TestFolder::new() else { return };
    test_folder.spec(
        "ROOT",
        &json!([python().unwrap(), "-m", "ipykernel_launcher", "-f", "{connection_file}"]),
        &json!({}),
    );
    test_folder.spec("broken", &json!("python"), &json!({}));
    let manager = test_folder.manager(ManagerOptions::default()).await;
    for (name, expected) in [
        ("ROOT", "root"),
        ("Root", "root"),
        ("root", "root"),
        ("python", "python3"),
    ] {
        let kernel = within_deadline(manager.start(StartRequest::new(name))).await.unwrap();
        assert_eq!(kernel.spec_name(), expected);
        within_deadline(kernel.shutdown()).await.unwrap();
    }
    let file = test_folder.folder.path().join("kernels/broken/kernel.json");
    let reason = &manager.broken_specs()["broken"];
    assert!(
        reason.contains(file.to_str().unwrap()) && reason.contains("argv"),
        "{reason}"
    );
    let error = within_deadline(manager.start(StartRequest::new("Broken")))
        .await
        .err()
        .unwrap();
    assert!(
        matches!(&error, StartError::BrokenSpec { reason: reported, .. } if reported == reason),
        "{error}"
    );
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}
