//! The example on a real cluster: output as it arrives, and the cause of failures. `make test-k8s` runs it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../../provider-k8s/tests/common/mod.rs"]
mod common;

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};

use common::TestNamespace;
use serde_json::{Value, json};

/// Returns the command of the example in this namespace, with its own kernelspec.
fn example(namespace: &TestNamespace, kubernetes: Value, code: &str) -> Command {
    let argv = ["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"];
    // Jupyter searches for kernelspecs in the subfolder `kernels`.
    namespace.install("kernels/tested", &argv, kubernetes);
    let mut command = Command::new(env!("CARGO_BIN_EXE_k8s"));
    command
        .args([&namespace.name, "tested", code])
        .env("JUPYTER_PATH", namespace.specs.path());
    command
}

/// Starts the example with a cell that prints its pod's name, reads the name, and lets the cell continue with `then`.
async fn started(namespace: &TestNamespace, kubernetes: Value, then: &str) -> (Child, BufReader<ChildStdout>) {
    let gate = "import os, time\nprint(os.uname().nodename)\nwhile not os.path.exists('/tmp/gate'): time.sleep(0.01)\n";
    let mut command = example(namespace, kubernetes, &format!("{gate}{then}"));
    let mut example = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut shown = BufReader::new(example.stdout.take().unwrap());
    let mut pod = String::new();
    shown.read_line(&mut pod).unwrap();
    assert!(!pod.is_empty(), "the example ended: {example:?}");
    namespace.exec(pod.trim(), &["touch", "/tmp/gate"]).await;
    (example, shown)
}

/// Waits until the example fails, and returns its error output.
fn failure(example: Child) -> String {
    let output = example.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn k8s_prints_output_as_it_arrives() {
    let Some(namespace) = TestNamespace::new().await else {
        return;
    };
    let (mut example, mut shown) = started(&namespace, json!({}), "print('second')\n6 * 7").await;
    let mut rest = String::new();
    shown.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "second\n42\n");
    assert!(example.wait().unwrap().success());
    // The cluster removes a Secret after its pod.
    common::eventually("no leftovers", async || namespace.leftovers().await.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn k8s_reports_why_the_kernel_cannot_start() {
    let Some(namespace) = TestNamespace::new().await else {
        return;
    };
    let mut command = example(&namespace, json!({"resources": {"requests": {"memory": "900Ti"}}}), "1");
    let error = failure(command.stderr(Stdio::piped()).spawn().unwrap());
    assert!(error.contains("Insufficient memory"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn k8s_reports_what_ended_the_kernel() {
    let Some(namespace) = TestNamespace::new().await else {
        return;
    };
    let code = "x = bytearray(1 << 30)\nfor i in range(0, len(x), 4096): x[i] = 1";
    let (example, _shown) = started(&namespace, json!({"resources": {"limits": {"memory": "200Mi"}}}), code).await;
    let error = failure(example);
    assert!(error.contains("out of memory"), "{error}");
}
