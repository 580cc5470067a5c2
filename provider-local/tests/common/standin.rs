//! A kernel that needs no installation and starts in milliseconds: the test program itself.
//!
//! A test program that uses this needs an ignored test named [`TEST`] that calls [`serve_if_requested`].

use jupyter_protocol::content::{ExecuteReply, ExecuteRequest, KernelInfoReply, ReplyError};
use jupyter_protocol::kernel::{Context, Kernel, async_trait, serve};
use serde_json::{Value, json};

use super::common::Fixture;

pub(crate) const TEST: &str = "serve_as_kernel";

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

/// Serves as a kernel if the last argument is a connection file, that is, if a provider started this program.
pub(crate) async fn serve_if_requested() {
    if let Some(file) = std::env::args().next_back().filter(|last| last.ends_with(".json")) {
        serve(file, StandIn).await.unwrap();
    }
}

/// A fixture with the stand-in as a kernelspec.
pub(crate) fn fixture() -> Fixture {
    let fixture = Fixture::new();
    fixture.install("stand-in", &kernelspec());
    fixture
}

/// The stand-in's kernelspec.
pub(crate) fn kernelspec() -> Value {
    kernelspec_after(":")
}

/// The kernelspec of a stand-in that first runs a shell command; `$1` is the connection file.
pub(crate) fn kernelspec_after(command: &str) -> Value {
    let program = std::env::current_exe().unwrap();
    let script = format!("{command}\nexec {} --ignored --exact {TEST} \"$1\"", program.display());
    json!({
        "argv": ["sh", "-c", script, "stand-in", "{connection_file}"],
        "display_name": "Stand-in",
        "language": "none",
    })
}
