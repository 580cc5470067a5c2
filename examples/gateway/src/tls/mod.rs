//! TLS with certificates from files, which may change while connections are open.

mod client_certificate;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use chrono::{DateTime, Utc};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::counted::Counted;
use crate::{FileChanges, Gateway};
pub(crate) use client_certificate::ClientCertificate;

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;
/// How much of a request without TLS is read, in bytes.
const MAX_REQUEST: u64 = 64 << 10;
/// How long a handshake may take.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// The answer to a request without TLS.
const NO_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n\
    this port speaks TLS: use https:// or wss://\n";

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsVersion {
    /// TLS 1.2, RFC 5246.
    #[default]
    V1_2,
    /// TLS 1.3, RFC 8446.
    V1_3,
}

static FROM_1_2: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];
static FROM_1_3: [&SupportedProtocolVersion; 1] = [&TLS13];

impl TlsVersion {
    fn and_later(self) -> &'static [&'static SupportedProtocolVersion] {
        match self {
            Self::V1_2 => &FROM_1_2,
            Self::V1_3 => &FROM_1_3,
        }
    }
}

/// The files of [`Tls`].
///
/// ```
/// use kernelmux_gateway::{TlsOptions, TlsVersion};
///
/// let options = TlsOptions::new("tls.crt", "tls.key")
///     .with_client_ca("clients.crt")
///     .with_min_version(TlsVersion::V1_3);
/// assert_eq!(options.key.to_str(), Some("tls.key"));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TlsOptions {
    /// The gateway's certificate in PEM, followed by those of its issuers.
    pub certificate: PathBuf,
    /// The certificate's key in PEM.
    pub key: PathBuf,
    /// The certificates in PEM of those who may issue clients' certificates; `None` to ask for none.
    pub client_ca: Option<PathBuf>,
    /// The oldest version that clients may use.
    pub min_version: TlsVersion,
}

impl TlsOptions {
    /// TLS 1.2 or later with this certificate and its key, without certificates of clients.
    #[must_use]
    pub fn new(certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        Self {
            certificate: certificate.into(),
            key: key.into(),
            client_ca: None,
            min_version: TlsVersion::default(),
        }
    }

    /// Accepts clients' certificates of these issuers. Clients may still connect without one.
    #[must_use]
    pub fn with_client_ca(mut self, client_ca: impl Into<PathBuf>) -> Self {
        self.client_ca = Some(client_ca.into());
        self
    }

    /// Sets the oldest version that clients may use.
    #[must_use]
    pub fn with_min_version(mut self, min_version: TlsVersion) -> Self {
        self.min_version = min_version;
        self
    }

    fn files(&self) -> Vec<PathBuf> {
        let files = [Some(&self.certificate), Some(&self.key), self.client_ca.as_ref()];
        files.into_iter().flatten().cloned().collect()
    }
}

/// Why the files of [`TlsOptions`] cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// A file is larger than 4 MiB.
    #[error("{} has more than {MAX_FILE} bytes", .0.display())]
    TooLarge(PathBuf),
    /// A file has no certificate or key in PEM.
    #[error("{} contains no valid {what} in PEM", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should contain.
        what: &'static str,
    },
    /// The certificate and the key cannot be used, for example because they are no pair.
    #[error("the certificate {} and the key {} cannot be used: {source}", certificate.display(), key.display())]
    Pair {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
        /// What is wrong with them.
        source: rustls::Error,
    },
    /// The issuers of clients' certificates cannot be used.
    #[error("{}: {reason}", path.display())]
    ClientCa {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// TLS for [`serve`](crate::serve). While the gateway runs, it follows the files; open connections stay. Clones share
/// the state.
#[derive(Clone)]
pub struct Tls {
    shared: Arc<SharedTls>,
}

struct SharedTls {
    options: TlsOptions,
    current: RwLock<Arc<Loaded>>,
}

/// What the files contained when they were read last.
struct Loaded {
    acceptor: TlsAcceptor,
    contents: Contents,
    /// Cancelled when other issuers of clients' certificates take the place of these.
    clients_revoked: CancellationToken,
}

#[derive(PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("options", &self.shared.options)
            .finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files. Blocks on the file system.
    ///
    /// # Errors
    /// [`TlsError`] if a file cannot be read, or its content cannot be used.
    pub fn open(options: TlsOptions) -> Result<Self, TlsError> {
        let loaded = Loaded::new(&options, Contents::read(&options)?, CancellationToken::new())?;
        Ok(Self {
            shared: Arc::new(SharedTls {
                options,
                current: RwLock::new(Arc::new(loaded)),
            }),
        })
    }

    /// When the certificate expires; `None` if that cannot be read from it.
    #[must_use]
    pub fn not_after(&self) -> Option<DateTime<Utc>> {
        let current = self.current();
        let chain = certificates(&self.shared.options.certificate, &current.contents.certificate).ok()?;
        client_certificate::not_after(chain.first()?)
    }

    fn current(&self) -> Arc<Loaded> {
        let current = self.shared.current.read().unwrap_or_else(PoisonError::into_inner);
        current.clone()
    }

    /// Reads the files after each change, until the future is dropped. Wrong files change nothing.
    pub(crate) async fn follow(self) {
        let mut changes = FileChanges::new(self.shared.options.files()).await;
        let mut last_error = None;
        loop {
            let tls = self.clone();
            let Ok(reloaded) = spawn_blocking(move || tls.reload()).await else {
                // The async runtime is shutting down.
                return;
            };
            let error = reloaded.err().map(|error| error.to_string());
            if let Some(error) = error.as_ref().filter(|error| last_error.as_ref() != Some(*error)) {
                warn!(
                    error,
                    "the certificates stay as they were, because their files are wrong"
                );
            }
            last_error = error;
            changes.next().await;
        }
    }

    fn reload(&self) -> Result<(), TlsError> {
        let options = &self.shared.options;
        let contents = Contents::read(options)?;
        let before = self.current();
        if contents == before.contents {
            return Ok(());
        }
        let same_clients = contents.client_ca == before.contents.client_ca;
        let clients_revoked = if same_clients {
            before.clients_revoked.clone()
        } else {
            CancellationToken::new()
        };
        let loaded = Arc::new(Loaded::new(options, contents, clients_revoked)?);
        *self.shared.current.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        if !same_clients {
            before.clients_revoked.cancel();
        }
        info!(certificate = %options.certificate.display(), "new connections use the changed certificates");
        Ok(())
    }

    /// Does the handshake of a connection, and returns the client's certificate if it has one. `None` if the client does
    /// not speak TLS, has no valid certificate, or takes too long.
    pub(crate) async fn accept(&self, stream: Counted) -> Option<(TlsStream<Counted>, Option<ClientCertificate>)> {
        let handshake = async {
            let mut first = [0];
            // HTTP begins with a method; TLS with the byte 22 (RFC 8446, section 5.1).
            if stream.stream.peek(&mut first).await? == 1 && first[0].is_ascii_uppercase() {
                return Err(Refusal::NoTls(stream));
            }
            let current = self.current();
            let stream = current.acceptor.accept(stream).await?;
            let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let certificate = certificates.first();
            let client = certificate.and_then(|certificate| {
                ClientCertificate::new(certificate, current.clients_revoked.clone())
                    .inspect_err(|error| debug!(%error, "a client's certificate names no user"))
                    .ok()
            });
            Ok((stream, client))
        };
        match timeout(HANDSHAKE_DEADLINE, handshake).await {
            Ok(Ok(accepted)) => Some(accepted),
            Ok(Err(Refusal::NoTls(stream))) => {
                // The client may be gone.
                let _ = timeout(HANDSHAKE_DEADLINE, explain(stream)).await;
                None
            }
            Ok(Err(Refusal::Failed(error))) => {
                debug!(%error, "a TLS handshake failed");
                None
            }
            Err(_) => {
                debug!("a TLS handshake took too long");
                None
            }
        }
    }
}

