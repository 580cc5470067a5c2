//! Starts a kernel, runs code in it and prints its output as it arrives.
//!
//! ```console
//! $ cargo run -p embed -- python3 'for i in range(3): print(i)'
//! ```

use std::error::Error;

use kernelmux::prelude::*;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let spec = args.next().unwrap_or_else(|| "python3".to_owned());
    let code = args.next().unwrap_or_else(|| "print('hello from a kernel')".to_owned());
    let mut terminated = signal(SignalKind::terminate())?;

    let state = tempfile::tempdir()?;
    let manager = Manager::builder().local(state.path().join("kernels")).open().await?;
    let outcome = tokio::select! {
        outcome = show(&manager, spec, &code) => outcome,
        // Kernels outlive this program unless they are ended.
        _ = terminated.recv() => Err("ended by SIGTERM".into()),
        _ = tokio::signal::ctrl_c() => Err("ended by Ctrl-C".into()),
    };
    manager.close(AtClose::EndKernels).await?;
    outcome
}

async fn show(manager: &Manager, spec: String, code: &str) -> Result<(), Box<dyn Error>> {
    let kernel = manager.start(spec).await?;
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
