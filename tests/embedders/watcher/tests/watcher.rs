use std::sync::Arc;

use embedder_watcher::watch;
use gateway_client::GatewayClient;
use gateway_client::rest::GatewayClientOptions;
use jupyter_protocol::content::{ExecuteReply, ExecuteRequest, KernelInfoReply, ReplyError};
use jupyter_protocol::kernel::{Context, Kernel, async_trait};
use kernel_manager::Manager;
use kernel_provider::fake::{FakeProvider, FakeSpec};
use kernelmux_gateway::{Access, Gateway, GatewayOptions, Token, serve};
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// Prints a part, and the rest once it is released.
struct InParts(Arc<Notify>);

#[async_trait]
impl Kernel for InParts {
    fn info(&self) -> KernelInfoReply {
        KernelInfoReply::default()
    }

    async fn execute(&self, _: &ExecuteRequest, context: &Context) -> Result<ExecuteReply, ReplyError> {
        context.stdout("first ").await;
        self.0.notified().await;
        context.stdout("second").await;
        Ok(ExecuteReply::default())
    }
}

#[tokio::test]
async fn a_running_cell_is_found_and_followed_to_its_end() {
    let (provider, release) = (FakeProvider::new(), Arc::new(Notify::new()));
    let released = release.clone();
    provider.install("parts", FakeSpec::kernel(move || InParts(released.clone())));
    let manager = Manager::builder().provider(provider).open().await.unwrap();
    let options = GatewayOptions::new(Access::Token(Token::new("secret").unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(serve(listener, Arc::new(Gateway::new(manager, options))));
    let gateway = GatewayClient::new(GatewayClientOptions::new(url).with_token("secret")).unwrap();

    assert!(!watch(&gateway, "parts", |_| {}).await.unwrap());
    let kernel = gateway.start_kernel("parts").await.unwrap();
    let execution = gateway.execute(kernel.id, "run").await.unwrap();
    while gateway.execution(kernel.id, &execution.msg_id).await.unwrap().text() != "first " {
        tokio::task::yield_now().await;
    }
    let mut shown = String::new();
    let found = watch(&gateway, "parts", |text| {
        shown += text;
        release.notify_one();
    });
    assert!(found.await.unwrap());
    assert_eq!(shown, "first second");
}
