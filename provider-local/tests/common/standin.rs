//! A kernel that needs nothing installed and starts in milliseconds: this test program, started anew.
//!
//! A test program that uses this must have an ignored test of the name [`TEST`] that calls [`serve_if_asked`].

use jupyter_protocol::content::{ExecuteReply, ExecuteRequest, KernelInfoReply, ReplyError};
use jupyter_protocol::kernel::{Context, Kernel, async_trait, serve};
use serde_json::{Value, json};

pub(crate) const TEST: &str = "be_a_kernel";

struct StandIn;

#[async_trait]
impl Kernel for StandIn {
    fn info(&self) -> KernelInfoReply {
        KernelInfoReply::default()
    }

    async fn execute(&self, _request: &ExecuteRequest, _context: &Context) -> Result<ExecuteReply, ReplyError> {
        Ok(ExecuteReply::default())
    }
}

/// Serves where the last argument is a connection file, as it is when a provider started this program.
pub(crate) async fn serve_if_asked() {
    if let Some(file) = std::env::args().next_back().filter(|last| last.ends_with(".json")) {
        serve(file, StandIn).await.unwrap();
    }
}

/// The kernelspec.
pub(crate) fn kernelspec() -> Value {
    kernelspec_after(":")
}

/// The kernelspec of one that runs a shell command first; `$1` is the connection file.
pub(crate) fn kernelspec_after(command: &str) -> Value {
    let program = std::env::current_exe().unwrap();
    let script = format!("{command}\nexec {} --ignored --exact {TEST} \"$1\"", program.display());
    json!({
        "argv": ["sh", "-c", script, "stand-in", "{connection_file}"],
        "display_name": "Stand-in",
        "language": "none",
    })
}
