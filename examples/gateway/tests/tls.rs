//! TLS: handshakes, certificates that change, clients' certificates, and clients that do not speak it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use common::{Served, TOKEN};
use futures::{SinkExt, StreamExt};
use gateway_client::GatewayClient;
use gateway_client::rest::{GatewayClientOptions, NewKernel};
use gateway_client::resume::Start;
use gateway_client::resume::client::{Event, ResumeClient};
use kernelmux_gateway::{Access, GatewayOptions, GroupRoles, Role, Tls, TlsOptions, TlsVersion, TrustedHeader};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion, version};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};

/// How long a test waits for anything before it fails.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long streams may go on whose certificate is no longer trusted.
const REVOKED_WITHIN: Duration = Duration::from_secs(2);
const HOST: &str = "gateway.example";

/// Issues certificates.
struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self {
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    fn issue(&self, adjust: impl FnOnce(&mut CertificateParams)) -> Issued {
        let mut params = CertificateParams::new(vec![HOST.to_owned(), "localhost".to_owned()]).unwrap();
        adjust(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Issued { certificate, key }
    }

    fn server(&self) -> Issued {
        self.issue(|_| {})
    }

    /// A certificate of this user in a group.
    fn client(&self, name: &str, group: &str) -> Issued {
        self.issue(|params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            params.distinguished_name.push(DnType::CommonName, name);
            params.distinguished_name.push(DnType::OrganizationName, group);
        })
    }
}

struct Issued {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Issued {
    fn certificate_pem(&self) -> String {
        pem("CERTIFICATE", self.certificate.der())
    }

    fn key_pem(&self) -> String {
        pem("PRIVATE KEY", &self.key.serialize_der())
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

/// A folder with the files of a gateway.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new(server: &Issued, client_ca: &Authority) -> Self {
        let files = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        files.write(server);
        files.write_client_ca(client_ca);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, server: &Issued) {
        fs::write(self.path("tls.crt"), server.certificate_pem()).unwrap();
        fs::write(self.path("tls.key"), server.key_pem()).unwrap();
    }

    fn write_client_ca(&self, authority: &Authority) {
        fs::write(
            self.path("clients.crt"),
            pem("CERTIFICATE", authority.certificate.der()),
        )
        .unwrap();
    }

    fn options(&self) -> TlsOptions {
        TlsOptions::new(self.path("tls.crt"), self.path("tls.key")).with_client_ca(self.path("clients.crt"))
    }
}

/// A gateway with TLS.
struct Secured {
    served: Served,
    files: Files,
    /// The issuer of the gateway's certificate.
    authority: Authority,
    clients: Authority,
}

impl Secured {
    async fn start() -> Self {
        Self::with(|options| options, |_| {}).await
    }

    async fn with(tls: impl FnOnce(TlsOptions) -> TlsOptions, adjust: impl FnOnce(&mut GatewayOptions)) -> Self {
        let (authority, clients) = (Authority::new("servers"), Authority::new("clients"));
        let files = Files::new(&authority.server(), &clients);
        let tls = Tls::open(tls(files.options())).unwrap();
        let served = Served::with(
            |options| {
                options.tls = Some(tls);
                options.strict_transport = Duration::from_secs(3_600);
                options.group_roles = GroupRoles::new(vec![("ops".to_owned(), Role::Operator)]);
                adjust(options);
            },
            |_| {},
        )
        .await;
        Self {
            served,
            files,
            authority,
            clients,
        }
    }

