//! Starts a kernel, runs code in it and prints what it puts out, as it comes.
//!
//! ```console
//! $ cargo run -p embed -- python3 'for i in range(3): print(i)'
//! ```

use std::error::Error;
use std::sync::Arc;

use kernelmux::local::{LocalConfig, LocalProvider};
use kernelmux::log::{LogOptions, Logs, MemoryStore};
use kernelmux::protocol::content::{Content, ExecuteRequest};
use kernelmux::{Manager, ManagerOptions, StartRequest};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let spec = args.next().unwrap_or_else(|| "python3".to_owned());
    let code = args.next().unwrap_or_else(|| "print('hello from a kernel')".to_owned());

    let state = tempfile::tempdir()?;
    let provider = LocalProvider::open(LocalConfig::new(state.path().join("kernels"))).await?;
    let logs = Logs::new(Arc::new(MemoryStore::new()), LogOptions::default())?;
    let manager = Manager::new(vec![Arc::new(provider)], logs, ManagerOptions::default());

    let kernel = manager.start(StartRequest::new(spec)).await?;
    let mut execution = kernel.execute(ExecuteRequest::new(code)).await?;
    while let Some(message) = execution.next().await {
        match message?.content {
            Content::Stream(stream) => print!("{}", stream.text),
            Content::ExecuteResult(result) => println!("{}", result.data.as_text("text/plain").unwrap_or_default()),
            Content::Error(error) => println!("{}: {}", error.ename, error.evalue),
            _ => {}
        }
    }
    manager.shutdown().await;
    Ok(())
}