/// Answers a request without TLS. Reads the request, because closing the connection before would discard the answer.
async fn explain(mut stream: Counted) -> io::Result<()> {
    stream.write_all(NO_TLS).await?;
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(MAX_REQUEST), &mut tokio::io::sink())
        .await
        .map(drop)
}

/// Tells browsers to use only TLS for the gateway's host from now on (RFC 6797), if the gateway has TLS.
pub(crate) async fn strict_transport(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let options = gateway.options();
    let seconds = options.strict_transport.as_secs();
    if options.tls.is_some()
        && seconds > 0
        && let Ok(value) = HeaderValue::try_from(format!("max-age={seconds}"))
    {
        response.headers_mut().insert(header::STRICT_TRANSPORT_SECURITY, value);
    }
    response
}

enum Refusal {
    /// The client sent an HTTP request without TLS.
    NoTls(Counted),
    Failed(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl Contents {
    fn read(options: &TlsOptions) -> Result<Self, TlsError> {
        Ok(Self {
            certificate: read(&options.certificate)?,
            key: read(&options.key)?,
            client_ca: options.client_ca.as_deref().map(read).transpose()?,
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let mut content = Vec::new();
    let reading = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut content));
    reading.map_err(|source| TlsError::Io {
        path: path.to_owned(),
        source,
    })?;
    if content.len() as u64 > MAX_FILE {
        return Err(TlsError::TooLarge(path.to_owned()));
    }
    Ok(content)
}

/// The certificates in a file; there is at least one.
fn certificates(path: &Path, content: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = || TlsError::Content {
        path: path.to_owned(),
        what: "certificate",
    };
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(content)
        .collect::<Result<_, _>>()
        .map_err(|_| wrong())?;
    if certificates.is_empty() {
        return Err(wrong());
    }
    Ok(certificates)
}

impl Loaded {
    fn new(options: &TlsOptions, contents: Contents, clients_revoked: CancellationToken) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let pair = |source| TlsError::Pair {
            certificate: options.certificate.clone(),
            key: options.key.clone(),
            source,
        };
        let chain = certificates(&options.certificate, &contents.certificate)?;
        // The error could contain a part of the key.
        let key = PrivateKeyDer::from_pem_slice(&contents.key).map_err(|_| TlsError::Content {
            path: options.key.clone(),
            what: "private key",
        })?;
        let config = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(options.min_version.and_later())
            .map_err(pair)?;
        let config = match options.client_ca.as_deref().zip(contents.client_ca.as_deref()) {
            Some((path, content)) => {
                let wrong = |reason: String| TlsError::ClientCa {
                    path: path.to_owned(),
                    reason,
                };
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path, content)? {
                    roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .allow_unauthenticated()
                    .build()
                    .map_err(|error| wrong(error.to_string()))?;
                config.with_client_cert_verifier(verifier)
            }
            None => config.with_no_client_auth(),
        };
        let mut config = config.with_single_cert(chain, key).map_err(pair)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            acceptor: Arc::new(config).into(),
            contents,
            clients_revoked,
        })
    }
}
