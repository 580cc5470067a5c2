//! The client over TLS, with sockets and in real time. A TLS proxy forwards connections to the gateway in memory.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use gateway_client::resume::client::rustls::crypto::{CryptoProvider, ring};
use gateway_client::resume::client::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use gateway_client::resume::client::rustls::server::WebPkiClientVerifier;
use gateway_client::resume::client::rustls::{ClientConfig, RootCertStore, ServerConfig};
use gateway_client::resume::client::{ConnectionLost, Event, ResumeClient, ResumeError, ResumeOptions};
use jupyter_protocol::KernelId;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional, sink};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::gateway::{Fault, Gateway, faulty};
use super::read_all;

const DEADLINE: Duration = Duration::from_secs(60);

type Chain = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

struct Issuer(CertifiedIssuer<'static, KeyPair>);

impl Issuer {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        // With equal names, the wrong issuer would cause another error: a bad signature.
        let name = uuid::Uuid::new_v4().to_string();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        Arc::new(roots)
    }

    fn issue(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Chain {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        (vec![certificate.der().clone()], key.into())
    }

    /// Returns the configuration of a server with a certificate for these names.
    fn serve(&self, names: &[&str]) -> Arc<ServerConfig> {
        serving(self.issue(names, |_| {}))
    }

    /// Returns the configuration of a client that trusts only this issuer.
    fn trusted(&self) -> Arc<ClientConfig> {
        let client = ClientConfig::builder_with_provider(provider());
        let client = client.with_safe_default_protocol_versions().unwrap();
        Arc::new(client.with_root_certificates(self.roots()).with_no_client_auth())
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn serving((chain, key): Chain) -> Arc<ServerConfig> {
    let server = ServerConfig::builder_with_provider(provider());
    let server = server.with_safe_default_protocol_versions().unwrap();
    Arc::new(server.with_no_client_auth().with_single_cert(chain, key).unwrap())
}

/// A TLS proxy on a port of 127.0.0.1. It ends with all its connections when dropped.
struct TlsProxy {
    port: u16,
    server: Arc<Mutex<Arc<ServerConfig>>>,
    /// Server names (SNI) that clients requested.
    server_names: Arc<Mutex<Vec<Option<String>>>>,
    _tasks: JoinSet<()>,
}

impl TlsProxy {
    async fn new(gateway: &Gateway, server: Arc<ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Arc::new(Mutex::new(server));
        let server_names = Arc::new(Mutex::default());
        let (gateway, of_tls, names) = (gateway.clone(), server.clone(), Arc::clone(&server_names));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let server = of_tls.lock().unwrap().clone();
                connections.spawn(forward(stream, server, gateway.clone(), Arc::clone(&names)));
            }
        });
        Self {
            port,
            server,
            server_names,
            _tasks: tasks,
        }
    }

    /// Returns the options of a client that connects through this proxy.
    fn options(&self, gateway: &Gateway, scheme: &str, host: &str, tls: Arc<ClientConfig>) -> ResumeOptions {
        let mut options = gateway.options();
        options.dial = None;
        options.url = format!("{scheme}://{host}:{}/base", self.port);
        options.tls = Some(tls);
        options
    }
}

async fn forward(
    stream: TcpStream,
    server: Arc<ServerConfig>,
    gateway: Gateway,
    server_names: Arc<Mutex<Vec<Option<String>>>>,
) {
    let mut stream = match TlsAcceptor::from(server).accept(stream).into_fallible().await {
        Ok(stream) => stream,
        Err((_, mut stream)) => {
            // Closing with unread bytes would reset the connection, and the client might not receive the alert.
            let _ = tokio::io::copy(&mut stream, &mut sink()).await;
            return;
        }
    };
    let name = stream.get_ref().1.server_name().map(str::to_owned);
    server_names.lock().unwrap().push(name);
    let mut inner = gateway.options().dial.unwrap()().await.unwrap();
    let _ = copy_bidirectional(&mut stream, &mut inner).await;
}

