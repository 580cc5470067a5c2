//! Attaches to a running kernel and prints its executions and outputs: `attach [CONNECTION_FILE | PART_OF_ITS_NAME]`.
//!
//! Without an argument, it uses the connection file that was modified last.

use std::error::Error;
use std::io::Write as _;

use jupyter_protocol::ConnectionInfo;
use jupyter_protocol::client::{Client, ClientError};
use jupyter_protocol::content::Content;
use jupyter_protocol::paths::PathEnv;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let wanted = std::env::args().nth(1).unwrap_or_else(|| "kernel-*.json".to_owned());
    let file = ConnectionInfo::find(&wanted, &PathEnv::from_process())?;
    let client = Client::connect(&ConnectionInfo::read(&file)?).await?;
    let mut iopub = client.iopub();
    let info = client.kernel_info().await?;
    eprintln!(
        "attached to {} ({}), Ctrl-C detaches",
        file.display(),
        info.implementation
    );
    loop {
        let message = match iopub.recv().await {
            Ok(message) => message,
            Err(ClientError::Lagged { missed }) => {
                eprintln!("({missed} messages missed)");
                continue;
            }
            Err(error) => {
                eprintln!("{error}");
                return Ok(());
            }
        };
        match message.content {
            Content::ExecuteInput(input) => println!("In [{}]: {}", input.execution_count.unwrap_or(0), input.code),
            Content::Stream(stream) => print!("{}", stream.text),
            Content::ExecuteResult(result) => println!("{}", result.data.plain_text().unwrap_or_default()),
            Content::DisplayData(display) => println!("{}", display.data.plain_text().unwrap_or_default()),
            Content::Error(error) => println!("{}: {}", error.ename, error.evalue),
            _ => {}
        }
        std::io::stdout().flush()?;
    }
}
