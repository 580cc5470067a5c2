//! A kernel that writes each line of a cell to its output, unless the line begins with a command.

use std::time::Duration;

use jupyter_protocol::content::*;
use jupyter_protocol::kernel::{Context, Kernel, async_trait, serve};
use serde_json::json;

const COMMANDS: [(&str, &str); 8] = [
    ("%clear", "removes the outputs"),
    ("%display", "shows the rest of the line in bold"),
    ("%error", "fails with the rest of the line"),
    ("%input", "asks for a line and echoes it"),
    ("%page", "shows the rest of the line in the pager"),
    ("%result", "returns the rest of the line as the cell's result"),
    ("%sleep", "waits for a number of seconds, and can be interrupted"),
    ("%stderr", "writes the rest of the line to the standard error"),
];

struct Echo;

#[async_trait]
impl Kernel for Echo {
    fn info(&self) -> KernelInfoReply {
        KernelInfoReply {
            implementation: "echo-kernel".to_owned(),
            language_info: LanguageInfo {
                name: "echo".to_owned(),
                file_extension: ".txt".to_owned(),
                ..LanguageInfo::default()
            },
            banner: "A kernel that echoes. Type % and Tab for its commands.".to_owned(),
            ..KernelInfoReply::default()
        }
    }

    async fn execute(&self, request: &ExecuteRequest, context: &Context) -> Result<ExecuteReply, ReplyError> {
        let mut reply = ExecuteReply::default();
        for line in request.code.lines() {
            let (command, text) = line.split_once(' ').unwrap_or((line, ""));
            let data = MimeBundle::from_text(text);
            match command {
                "%clear" => context.clear_output(false).await,
                "%display" => context.display(data.with("text/markdown", format!("**{text}**"))).await,
                "%error" => return Err(ReplyError::new("EchoError", text)),
                "%input" => context.stdout(context.input(text, false).await? + "\n").await,
                "%page" => reply.payload.push(json!({"source": "page", "data": data, "start": 0})),
                "%result" => context.result(data).await,
                "%sleep" => {
                    let seconds = text.parse().map_err(|_| ReplyError::new("EchoError", "not a number"))?;
                    tokio::time::sleep(Duration::from_secs(seconds)).await;
                }
                "%stderr" => context.stderr(format!("{text}\n")).await,
                _ => context.stdout(format!("{line}\n")).await,
            }
        }
        Ok(reply)
    }

    async fn complete(&self, request: &CompleteRequest, _context: &Context) -> CompleteReply {
        let matching = COMMANDS.iter().filter(|(name, _)| name.starts_with(&request.code));
        CompleteReply {
            matches: matching.map(|(name, _)| (*name).to_owned()).collect(),
            cursor_end: request.cursor_pos,
            ..CompleteReply::default()
        }
    }

    async fn inspect(&self, request: &InspectRequest, _context: &Context) -> InspectReply {
        let about = COMMANDS.iter().find(|(name, _)| request.code.starts_with(name));
        InspectReply {
            found: about.is_some(),
            data: about.map_or_else(MimeBundle::new, |(_, text)| MimeBundle::from_text(*text)),
            ..InspectReply::default()
        }
    }

    async fn is_complete(&self, request: &IsCompleteRequest, _context: &Context) -> IsCompleteReply {
        IsCompleteReply::new(match request.code.as_str() {
            code if code.ends_with('\\') => Completeness::Incomplete,
            code if code.starts_with("%%") => Completeness::Invalid,
            _ => Completeness::Complete,
        })
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let connection_file = std::env::args().nth(1).ok_or("usage: echo-kernel CONNECTION_FILE")?;
    serve(connection_file, Echo).await?;
    Ok(())
}