/// Connects, and returns the expected TLS error.
async fn tls_error(options: ResumeOptions) -> String {
    let error = timeout(DEADLINE, ResumeClient::connect(options)).await.unwrap().err();
    match error {
        Some(ResumeError::Unreachable(ConnectionLost::Tls(reason))) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_connection_cut_over_tls_loses_nothing() {
    let issuer = Issuer::new();
    for (scheme, host, sni) in [
        ("https", "localhost", Some("localhost")),
        ("wss", "LOCALHOST", Some("localhost")),
        ("wss", "127.0.0.1", None),
    ] {
        let gateway = Gateway::with_entries(200);
        gateway.script([faulty(5, Fault::Cut)]);
        gateway.end();
        let proxy = TlsProxy::new(&gateway, issuer.serve(&["localhost", "127.0.0.1"])).await;
        let options = proxy.options(&gateway, scheme, host, issuer.trusted());
        let view = timeout(DEADLINE, read_all(&gateway, options)).await.unwrap();
        assert_eq!(view.seqs(), (1..=200).collect::<Vec<_>>());
        assert_eq!(view.connections, 2, "{:?}", view.disconnects);
        let sni = sni.map(str::to_owned);
        assert_eq!(*proxy.server_names.lock().unwrap(), [sni.clone(), sni]);
        let host = format!("{host}:{}", proxy.port);
        let handshakes = gateway.handshakes();
        assert!(
            handshakes[0].path_and_query.starts_with("/base/api/kernels/"),
            "{host}: {handshakes:?}"
        );
    }
}

#[tokio::test]
async fn a_request_over_tls_is_answered() {
    let issuer = Issuer::new();
    let gateway = Gateway::new();
    let proxy = TlsProxy::new(&gateway, issuer.serve(&["localhost"])).await;
    let options = proxy.options(&gateway, "https", "localhost", issuer.trusted());
    // Larger than all buffers of the connection.
    let code = "x".repeat(8 << 20);
    let messages = timeout(DEADLINE, async {
        let mut client = ResumeClient::connect(options).await.unwrap();
        let mut execution = client
            .execute(jupyter_protocol::content::ExecuteRequest::new(code))
            .unwrap();
        let mut messages = Vec::new();
        while let Some(message) = execution.next().await.transpose().unwrap() {
            messages.push(message.msg_type().to_owned());
        }
        messages
    });
    assert_eq!(messages.await.unwrap(), ["status", "stream", "execute_reply", "status"]);
}

#[tokio::test]
async fn the_error_for_an_invalid_certificate_names_the_problem() {
    let issuer = Issuer::new();
    let gateway = Gateway::with_entries(1);
    let expired = issuer.issue(&["localhost"], |params| {
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(2001, 1, 1);
    });
    for (server, host, problem) in [
        (Issuer::new().serve(&["localhost"]), "localhost", "UnknownIssuer"),
        (
            issuer.serve(&["example.org"]),
            "localhost",
            "not valid for name \"localhost\"",
        ),
        (
            issuer.serve(&["localhost"]),
            "127.0.0.1",
            "not valid for name \"127.0.0.1\"",
        ),
        (serving(expired), "localhost", "expired"),
    ] {
        let proxy = TlsProxy::new(&gateway, server).await;
        let reason = tls_error(proxy.options(&gateway, "https", host, issuer.trusted())).await;
        assert!(reason.contains(problem), "{problem}: {reason}");
    }
    // No handshake reached the gateway, so no token was sent.
    assert!(gateway.handshakes().is_empty());
}

#[tokio::test]
async fn a_retrying_client_accepts_a_renewed_certificate() {
    let issuer = Issuer::new();
    let gateway = Gateway::with_entries(3);
    gateway.end();
    let proxy = TlsProxy::new(&gateway, Issuer::new().serve(&["localhost"])).await;
    let options = proxy.options(&gateway, "https", "localhost", issuer.trusted());
    let mut client = ResumeClient::new(options).unwrap();
    let mut seqs = Vec::new();
    let read = timeout(DEADLINE, async {
        while let Some(event) = client.next().await.unwrap() {
            match event {
                Event::Disconnected { reason, .. } => {
                    assert!(
                        matches!(&reason, ConnectionLost::Tls(text) if text.contains("UnknownIssuer")),
                        "{reason}"
                    );
                    *proxy.server.lock().unwrap() = issuer.serve(&["localhost"]);
                }
                Event::Entry(entry) => seqs.push(entry.seq.0),
                _ => {}
            }
        }
    });
    read.await.unwrap();
    assert_eq!(seqs, [1, 2, 3]);
}

#[tokio::test]
async fn a_client_authenticates_with_its_certificate() {
    let issuer = Issuer::new();
    let gateway = Gateway::with_entries(3);
    gateway.end();
    let clients = WebPkiClientVerifier::builder_with_provider(issuer.roots(), provider()).build();
    let server = ServerConfig::builder_with_provider(provider());
    let server = server.with_safe_default_protocol_versions().unwrap();
    let (chain, key) = issuer.issue(&["localhost"], |_| {});
    let server = server
        .with_client_cert_verifier(clients.unwrap())
        .with_single_cert(chain, key);
    let proxy = TlsProxy::new(&gateway, Arc::new(server.unwrap())).await;
    let options = proxy.options(&gateway, "https", "localhost", issuer.trusted());
    let reason = tls_error(options.clone()).await;
    assert!(reason.contains("CertificateRequired"), "{reason}");

    let (chain, key) = issuer.issue(&["a client"], |_| {});
    let client = ClientConfig::builder_with_provider(provider());
    let client = client.with_safe_default_protocol_versions().unwrap();
    let client = client
        .with_root_certificates(issuer.roots())
        .with_client_auth_cert(chain, key);
    let mut with_certificate = options;
    with_certificate.tls = Some(Arc::new(client.unwrap()));
    let view = timeout(DEADLINE, read_all(&gateway, with_certificate)).await.unwrap();
    assert_eq!(view.seqs(), [1, 2, 3]);
}

#[tokio::test]
async fn servers_without_tls_or_without_an_answer_are_errors() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let mut options = ResumeOptions::new(url, KernelId::random());
    options.tls = Some(Issuer::new().trusted());
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
        // The second connection gets no answer.
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
        // The third connection is closed.
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read_u8().await;
    });
    let reason = tls_error(options.clone()).await;
    assert!(reason.contains("corrupt message"), "{reason}");
    let mut impatient = options.clone();
    impatient.connect_timeout = Duration::from_millis(200);
    for options in [impatient, options] {
        let error = timeout(DEADLINE, ResumeClient::connect(options)).await.unwrap().err();
        assert!(
            matches!(error, Some(ResumeError::Unreachable(ConnectionLost::Unreachable(_)))),
            "{error:?}"
        );
    }
    timeout(DEADLINE, server).await.unwrap().unwrap();
}

