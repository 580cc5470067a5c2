//! The REST client against servers that misbehave.
#![cfg(feature = "rest")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gateway_client::rest::{ExecutionQuery, ExecutionStatus, GatewayClientOptions, KernelState, NewKernel, RestError};
use gateway_client::rustls::crypto::ring;
use gateway_client::rustls::pki_types::PrivatePkcs8KeyDer;
use gateway_client::rustls::{ClientConfig, RootCertStore, ServerConfig};
use gateway_client::{GatewayClient, Transport};
use jupyter_protocol::KernelId;
use kernel_log::Seq;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

const TOKEN: &str = "t0ps3cret";
const DEADLINE: Duration = Duration::from_secs(60);

/// What the server does with a request.
#[derive(Clone)]
enum Script {
    /// Writes these bytes and closes the connection.
    Write(Vec<u8>),
    /// Writes these bytes and keeps the connection open.
    WriteAndWait(Vec<u8>),
    /// Writes the first bytes once, and then the second ones repeatedly, as fast as the client reads.
    Endless(&'static [u8], &'static [u8]),
}

/// A server on a port of 127.0.0.1 that treats each connection alike.
struct Server {
    port: u16,
    /// The requests, without their bodies.
    requests: Arc<Mutex<Vec<String>>>,
    _connections: JoinSet<()>,
}

impl Server {
    async fn new(script: Script) -> Self {
        Self::with_tls(script, None).await
    }

    async fn with_tls(script: Script, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (script, seen, tls) = (script.clone(), seen.clone(), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve(stream, script, &seen).await,
                        Some(tls) => {
                            if let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await {
                                serve(stream, script, &seen).await;
                            }
                        }
                    }
                });
            }
        });
        Self {
            port,
            requests,
            _connections: connections,
        }
    }

    /// Starts a server whose every response has this status line and JSON body.
    async fn json(status: &str, body: &str) -> Self {
        Self::new(Script::Write(response(status, "", body))).await
    }

    fn options(&self) -> GatewayClientOptions {
        GatewayClientOptions::new(format!("http://127.0.0.1:{}/base/path/", self.port)).with_token(TOKEN)
    }

    fn client(&self) -> GatewayClient {
        GatewayClient::new(self.options()).unwrap()
    }
}

async fn serve(mut stream: impl Transport, script: Script, requests: &Mutex<Vec<String>>) {
    let (mut request, mut buffer) = (Vec::new(), [0; 1024]);
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => request.extend_from_slice(&buffer[..count]),
        }
    }
    requests
        .lock()
        .unwrap()
        .push(String::from_utf8_lossy(&request).to_lowercase());
    // Writing fails when the client has disconnected, which some tests expect.
    match script {
        Script::Write(bytes) => {
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
        }
        Script::WriteAndWait(bytes) => {
            let _ = stream.write_all(&bytes).await;
            while matches!(stream.read(&mut buffer).await, Ok(1..)) {}
        }
        Script::Endless(head, piece) => {
            let mut written = stream.write_all(head).await;
            while written.is_ok() {
                written = stream.write_all(piece).await;
            }
        }
    }
}

fn response(status: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}\r\n{body}").into_bytes()
}

/// Awaits a request's result, and fails the test at the deadline. No error may contain the token.
async fn within_deadline<T>(result: impl Future<Output = Result<T, RestError>>) -> Result<T, RestError> {
    let result = timeout(DEADLINE, result).await.expect("the deadline passed");
    if let Err(error) = &result {
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains(TOKEN), "{shown}");
    }
    result
}

async fn list_error(client: &GatewayClient) -> RestError {
    within_deadline(client.list_kernels()).await.unwrap_err()
}

#[tokio::test]
async fn requests_have_the_base_path_the_token_and_escaped_ids() {
    let server = Server::json("404 Not Found", "{}").await;
    let (client, kernel) = (server.client(), KernelId::random());
    let query = ExecutionQuery::new()
        .with_cell_id("a&b=c")
        .with_session("ß")
        .with_status(ExecutionStatus::Running)
        .with_status(ExecutionStatus::Queued)
        .with_before(Seq(7))
        .with_limit(3);
    assert!(
        within_deadline(client.list_executions(kernel, &query))
            .await
            .unwrap_err()
            .is_not_found()
    );
    within_deadline(client.execution(kernel, "../a b?#/\u{e9}"))
        .await
        .unwrap_err();
    within_deadline(client.start_kernel(NewKernel::new("x").with_path("a/b")))
        .await
        .unwrap_err();
    within_deadline(client.shut_down_kernel(kernel)).await.unwrap_err();
    let requests = server.requests.lock().unwrap();
    let of_kernel = format!("/base/path/api/kernels/{kernel}");
    for (request, line) in requests.iter().zip([
        format!(
            "get {of_kernel}/executions?cellid=a%26b%3dc&session=%c3%9f&status=running%2cqueued&before=7&limit=3 http"
        ),
        format!("get {of_kernel}/executions/..%2fa%20b%3f%23%2f%c3%a9 http"),
        "post /base/path/api/kernels http".to_owned(),
        format!("delete {of_kernel} http"),
    ]) {
        assert!(request.starts_with(&line), "{request}");
        assert!(
            request.contains(&format!("\r\nauthorization: token {TOKEN}\r\n")),
            "{request}"
        );
        assert!(
            request.contains(&format!("\r\nhost: 127.0.0.1:{}\r\n", server.port)),
            "{request}"
        );
    }
    assert_eq!(requests.len(), 4);
}

