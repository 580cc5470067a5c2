//! Runs a long cell through a gateway, disconnects and reconnects while it runs, and shows that no output is missing.
//!
//! ```console
//! $ make demo             # or, if a Python kernel is installed: cargo run -p resume
//! ```

use std::error::Error;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use kernelmux::prelude::*;
use kernelmux::resume::client::{Event, ResumeClient, ResumeOptions};
use kernelmux_gateway::{Access, Gateway, GatewayOptions, Token, serve};
use tokio::net::TcpListener;

/// A cell that prints a hundred lines in five seconds.
const CELL: &str = "
import time
for line in range(1, 101):
    print(line, flush=True)
    time.sleep(0.05)
";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // The gateway with a kernel. It is usually another program on another machine.
    let state = tempfile::tempdir()?;
    let manager = Manager::builder().local(state.path().join("kernels")).open().await?;
    let token = Token::random();
    let options = GatewayOptions::new(Access::Token(token.clone()));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(serve(listener, Arc::new(Gateway::new(manager.clone(), options))));
    let kernel = manager.start("python3").await?;

    // The client.
    let options = ResumeOptions::new(url, kernel.id()).with_token(token.reveal());
    let mut client = ResumeClient::connect(options).await?;
    println!("A cell prints the numbers from 1 to 100:\n");
    let mut execution = client.execute(ExecuteRequest::new(CELL))?;
    let mut output = String::new();
    let mut connected = true;
    while let Some(message) = execution.next().await.transpose()? {
        let Content::Stream(stream) = message.content else {
            continue;
        };
        print!("{}", stream.text.replace('\n', " "));
        std::io::stdout().flush()?;
        output += &stream.text;

        if connected && output.lines().count() >= 40 {
            connected = false;
            let client = execution.client();
            client.disconnect();
            println!("\n\n    The connection is cut for two seconds.");
            tokio::time::sleep(Duration::from_secs(2)).await;
            if let Some(Event::Connected(hello)) = client.next().await? {
                let missed = hello.head.0 - hello.from.0;
                println!(
                    "    Resumed after entry {} of the kernel's log. It has {missed} new entries by now:\n",
                    hello.from
                );
            }
        }
    }
    manager.close(AtClose::EndKernels).await?;

    let expected: String = (1..=100).map(|line| format!("{line}\n")).collect();
    if output != expected {
        return Err(format!("{} lines arrived, but not all lines in order", output.lines().count()).into());
    }
    println!("\n\nAll 100 lines arrived in order: none is missing or repeated.");
    Ok(())
}