#[test]
fn a_host_without_a_valid_server_name_is_refused() {
    for host in ["a..b", "-", "256.0.0.1"] {
        let mut options = ResumeOptions::new(format!("https://{host}"), KernelId::random());
        options.tls = Some(Issuer::new().trusted());
        let error = ResumeClient::new(options).err();
        assert!(
            matches!(error, Some(ResumeError::InvalidUrl { .. })),
            "{host}: {error:?}"
        );
    }
    for host in ["a-b.c", "a_b", "example.org.", "127.0.0.1", "[::1]:8443"] {
        let mut options = ResumeOptions::new(format!("wss://{host}"), KernelId::random());
        options.tls = Some(Issuer::new().trusted());
        assert!(ResumeClient::new(options).is_ok(), "{host}");
    }
}

/// Environment variables name the files of trusted certificates. A process cannot safely change its own environment, so
/// the test runs a client in a child process.
#[cfg(target_os = "linux")]
mod system {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    const URL: &str = "KERNELMUX_TEST_URL";

    async fn child(url: &str, trusted: &std::path::Path) -> String {
        let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", "tls::system::child_process", "--nocapture"])
            .env(URL, url)
            .env("SSL_CERT_FILE", trusted)
            .env_remove("SSL_CERT_DIR")
            .kill_on_drop(true);
        let output = timeout(DEADLINE, child.output()).await.unwrap().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[tokio::test]
    async fn child_process() {
        // Does nothing unless the other test starts it.
        let Ok(url) = std::env::var(URL) else { return };
        match ResumeClient::connect(ResumeOptions::new(url, KernelId::random())).await {
            Ok(_) => println!("connected"),
            Err(error) => println!("failed: {error}"),
        }
    }

    #[tokio::test]
    async fn only_the_systems_certificates_are_trusted_by_default() {
        let issuer = Issuer::new();
        let gateway = Gateway::with_entries(1);
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let pem = |der: &CertificateDer<'_>| {
            let text = STANDARD.encode(der);
            format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
        };
        let proxy = TlsProxy::new(&gateway, issuer.serve(&["localhost"])).await;
        let url = format!("https://localhost:{}/base", proxy.port);

        let output = child(&url, &write("issuer.pem", pem(issuer.0.der()))).await;
        assert!(output.contains("connected"), "{output}");
        let output = child(&url, &write("other.pem", pem(Issuer::new().0.der()))).await;
        assert!(
            output.contains("failed: cannot connect to the gateway: TLS failed: "),
            "{output}"
        );
        assert!(output.contains("UnknownIssuer"), "{output}");
        let output = child(&url, &write("none.pem", String::new())).await;
        assert!(output.contains("failed: TLS cannot be set up"), "{output}");
    }
}
