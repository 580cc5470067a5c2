//! A kernel that adds the numbers of a line: `1 2 3` is 6.
use jupyter_protocol::content::*;
use jupyter_protocol::kernel::{Context, Kernel, async_trait, serve};

struct Sums;

#[async_trait]
impl Kernel for Sums {
    fn info(&self) -> KernelInfoReply {
        KernelInfoReply {
            implementation: "sums".to_owned(),
            ..KernelInfoReply::default()
        }
    }

    async fn execute(&self, request: &ExecuteRequest, context: &Context) -> Result<ExecuteReply, ReplyError> {
        for line in request.code.lines() {
            let numbers: Result<Vec<f64>, _> = line.split_whitespace().map(str::parse).collect();
            let numbers = numbers.map_err(|_| ReplyError::new("NotANumber", line))?;
            let sum: f64 = numbers.iter().sum();
            context.stdout(format!("{sum}\n")).await;
        }
        Ok(ExecuteReply::default())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let connection_file = std::env::args().nth(1).ok_or("usage: sums CONNECTION_FILE")?;
    serve(connection_file, Sums).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use jupyter_protocol::client::{Client, ExecutionEvent};
    use jupyter_protocol::kernel::Server;
    use jupyter_protocol::{Channel, ConnectionInfo, Key};

    use super::*;

    #[tokio::test]
    async fn lines_are_added_and_words_are_errors() {
        let mut info = ConnectionInfo {
            ip: "127.0.0.1".to_owned(),
            key: Key::random(),
            ..ConnectionInfo::default()
        };
        for channel in [Channel::Shell, Channel::Iopub, Channel::Stdin, Channel::Control] {
            info.set_port(channel, 0);
        }
        let server = Server::bind(info, Sums).await.unwrap();
        let client = Client::connect(server.connection_info()).await;
        let (client, running) = (client, tokio::spawn(server.run()));
        let client = client.unwrap();
        let mut execution = client.execute(ExecuteRequest::new("1 2 3\n0.5 0.25")).await.unwrap();
        let mut text = String::new();
        while let Some(event) = execution.next().await {
            if let ExecutionEvent::Output(message) = event.unwrap()
                && let Content::Stream(stream) = message.content
            {
                text += &stream.text;
            }
        }
        assert_eq!(text, "6\n0.75\n");
        let failed = client.execute(ExecuteRequest::new("one")).await.unwrap();
        let error = failed.reply().await.unwrap().into_result().unwrap_err();
        assert!(error.to_string().contains("NotANumber"), "{error}");
        running.abort();
    }
}
