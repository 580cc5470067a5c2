use embedder_chat::{Chat, Conversation};
use kernel_provider::fake::{FakeProvider, FakeSpec};
use kernelmux::prelude::*;
use kernelmux::protocol::content::{ExecuteReply, KernelInfoReply, ReplyError};
use kernelmux::protocol::kernel::{self, Context, async_trait};

/// Greets by name, counts its executions, and fails on request.
struct Greeter;

#[async_trait]
impl kernel::Kernel for Greeter {
    fn info(&self) -> KernelInfoReply {
        KernelInfoReply::default()
    }

    async fn execute(&self, request: &ExecuteRequest, context: &Context) -> Result<ExecuteReply, ReplyError> {
        if request.code == "fail" {
            return Err(ReplyError::new("Failed", "as asked"));
        }
        let name = context.input("Name? ", false).await?;
        context.stdout(format!("hello {name}, ")).await;
        context.stdout(format!("cell {:?}", context.execution_count())).await;
        Ok(ExecuteReply::default())
    }
}

#[derive(Default)]
struct Script {
    shown: String,
}

impl Conversation for Script {
    fn show(&mut self, text: &str) {
        self.shown += text;
    }

    async fn ask(&mut self, prompt: &str) -> String {
        self.shown += prompt;
        "Ada".to_owned()
    }
}

#[tokio::test]
async fn each_user_has_a_kernel_that_streams_output_and_requests_input() {
    let provider = FakeProvider::new();
    provider.install("greeter", FakeSpec::kernel(|| Greeter));
    let manager = Manager::builder().provider(provider.clone()).open().await.unwrap();
    let chat = Chat::new(manager.clone(), "greeter");
    for (user, count) in [("ada", 1), ("ada", 2), ("bob", 1)] {
        let mut script = Script::default();
        chat.run(user, "greet", &mut script).await.unwrap();
        assert_eq!(script.shown, format!("Name? hello Ada, cell Some({count})"));
    }
    let mut script = Script::default();
    chat.run("bob", "fail", &mut script).await.unwrap();
    assert_eq!(script.shown, "Failed: as asked");
    assert_eq!(provider.running(), 2);
    chat.leave("ada").await.unwrap();
    assert_eq!(provider.running(), 1);
    manager.close(AtClose::EndKernels).await.unwrap();
}
