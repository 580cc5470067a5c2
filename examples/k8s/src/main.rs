//! Starts a kernel in a pod, runs code in it and prints its output as it arrives. If the kernel does not start, or ends
//! early, prints the cause.
//!
//! ```console
//! $ cargo run -p k8s -- kernels python3 'for i in range(3): print(i)'
//! ```
//!
//! The arguments are a namespace of the cluster that `KUBECONFIG` names, a kernelspec for pods, and code.

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use kernelmux::k8s::K8sOptions;
use kernelmux::prelude::*;

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [namespace, spec, code] = &args[..] else {
        eprintln!("usage: k8s NAMESPACE KERNELSPEC CODE");
        return ExitCode::from(2);
    };
    match run(namespace, spec, code).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(namespace: &str, spec: &str, code: &str) -> Result<(), Box<dyn Error>> {
    let manager = Manager::builder().k8s(K8sOptions::new(namespace)).open().await?;
    // The error names the cause, such as a lack of room, a missing image or an exceeded quota. If the kernel ended
    // during its start, the error contains the kernel's last output.
    let kernel = manager.start(spec).await?;
    let outcome = show(&kernel, code).await;
    // Ends the pod. `LeaveKernels` would leave it to the next program that opens the namespace.
    manager.close(AtClose::EndKernels).await?;
    outcome
}

async fn show(kernel: &Arc<Kernel>, code: &str) -> Result<(), Box<dyn Error>> {
    let mut execution = kernel.execute(code).await?;
    while let Some(message) = execution.next().await {
        match message?.content {
            Content::Stream(stream) => print!("{}", stream.text),
            Content::ExecuteResult(result) => println!("{}", result.data.as_text("text/plain").unwrap_or_default()),
            Content::Error(error) => println!("{}: {}", error.ename, error.evalue),
            _ => {}
        }
    }
    Ok(())
}
