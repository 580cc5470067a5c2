//! Command prefixes, and functions that change a kernel's command.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use common::{Fixture, python};
use jupyter_protocol::KernelId;
use jupyter_protocol::client::{Client, ExecutionEvent};
use jupyter_protocol::content::{Content, ExecuteRequest};
use kernel_provider::{KernelHandle, KernelProvider as _, LaunchError, LaunchRequest, Progress};
use provider_local::LocalProvider;

/// Runs code and returns what it prints.
async fn run(kernel: &dyn KernelHandle, code: &str) -> String {
    let client = Client::connect(&kernel.connection().await.unwrap()).await.unwrap();
    let mut execution = client.execute(ExecuteRequest::new(code)).await.unwrap();
    let mut text = String::new();
    while let Some(event) = execution.next().await {
        if let ExecutionEvent::Output(message) = event.unwrap()
            && let Content::Stream(stream) = message.content
        {
            text.push_str(&stream.text);
        }
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_prefix_starts_and_ends_with_the_kernel() {
    let Some(python) = python() else { return };
    let fixture = Fixture::new();
    fixture.install_ipykernel(&python);
    let options = fixture.config().with_command_prefix(["nice", "-n", "7"]);
    let provider = LocalProvider::open(options).await.unwrap();
    let request = LaunchRequest::new(KernelId::random(), "python3");
    let kernel = provider.launch(request, Progress::ignored()).await.unwrap();
    assert_eq!(run(&*kernel, "import os; print(os.nice(0), end='')").await, "7");
    kernel.interrupt().await.unwrap();
    kernel
        .restart(Duration::from_secs(5), Progress::ignored())
        .await
        .unwrap();
    assert_eq!(run(&*kernel, "import os; print(os.nice(0), end='')").await, "7");
    kernel.shutdown(Duration::from_secs(5)).await.unwrap();
    fixture.wait_until_clear().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_changes_the_command_or_refuses_the_launch() {
    let Some(python) = python() else { return };
    let fixture = Fixture::new();
    fixture.install_ipykernel(&python);
    let refused = KernelId::random();
    let options = fixture.config().with_adjust_command(move |kernel| {
        if kernel.id == refused {
            return Err(std::io::Error::other("no more quota"));
        }
        kernel.command.env("ADJUSTED", kernel.spec);
        Ok(())
    });
    let provider = LocalProvider::open(options).await.unwrap();
    let request = LaunchRequest::new(KernelId::random(), "python3");
    let kernel = provider.launch(request, Progress::ignored()).await.unwrap();
    let seen = run(&*kernel, "import os; print(os.environ['ADJUSTED'], end='')").await;
    assert_eq!(seen, "python3");
    kernel.shutdown(Duration::from_secs(5)).await.unwrap();

    let error = provider
        .launch(LaunchRequest::new(refused, "python3"), Progress::ignored())
        .await
        .err();
    assert!(
        matches!(&error, Some(LaunchError::CannotStart { reason, .. }) if reason.contains("no more quota")),
        "{error:?}"
    );
    fixture.wait_until_clear().await;
}