#[tokio::test]
async fn an_error_has_the_status_and_the_gateways_explanation() {
    for (body, expected) in [
        (
            r#"{"reason": "Not Found", "message": "Kernel does not exist: x", "more": 1}"#,
            Some("Kernel does not exist: x"),
        ),
        (r#"{"reason": "Not Found", "message": ""}"#, Some("Not Found")),
        (r#"{"reason": null, "message": "gone"}"#, Some("gone")),
        ("{}", None),
        ("<html>secret</html>", None),
        ("", None),
        ("[1]", None),
    ] {
        for (line, code) in [
            ("404 Not Found", 404),
            ("500 Internal Server Error", 500),
            ("503 X", 503),
        ] {
            let server = Server::json(line, body).await;
            let error = list_error(&server.client()).await;
            let RestError::Status { status, message } = &error else {
                panic!("{error:?}")
            };
            assert_eq!((*status, message.as_deref()), (code, expected), "{body}");
            let text = error.to_string();
            assert!(text.contains(&code.to_string()), "{text}");
            assert!(text.contains(expected.unwrap_or_default()), "{text}");
        }
    }
}

#[tokio::test]
async fn redirects_are_errors_and_are_not_followed() {
    let target = Server::json("200 OK", "[]").await;
    for line in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect"] {
        let location = format!("location: http://127.0.0.1:{}/\r\n", target.port);
        let server = Server::new(Script::Write(response(line, &location, ""))).await;
        let error = list_error(&server.client()).await;
        assert_eq!(error.status().map(|status| status / 100), Some(3), "{error:?}");
        assert!(error.to_string().contains("redirects are not followed"), "{error}");
    }
    assert_eq!(*target.requests.lock().unwrap(), [""; 0]);
}

#[tokio::test]
async fn invalid_json_is_an_error_with_its_source() {
    for body in ["", "<html>", "{\"id\":", "{}", "[{\"id\": 1}]", "[null]", "\u{0}\u{1}"] {
        let server = Server::json("200 OK", body).await;
        let error = list_error(&server.client()).await;
        assert!(matches!(error, RestError::InvalidJson(_)), "{body:?}: {error:?}");
        assert!(error.source().is_some_and(|source| source.is::<serde_json::Error>()));
    }
}

#[tokio::test]
async fn unknown_fields_and_states_are_tolerated() {
    let id = KernelId::random();
    let body = format!(
        r#"[{{"id": "{id}", "name": "x", "last_activity": "2026-01-02T03:04:05.000006Z",
             "execution_state": "hibernating", "new": {{"a": [1]}}}}]"#
    );
    let server = Server::json("200 OK", &body).await;
    let kernels = within_deadline(server.client().list_kernels()).await.unwrap();
    assert_eq!((kernels[0].id, kernels.len()), (id, 1));
    assert_eq!(kernels[0].execution_state, KernelState::Unknown);
    assert_eq!((kernels[0].connections, &kernels[0].reason), (0, &None));
}

