//! TLS for links over TCP. Each agent has its own certificate, which the gateway pins. The token in the first frame
//! authenticates the gateway.

use std::fmt;
use std::io;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, PeerMisbehaved, ServerConfig, SignatureScheme,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::TlsIdentity;

/// The name in certificates of agents. Nothing depends on it, because certificates are pinned.
const NAME: &str = "kernelmux-agent";

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the agent's {what} is invalid"))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

impl TlsIdentity {
    /// Creates a self-signed certificate with a new key.
    ///
    /// # Errors
    /// [`io::Error`] if the system has no randomness.
    pub fn generate() -> io::Result<Self> {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).map_err(io::Error::other)?;
        Ok(Self {
            certificate: STANDARD.encode(made.cert.der()),
            key: STANDARD.encode(made.signing_key.serialize_der()),
        })
    }

    fn certificate(&self) -> io::Result<CertificateDer<'static>> {
        let der = STANDARD.decode(&self.certificate).map_err(|_| invalid("certificate"))?;
        Ok(der.into())
    }

    /// Returns the agent's side of the TLS handshake.
    ///
    /// # Errors
    /// [`io::Error`] if the certificate or the key is invalid.
    pub fn acceptor(&self) -> io::Result<TlsAcceptor> {
        // The decoding errors could reveal the key.
        let key = STANDARD.decode(&self.key).map_err(|_| invalid("key"))?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key));
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate()?], key)
            .map_err(|_| invalid("key"))?;
        Ok(Arc::new(config).into())
    }

    /// Returns the gateway's side of the TLS handshake, which accepts only this certificate.
    ///
    /// # Errors
    /// [`io::Error`] if the certificate is invalid.
    pub fn connector(&self) -> io::Result<PinnedConnector> {
        let pin = Pin {
            certificate: self.certificate()?,
            provider: provider(),
        };
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(pin))
            .with_no_client_auth();
        Ok(PinnedConnector(Arc::new(config).into()))
    }
}

/// Connects to an agent that has the pinned certificate, and to no other.
#[derive(Clone)]
pub struct PinnedConnector(TlsConnector);

impl fmt::Debug for PinnedConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedConnector").finish_non_exhaustive()
    }
}

impl PinnedConnector {
    /// Performs the handshake on a connection.
    ///
    /// # Errors
    /// [`io::Error`] if the connection fails, the peer has another certificate, or it lacks the key.
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<TlsStream<S>> {
        let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
        self.0.connect(name, stream).await
    }
}

/// Accepts exactly one certificate.
#[derive(Debug)]
struct Pin {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if bool::from(certificate.as_ref().ct_eq(self.certificate.as_ref())) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // Not reached, because only TLS 1.3 is offered.
        Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Sends a byte from the agent's end to the gateway's.
    async fn one_byte(agent: &TlsIdentity, pinned: &TlsIdentity) -> io::Result<u8> {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let acceptor = agent.acceptor()?;
        let serving = tokio::spawn(async move {
            let mut stream = acceptor.accept(theirs).await?;
            stream.write_all(&[7]).await?;
            stream.shutdown().await
        });
        let mut stream = pinned.connector()?.connect(ours).await?;
        let byte = stream.read_u8().await;
        serving.await.map_err(io::Error::other)??;
        byte
    }

    #[tokio::test]
    async fn only_the_pinned_certificate_is_accepted() {
        let (agent, other) = (TlsIdentity::generate().unwrap(), TlsIdentity::generate().unwrap());
        assert_eq!(one_byte(&agent, &agent).await.unwrap(), 7);
        let refused = one_byte(&agent, &other).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData, "{refused}");
    }

    #[tokio::test]
    async fn a_copied_certificate_without_its_key_is_refused() {
        let (agent, other) = (TlsIdentity::generate().unwrap(), TlsIdentity::generate().unwrap());
        let impostor = TlsIdentity {
            certificate: agent.certificate.clone(),
            key: other.key,
        };
        // rustls refuses such a pair on the server's side already.
        assert!(impostor.acceptor().is_err());
        let text = format!("{impostor:?}");
        assert!(!text.contains(&impostor.key), "{text}");
    }

    #[test]
    fn an_identity_is_read_back_from_json() {
        let made = TlsIdentity::generate().unwrap();
        let json = serde_json::to_string(&made).unwrap();
        let read: TlsIdentity = serde_json::from_str(&json).unwrap();
        assert!(read.acceptor().is_ok() && read.key == made.key);
    }
}