    fn client_config(&self, client: &Client) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.certificate.der().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&client.versions)
            .unwrap()
            .with_root_certificates(roots);
        match &client.certificate {
            Some(own) => {
                let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(own.key.serialize_der()));
                config
                    .with_client_auth_cert(vec![own.certificate.der().clone()], key)
                    .unwrap()
            }
            None => config.with_no_client_auth(),
        }
    }

    async fn connect(&self, client: &Client) -> io::Result<TlsStream<TcpStream>> {
        let mut config = self.client_config(client);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let stream = TcpStream::connect(self.served.address).await?;
        let name = ServerName::try_from(HOST).unwrap();
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
        timeout(DEADLINE, connecting).await.expect("no handshake in time")
    }

    /// The status and the rest of the answer to a GET request.
    async fn get(&self, client: &Client, path: &str, headers: &str) -> io::Result<(u16, String)> {
        let mut stream = self.connect(client).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        let read = timeout(DEADLINE, stream.read_to_end(&mut answer))
            .await
            .expect("no answer in time");
        // hyper closes connections whose request has the header Upgrade without a TLS alert.
        if answer.is_empty() {
            read?;
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        Ok((status, answer))
    }

    /// The user that the gateway takes the client for, and whether they may read the metrics.
    async fn who(&self, client: &Client, headers: &str) -> Option<(String, bool)> {
        let (status, answer) = self.get(client, "/api/me", headers).await.unwrap();
        let body: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        let (metrics, _) = self.get(client, "/metrics", headers).await.unwrap();
        let name = body["identity"]["username"].as_str();
        (status == 200).then(|| (name.unwrap().to_owned(), metrics == 200))
    }

    async fn socket(&self, client: &Client, kernel: &str) -> WebSocketStream<TlsStream<TcpStream>> {
        let url = format!("wss://{HOST}/api/kernels/{kernel}/channels");
        let mut request = url.into_client_request().unwrap();
        if client.certificate.is_none() {
            let token = format!("token {TOKEN}").parse().unwrap();
            request.headers_mut().insert("authorization", token);
        }
        client_async(request, self.connect(client).await.unwrap())
            .await
            .unwrap()
            .0
    }

    async fn start_kernel(&self, owner: &str) -> String {
        let request = kernel_manager::StartRequest::new("echo").with_owner(owner);
        self.served.manager.start(request).await.unwrap().id().to_string()
    }

    /// The certificate that the gateway presents.
    async fn presented(&self, client: &Client) -> CertificateDer<'static> {
        let stream = self.connect(client).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone()
    }

    async fn until_presented(&self, certificate: &Issued) {
        let presented = async {
            while self.presented(&Client::default()).await != *certificate.certificate.der() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(DEADLINE, presented)
            .await
            .expect("the certificate is never presented");
    }
}

/// How a client connects.
struct Client {
    certificate: Option<Issued>,
    versions: Vec<&'static SupportedProtocolVersion>,
}

impl Default for Client {
    fn default() -> Self {
        Self {
            certificate: None,
            versions: vec![&version::TLS12, &version::TLS13],
        }
    }
}

impl Client {
    fn with(certificate: Issued) -> Self {
        Self {
            certificate: Some(certificate),
            ..Self::default()
        }
    }

    fn of_version(version: &'static SupportedProtocolVersion) -> Self {
        Self {
            versions: vec![version],
            ..Self::default()
        }
    }
}

