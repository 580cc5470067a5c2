use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use kernelmux_gateway::{GatewayOptions, Tls, TlsOptions, TlsVersion};

/// Encryption of connections.
#[derive(Debug, Args)]
#[command(next_help_heading = "TLS")]
pub(super) struct TlsFlags {
    /// The gateway's certificate in PEM, followed by those of its issuers; with it, the gateway serves HTTPS only
    #[arg(long, env = "KERNELMUX_TLS_CERT", value_name = "PATH")]
    pub(super) tls_cert: Option<PathBuf>,
    /// The certificate's key in PEM
    #[arg(long, env = "KERNELMUX_TLS_KEY", value_name = "PATH")]
    tls_key: Option<PathBuf>,
    /// The certificates in PEM of issuers of clients' certificates, whose common name is a user and whose organizations are
    /// groups; clients need none if they authenticate in another way
    #[arg(long, env = "KERNELMUX_TLS_CLIENT_CA", value_name = "PATH")]
    pub(super) tls_client_ca: Option<PathBuf>,
    /// The oldest version of TLS that clients may use
    #[arg(long, env = "KERNELMUX_TLS_MIN_VERSION", value_enum, default_value_t = MinVersion::V1_2, value_name = "VERSION")]
    tls_min_version: MinVersion,
    /// For how long browsers use only TLS for the gateway's host, on all its ports, in seconds; 0 for no such rule
    #[arg(long, env = "KERNELMUX_TLS_HSTS", default_value_t = 24 * 60 * 60, value_name = "SECONDS")]
    tls_hsts: u64,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MinVersion {
    /// TLS 1.2
    #[value(name = "1.2")]
    V1_2,
    /// TLS 1.3
    #[value(name = "1.3")]
    V1_3,
}

impl TlsFlags {
    /// Sets how connections are encrypted. Reads the files.
    pub(super) fn apply(&self, options: &mut GatewayOptions) -> Result<(), String> {
        options.strict_transport = Duration::from_secs(self.tls_hsts);
        options.tls = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => {
                let mut tls = TlsOptions::new(certificate, key).with_min_version(match self.tls_min_version {
                    MinVersion::V1_2 => TlsVersion::V1_2,
                    MinVersion::V1_3 => TlsVersion::V1_3,
                });
                tls.client_ca.clone_from(&self.tls_client_ca);
                Some(Tls::open(tls).map_err(|error| format!("--tls-cert: {error}"))?)
            }
            _ => None,
        };
        Ok(())
    }
}
