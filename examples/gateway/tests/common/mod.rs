//! A gateway on a TCP port of this machine, with kernels that run as tasks of the test.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, unreachable_pub)]

pub mod users;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{HeaderMap, Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kernel_log::{LogOptions, Logs, MemoryStore};
use kernel_manager::{AtClose, Manager, ManagerOptions};
use kernel_provider::fake::{FakeProvider, FakeSpec};
use kernel_provider::{
    AttachError, KernelHandle, KernelProvider, KernelRecord, LaunchError, LaunchRequest, Progress, ProviderError,
    Selector, Specs,
};
use kernelmux_gateway::{Access, Gateway, GatewayOptions, Token, serve};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// The token of every test gateway.
pub const TOKEN: &str = "s3cret";
/// A valid kernel id that no kernel has.
pub const UNKNOWN: &str = "00000000-0000-4000-8000-000000000000";
/// How long a test waits for anything before it fails.
const DEADLINE: Duration = Duration::from_secs(60);

/// The fake provider, which also records launch requests and gives its kernelspecs resource files.
pub struct RecordingProvider {
    pub fake: FakeProvider,
    pub launches: Mutex<Vec<LaunchRequest>>,
    /// Notified at each launch.
    pub launching: Notify,
    /// Whether `attach` may proceed. It waits while this is false.
    pub attaches: watch::Sender<bool>,
    specs: watch::Sender<Arc<Specs>>,
    resources: tempfile::TempDir,
}

impl RecordingProvider {
    fn new() -> Self {
        let resources = tempfile::tempdir().unwrap();
        std::fs::write(resources.path().join("kernel.json"), "{}").unwrap();
        std::fs::write(resources.path().join("logo-64x64.png"), b"\x89PNG logo").unwrap();
        std::fs::write(resources.path().join("logo-svg.svg"), "<svg/>").unwrap();
        Self {
            fake: FakeProvider::new(),
            launches: Mutex::default(),
            launching: Notify::new(),
            attaches: watch::Sender::new(true),
            specs: watch::Sender::default(),
            resources,
        }
    }

    /// Adds a kernelspec with the given `metadata`.
    pub fn install(&self, name: &str, spec: FakeSpec, metadata: Value) {
        let Value::Object(metadata) = metadata else {
            panic!("metadata must be an object")
        };
        let kernelspec = jupyter_protocol::kernelspec::Kernelspec {
            argv: vec!["fake".to_owned(), "{connection_file}".to_owned()],
            display_name: "Fake".to_owned(),
            language: "echo".to_owned(),
            metadata,
            ..Default::default()
        };
        self.fake.install(name, spec.with_kernelspec(kernelspec));
        self.refresh();
    }

    /// Adds a kernelspec that cannot be loaded, with the reason.
    pub fn install_broken(&self, name: &str, reason: &str) {
        self.specs.send_modify(|specs| {
            Arc::make_mut(specs).broken.insert(name.to_owned(), reason.to_owned());
        });
    }

    /// Copies the fake provider's kernelspecs, adds resource files and keeps the broken ones.
    fn refresh(&self) {
        let mut specs = (**self.fake.specs().borrow()).clone();
        specs.broken.clone_from(&self.specs.borrow().broken);
        for spec in specs.by_name.values_mut() {
            spec.resource_dir = self.resources.path().to_owned();
        }
        self.specs.send_replace(Arc::new(specs));
    }

    /// The request of the last launch.
    pub fn last_launch(&self) -> LaunchRequest {
        self.launches.lock().unwrap().last().unwrap().clone()
    }
}

#[async_trait]
impl KernelProvider for RecordingProvider {
    fn name(&self) -> &str {
        self.fake.name()
    }

    fn specs(&self) -> watch::Receiver<Arc<Specs>> {
        self.specs.subscribe()
    }

    async fn launch(&self, request: LaunchRequest, progress: Progress) -> Result<Arc<dyn KernelHandle>, LaunchError> {
        self.launches.lock().unwrap().push(request.clone());
        self.launching.notify_one();
        self.fake.launch(request, progress).await
    }

    async fn list(&self, selector: &Selector) -> Result<Vec<KernelRecord>, ProviderError> {
        self.fake.list(selector).await
    }

    async fn attach(&self, record: &KernelRecord) -> Result<Arc<dyn KernelHandle>, AttachError> {
        let _ = self.attaches.subscribe().wait_for(|attaches| *attaches).await;
        self.fake.attach(record).await
    }
}

/// A running gateway, stopped on drop.
pub struct Served {
    pub address: SocketAddr,
    pub manager: Manager,
    pub gateway: Arc<Gateway>,
    pub provider: Arc<RecordingProvider>,
    store: Arc<MemoryStore>,
    client: Client<HttpConnector, Full<Bytes>>,
    serving: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A complete HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Checks that this is an error with the given status in the gateway's error format, and returns its message.
    #[track_caller]
    pub fn error(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), "application/json");
        let body = self.json();
        let fields: Vec<&String> = body.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["reason", "message"]);
        let reason = StatusCode::from_u16(status).unwrap().canonical_reason().unwrap();
        assert_eq!(body["reason"], reason);
        body["message"].as_str().unwrap().to_owned()
    }
}