fn with_token() -> String {
    format!("Authorization: token {TOKEN}\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn both_versions_are_spoken_unless_one_is_excluded() {
    let any = Secured::start().await;
    for (version, protocol) in [
        (&version::TLS12, ProtocolVersion::TLSv1_2),
        (&version::TLS13, ProtocolVersion::TLSv1_3),
    ] {
        let client = Client::of_version(version);
        let stream = any.connect(&client).await.unwrap();
        let connection = stream.get_ref().1;
        assert_eq!(connection.protocol_version(), Some(protocol));
        assert_eq!(connection.alpn_protocol(), Some(&b"http/1.1"[..]));
        let (status, answer) = any.get(&client, "/api/kernels", &with_token()).await.unwrap();
        assert_eq!(status, 200);
        assert!(
            answer
                .to_lowercase()
                .contains("strict-transport-security: max-age=3600\r\n"),
            "{answer}"
        );
        assert_eq!(any.get(&client, "/api/kernels", "").await.unwrap().0, 401);
    }
    let new = Secured::with(|options| options.with_min_version(TlsVersion::V1_3), |_| {}).await;
    assert!(new.connect(&Client::of_version(&version::TLS13)).await.is_ok());
    assert!(new.connect(&Client::of_version(&version::TLS12)).await.is_err());
    // A page without TLS is another origin, even of the same host.
    let post = |origin: &str| format!("Origin: {origin}\r\nUpgrade: websocket\r\n");
    let open = Secured::with(|options| options, |options| options.access = Access::Open).await;
    let client = Client::default();
    for (origin, status) in [("https://gateway.example", 404), ("http://gateway.example", 403)] {
        let path = format!("/api/kernels/{}", common::UNKNOWN);
        assert_eq!(
            open.get(&client, &path, &post(origin)).await.unwrap().0,
            status,
            "{origin}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_used_and_open_connections_stay() {
    let gateway = Secured::start().await;
    let kernel = gateway.start_kernel("ada").await;
    let mut socket = gateway.socket(&Client::default(), &kernel).await;
    let renewed = gateway.authority.server();
    gateway.files.write(&renewed);
    gateway.until_presented(&renewed).await;
    // Wrong files change nothing: no pair, no certificate, no file.
    let other = gateway.authority.server();
    fs::write(gateway.files.path("tls.key"), other.key_pem()).unwrap();
    fs::write(gateway.files.path("tls.crt"), "-----BEGIN CERTIFICATE-----\n").unwrap();
    fs::remove_file(gateway.files.path("clients.crt")).unwrap();
    assert_eq!(gateway.presented(&Client::default()).await, *renewed.certificate.der());
    gateway.files.write_client_ca(&gateway.clients);
    let last = gateway.authority.server();
    gateway.files.write(&last);
    gateway.until_presented(&last).await;
    // The WebSocket was open all the time.
    socket.send(Message::Ping("still there".into())).await.unwrap();
    let pong = async {
        while let Some(message) = socket.next().await {
            if let Message::Pong(data) = message.unwrap() {
                return &*data == b"still there";
            }
        }
        false
    };
    assert!(timeout(DEADLINE, pong).await.unwrap());
}

/// Replaces the folder behind a link, as Kubernetes does for mounted Secrets.
fn publish(root: &Path, version: &str, server: &Issued) {
    let folder = root.join(version);
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("tls.crt"), server.certificate_pem()).unwrap();
    fs::write(folder.join("tls.key"), server.key_pem()).unwrap();
    let link = root.join("..data_tmp");
    std::os::unix::fs::symlink(version, &link).unwrap();
    fs::rename(link, root.join("..data")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_in_a_mounted_secret_are_followed() {
    let authority = Authority::new("servers");
    let folder = tempfile::tempdir().unwrap();
    let first = authority.server();
    publish(folder.path(), "..1", &first);
    for name in ["tls.crt", "tls.key"] {
        std::os::unix::fs::symlink(format!("..data/{name}"), folder.path().join(name)).unwrap();
    }
    let path = folder.path().to_owned();
    let gateway = Secured::with(|_| TlsOptions::new(path.join("tls.crt"), path.join("tls.key")), |_| {}).await;
    let gateway = Secured { authority, ..gateway };
    gateway.until_presented(&first).await;
    let second = gateway.authority.server();
    publish(folder.path(), "..2", &second);
    gateway.until_presented(&second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_certificates_name_users_and_groups() {
    let gateway = Secured::start().await;
    let who = async |certificate: Issued, headers: &str| gateway.who(&Client::with(certificate), headers).await;
    let user = |name: &str, sees_metrics: bool| Some((name.to_owned(), sees_metrics));
    assert_eq!(
        who(gateway.clients.client("ada", "staff"), "").await,
        user("ada", false)
    );
    assert_eq!(who(gateway.clients.client("eve", "ops"), "").await, user("eve", true));
    // A right token decides; a wrong one does not matter.
    let shared = who(gateway.clients.client("ada", "staff"), &with_token())
        .await
        .unwrap();
    assert!(shared.1 && shared.0 != "ada", "{shared:?}");
    let wrong = "Authorization: token wrong\r\n";
    assert_eq!(
        who(gateway.clients.client("ada", "staff"), wrong).await,
        user("ada", false)
    );
    assert_eq!(gateway.get(&Client::default(), "/api/me", "").await.unwrap().0, 401);
    // A certificate that names no user is as good as none.
    let nameless = gateway.clients.issue(|params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.distinguished_name.push(DnType::CommonName, "a/b");
    });
    assert_eq!(who(nameless, "").await, None);
    let own = gateway.start_kernel("ada").await;
    let client = Client::with(gateway.clients.client("ada", "staff"));
    assert_eq!(
        gateway
            .get(&client, &format!("/api/kernels/{own}"), "")
            .await
            .unwrap()
            .0,
        200
    );
    let peer = Client::with(gateway.clients.client("bob", "staff"));
    assert_eq!(
        gateway.get(&peer, &format!("/api/kernels/{own}"), "").await.unwrap().0,
        404
    );
    // A foreign page cannot use the browser's certificate.
    let foreign = "Origin: https://evil.example\r\nUpgrade: websocket\r\n";
    assert_eq!(
        gateway
            .get(&client, &format!("/api/kernels/{own}"), foreign)
            .await
            .unwrap()
            .0,
        403
    );

    let expired = gateway.clients.issue(|params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.distinguished_name.push(DnType::CommonName, "ada");
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    let of_server = gateway.clients.issue(|params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.distinguished_name.push(DnType::CommonName, "ada");
    });
    let foreign = Authority::new("clients").client("ada", "staff");
    for refused in [expired, of_server, foreign] {
        // With TLS 1.3, the client learns of the refusal when it reads.
        let client = Client::with(refused);
        assert!(gateway.get(&client, "/healthz", "").await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_issuers_end_the_streams_of_clients_certificates() {
    let gateway = Secured::start().await;
    let kernel = gateway.start_kernel("ada").await;
    let ada = Client::with(gateway.clients.client("ada", "staff"));
    let mut of_certificate = gateway.socket(&ada, &kernel).await;
    let mut of_token = gateway.socket(&Client::default(), &kernel).await;
    let others = Authority::new("other clients");
    gateway.files.write_client_ca(&others);
    let began = Instant::now();
    let ended = async { while of_certificate.next().await.is_some_and(|message| message.is_ok()) {} };
    timeout(DEADLINE, ended).await.expect("the stream goes on");
    assert!(began.elapsed() < REVOKED_WITHIN, "{:?}", began.elapsed());
    of_token.send(Message::Ping("x".into())).await.unwrap();
    let pong = async {
        loop {
            if let Message::Pong(_) = of_token.next().await.unwrap().unwrap() {
                return;
            }
        }
    };
    timeout(DEADLINE, pong).await.unwrap();
    assert!(gateway.get(&ada, "/healthz", "").await.is_err());
    let ada = Client::with(others.client("ada", "staff"));
    assert_eq!(gateway.who(&ada, "").await.unwrap().0, "ada");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_known_by_its_certificate() {
    let header = "x-forwarded-user".parse().unwrap();
    let mut trusted = TrustedHeader::new(header, Vec::new());
    trusted.certificates = vec!["proxy".to_owned()];
    let gateway = Secured::with(|options| options, |options| options.trusted_header = Some(trusted)).await;
    let named = "X-Forwarded-User: eve\r\n";
    let proxy = || Client::with(gateway.clients.client("proxy", "staff"));
    assert_eq!(gateway.who(&proxy(), named).await.unwrap().0, "eve");
    assert_eq!(gateway.who(&proxy(), "").await, None);
    let ada = Client::with(gateway.clients.client("ada", "staff"));
    assert_eq!(gateway.who(&ada, named).await.unwrap().0, "ada");
    assert_eq!(gateway.get(&Client::default(), "/api/me", named).await.unwrap().0, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_without_a_handshake_get_an_explanation_and_delay_nobody() {
    let gateway = Secured::start().await;
    let answer = gateway.served.send_raw(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.1 400 ") && answer.contains("https://"),
        "{answer}"
    );
    for garbage in [&[22, 3, 1, 255, 255][..], b"\0\0\0", &[22; 600]] {
        let _ = gateway.served.send_raw(garbage).await;
    }
    // Connections that send nothing, or only the beginning of a handshake.
    let mut silent = Vec::new();
    for number in 0..200 {
        let mut stream = TcpStream::connect(gateway.served.address).await.unwrap();
        if number % 2 == 0 {
            stream.write_all(&[22, 3, 1, 2]).await.unwrap();
        }
        silent.push(stream);
    }
    let (status, _) = gateway.get(&Client::default(), "/healthz", "").await.unwrap();
    assert_eq!(status, 200);
    // The gateway ends them.
    for mut stream in silent {
        let mut rest = Vec::new();
        let _ = timeout(DEADLINE, stream.read_to_end(&mut rest))
            .await
            .expect("a silent connection stays");
    }
}

#[test]
fn unusable_files_are_refused_with_their_name() {
    let authority = Authority::new("servers");
    let files = Files::new(&authority.server(), &authority);
    let refused = |files: &Files| Tls::open(files.options()).unwrap_err().to_string();
    let other = authority.server();
    fs::write(files.path("tls.key"), other.key_pem()).unwrap();
    let message = refused(&files);
    assert!(message.contains("tls.crt") && message.contains("tls.key"), "{message}");
    fs::write(files.path("tls.key"), "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n").unwrap();
    let message = refused(&files);
    assert!(
        message.contains("tls.key contains no valid private key") && !message.contains("c2VjcmV0"),
        "{message}"
    );
    files.write(&other);
    for (name, content, expected) in [
        ("clients.crt", "", "clients.crt contains no valid certificate"),
        (
            "clients.crt",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "clients.crt: ",
        ),
        ("tls.crt", "hello", "tls.crt contains no valid certificate"),
    ] {
        fs::write(files.path(name), content).unwrap();
        let message = refused(&files);
        assert!(message.contains(expected), "{message}");
        files.write(&other);
        files.write_client_ca(&authority);
    }
    fs::write(files.path("tls.crt"), "x".repeat(5 << 20)).unwrap();
    assert!(refused(&files).contains("tls.crt has more than"));
    fs::remove_file(files.path("tls.crt")).unwrap();
    assert!(refused(&files).contains("tls.crt: "));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_clients_use_tls_and_certificates() {
    let gateway = Secured::start().await;
    let ada = Client::with(gateway.clients.client("ada", "staff"));
    let url = format!("https://localhost:{}", gateway.served.address.port());
    let mut options = GatewayClientOptions::new(&url);
    options.tls = Some(Arc::new(gateway.client_config(&ada)));
    let client = GatewayClient::new(options).unwrap();
    let kernel = client.start_kernel(NewKernel::new("echo")).await.unwrap().id;
    let owner = gateway.served.manager.list()[0].owner().map(str::to_owned);
    assert_eq!(owner.as_deref(), Some("ada"));
    let options = client.resume(kernel).with_start(Start::Earliest);
    let mut resumed = timeout(DEADLINE, ResumeClient::connect(options))
        .await
        .unwrap()
        .unwrap();
    client.execute(kernel, "hello").await.unwrap();
    let printed = async {
        loop {
            if let Some(Event::Entry(entry)) = resumed.next().await.unwrap()
                && entry.message.header_ref().unwrap().msg_type == "stream"
            {
                return String::from_utf8_lossy(entry.message.content()).into_owned();
            }
        }
    };
    assert!(timeout(DEADLINE, printed).await.unwrap().contains("hello"));
}