#[tokio::test]
async fn large_bodies_are_refused() {
    let endless = Script::Endless(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        b"8\r\n        \r\n",
    );
    let claimed = Script::WriteAndWait(b"HTTP/1.1 200 OK\r\ncontent-length: 9999999999999\r\n\r\n[1234567890".to_vec());
    for script in [endless, claimed] {
        let server = Server::new(script).await;
        let client = GatewayClient::new(server.options().with_max_body_bytes(10)).unwrap();
        let error = list_error(&client).await;
        assert!(matches!(error, RestError::TooLarge { limit: 10 }), "{error:?}");
    }
    // An error keeps its status although its body is not read to the end.
    let server = Server::new(Script::Endless(
        b"HTTP/1.1 500 X\r\ntransfer-encoding: chunked\r\n\r\n",
        b"8\r\n        \r\n",
    ))
    .await;
    let error = list_error(&server.client()).await;
    assert!(
        matches!(
            error,
            RestError::Status {
                status: 500,
                message: None
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn endless_headers_are_refused() {
    let server = Server::new(Script::Endless(b"HTTP/1.1 200 OK\r\n", b"x-header: 0123456789\r\n")).await;
    let error = list_error(&server.client()).await;
    assert!(matches!(error, RestError::Connection(_)), "{error:?}");
    assert!(error.source().is_some());
}

#[tokio::test]
async fn a_server_that_does_not_finish_a_response_times_out() {
    let limit = Duration::from_millis(100);
    for part in [
        "",
        "HTTP/1.1 200 OK\r\ncontent-",
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n[",
        "HTTP/1.1 500 X\r\ncontent-length: 9\r\n\r\n{",
    ] {
        let server = Server::new(Script::WriteAndWait(part.into())).await;
        let options = server.options().with_timeout(limit).with_launch_timeout(limit);
        let client = GatewayClient::new(options).unwrap();
        for error in [
            list_error(&client).await,
            within_deadline(client.start_kernel("x")).await.unwrap_err(),
        ] {
            assert!(
                matches!(error, RestError::TimedOut { limit: reported } if reported == limit),
                "{part:?}: {error:?}"
            );
        }
    }
}

#[tokio::test]
async fn broken_connections_are_errors_with_their_source() {
    for part in ["", "garbage\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n["] {
        let server = Server::new(Script::Write(part.into())).await;
        let error = list_error(&server.client()).await;
        assert!(matches!(error, RestError::Connection(_)), "{part:?}: {error:?}");
        assert!(error.source().is_some());
        // A request that may have arrived is not repeated.
        assert_eq!(server.requests.lock().unwrap().len(), 1);
    }
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let client = GatewayClient::new(GatewayClientOptions::new(format!("http://{closed}"))).unwrap();
    let error = list_error(&client).await;
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn invalid_addresses_and_tokens_are_refused() {
    for url in [
        "",
        "127.0.0.1",
        "ftp://host",
        "http://",
        "http://user:t0ps3cret@host",
        "http://host/?token=t0ps3cret",
    ] {
        let error = GatewayClient::new(GatewayClientOptions::new(url)).unwrap_err();
        assert!(matches!(error, RestError::InvalidUrl { .. }), "{url}: {error:?}");
        assert!(!format!("{error} {error:?}").contains(TOKEN));
    }
    let options = GatewayClientOptions::new("http://host").with_token("line\nbreak");
    assert!(matches!(GatewayClient::new(options), Err(RestError::InvalidToken)));
}

#[tokio::test]
async fn debug_output_has_neither_token_nor_address() {
    let options = GatewayClientOptions::new("http://host/t0ps3cret").with_token(TOKEN);
    let client = GatewayClient::new(options.clone()).unwrap();
    let resume = client.resume(KernelId::random());
    assert_eq!(resume.token.as_deref(), Some(TOKEN));
    assert_eq!(resume.url, options.url);
    let shown = format!("{options:?} {client:?} {resume:?}");
    assert!(shown.contains("GatewayClientOptions"));
    assert!(!shown.contains(TOKEN), "{shown}");
}

/// Returns the TLS configurations of a server with this name, and of a client that trusts the server.
fn tls(name: &str) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let issued = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(issued.signing_key.serialize_der());
    let chain = vec![issued.cert.der().clone()];
    let mut roots = RootCertStore::empty();
    roots.add(chain[0].clone()).unwrap();
    let provider = Arc::new(ring::default_provider());
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key.into())
        .unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), Arc::new(client))
}

#[tokio::test]
async fn tls_verifies_the_gateway_before_the_token_is_sent() {
    let (serving, trusting) = tls("localhost");
    let answers = Script::Write(response("200 OK", "", "[]"));
    let server = Server::with_tls(answers, Some(serving)).await;
    let to = |host: &str, tls: &Arc<ClientConfig>| {
        let options = GatewayClientOptions::new(format!("https://{host}:{}", server.port)).with_token(TOKEN);
        GatewayClient::new(options.with_tls(tls.clone())).unwrap()
    };
    let kernels = within_deadline(to("localhost", &trusting).list_kernels())
        .await
        .unwrap();
    assert_eq!(kernels, []);
    assert_eq!(server.requests.lock().unwrap().len(), 1);
    for client in [to("127.0.0.1", &trusting), to("localhost", &tls("localhost").1)] {
        let error = list_error(&client).await;
        assert!(matches!(error, RestError::Tls(_)), "{error:?}");
        assert!(error.source().is_some());
    }
    assert_eq!(server.requests.lock().unwrap().len(), 1);
}