impl Served {
    /// Starts a gateway with the kernelspec `echo`, the token [`TOKEN`] and default options.
    pub async fn start() -> Self {
        Self::with(|_| {}, |_| {}).await
    }

    /// Starts a gateway like [`Served::start`] after adjusting its options.
    pub async fn with(gateway: impl FnOnce(&mut GatewayOptions), manager: impl FnOnce(&mut ManagerOptions)) -> Self {
        let provider = Arc::new(RecordingProvider::new());
        provider.install("echo", FakeSpec::echo(), serde_json::json!({}));
        Self::of(provider, Arc::new(MemoryStore::new()), gateway, manager).await
    }

    /// Replaces this gateway with another one for the same kernels and logs. The new gateway attaches to the kernels
    /// while [`RecordingProvider::attaches`] is true.
    pub async fn again(
        self,
        gateway: impl FnOnce(&mut GatewayOptions),
        manager: impl FnOnce(&mut ManagerOptions),
    ) -> Self {
        self.gateway.close();
        self.manager.close(AtClose::LeaveKernels).await.unwrap();
        let again = Self::of(self.provider.clone(), self.store.clone(), gateway, manager).await;
        again.manager.restore().await;
        again
    }

    async fn of(
        provider: Arc<RecordingProvider>,
        store: Arc<MemoryStore>,
        gateway: impl FnOnce(&mut GatewayOptions),
        manager: impl FnOnce(&mut ManagerOptions),
    ) -> Self {
        let logs = Logs::new(store.clone(), LogOptions::default()).unwrap();
        let mut manager_options = ManagerOptions::default();
        manager_options.default_spec = Some("echo".to_owned());
        manager(&mut manager_options);
        let manager = Manager::new(vec![provider.clone()], logs, manager_options);
        let mut options = GatewayOptions::new(Access::Token(Token::new(TOKEN).unwrap()));
        gateway(&mut options);
        let gateway = Arc::new(Gateway::new(manager.clone(), options));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(serve(listener, gateway.clone()));
        Self {
            address,
            manager,
            gateway,
            provider,
            store,
            client: Client::builder(TokioExecutor::new()).build_http(),
            serving,
        }
    }

    /// Waits until the gateway has stopped serving, for example after it was closed.
    pub async fn wait_for_end(&mut self) {
        timeout(DEADLINE, &mut self.serving)
            .await
            .expect("the gateway did not stop in time")
            .unwrap();
    }

    /// Sends a request with exactly these headers. They have to include the token if it is needed.
    pub async fn send_with_headers(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let mut request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).unwrap())
            .uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let answer = async {
            let (parts, body) = self.client.request(request).await.unwrap().into_parts();
            Answer {
                status: parts.status.as_u16(),
                headers: parts.headers,
                body: body.collect().await.unwrap().to_bytes(),
            }
        };
        timeout(DEADLINE, answer).await.expect("no answer in time")
    }

    /// Sends a request with the token and no body.
    pub async fn ask(&self, method: &str, path: &str) -> Answer {
        self.send(method, path, "").await
    }

    /// Sends a request with the token and this body.
    pub async fn send(&self, method: &str, path: &str, body: impl ToString) -> Answer {
        let authorization = format!("token {TOKEN}");
        self.send_with_headers(method, path, &[("authorization", &authorization)], body.to_string())
            .await
    }

    /// Starts a kernel and returns its model.
    pub async fn start_kernel(&self, body: Value) -> Value {
        let answer = self.send("POST", "/api/kernels", body).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.json()
    }

    /// Opens the WebSocket of a kernel, and returns the stream after the handshake.
    pub async fn websocket(&self, kernel: &str) -> TcpStream {
        let path = format!("/api/kernels/{kernel}/channels?token={TOKEN}");
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        stream
    }

    /// Sends these bytes over a new connection, and returns everything received until it is closed.
    pub async fn send_raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // The gateway may close the connection before it has read everything.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = timeout(DEADLINE, stream.read_to_end(&mut answer))
            .await
            .expect("the connection was not closed in time");
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// Whether the text is a timestamp in the format that jupyter_server's gateway client parses.
pub fn is_timestamp(value: &Value) -> bool {
    let text = value.as_str().unwrap();
    text.len() == "2026-01-02T03:04:05.123456Z".len()
        && chrono::NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.6fZ").is_ok()
}
