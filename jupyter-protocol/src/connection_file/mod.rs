//! Connection files: the addresses of a kernel's sockets and the key of its messages.
//!
//! <https://jupyter-client.readthedocs.io/en/stable/kernels.html#connection-files>

mod error;
pub(crate) mod find;
#[cfg(not(target_family = "wasm"))]
mod write;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::bounded_read::{self, ReadError};
use crate::channel::Channel;
use crate::content::HandshakeRequest;
use crate::key::Key;
use crate::signing::{Signer, SigningError};

pub use error::ConnectionFileError;

/// Maximum size of a connection file in bytes. Real ones have a few hundred.
pub const MAX_CONNECTION_FILE: u64 = 64 * 1024;

/// Transport of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Transport {
    /// TCP: the ports are TCP ports.
    #[default]
    Tcp,
    /// Unix sockets: `ip` is the prefix of their paths and the ports are numeric suffixes.
    Ipc,
}

impl Transport {
    /// Returns the name of the transport in connection files and ZeroMQ addresses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Ipc => "ipc",
        }
    }
}

/// Content of a connection file.
///
/// Parsing is lenient: absent and null fields get their default, and fields that the protocol does not name are kept. A
/// port of 0 means that there is no such socket, and is not written. The `Debug` output does not contain keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionInfo {
    /// Transport of the sockets.
    #[serde(default, deserialize_with = "null_as_default")]
    pub transport: Transport,
    /// Address or host name for TCP, prefix of the socket paths for ipc.
    #[serde(default = "default_ip", deserialize_with = "ip_or_default")]
    pub ip: String,
    /// Port (or path suffix) of the shell socket.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "is_zero")]
    pub shell_port: u16,
    /// Port (or path suffix) of the iopub socket.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "is_zero")]
    pub iopub_port: u16,
    /// Port (or path suffix) of the stdin socket.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "is_zero")]
    pub stdin_port: u16,
    /// Port (or path suffix) of the control socket.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "is_zero")]
    pub control_port: u16,
    /// Port (or path suffix) of the heartbeat socket.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "is_zero")]
    pub hb_port: u16,
    /// Key that signs messages, empty if they are not signed.
    #[serde(default, deserialize_with = "null_as_default")]
    pub key: Key,
    /// Signature scheme for `key`, such as `hmac-sha256`.
    #[serde(default = "default_scheme", deserialize_with = "scheme_or_default")]
    pub signature_scheme: String,
    /// Name of the kernelspec that the kernel was started from; may be empty.
    #[serde(default, deserialize_with = "null_as_default")]
    pub kernel_name: String,
    /// Path of the notebook or console that the kernel was started for, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jupyter_session: Option<String>,
    /// CurveZMQ public key (Z85) of the kernel, if the sockets are encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub curve_publickey: Option<String>,
    /// CurveZMQ secret key (Z85) of the kernel, if the sockets are encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub curve_secretkey: Option<Key>,
    /// Port at which the kernel registers its five ports (JEP 66), which the file then lacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registration_port: Option<u16>,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Default for ConnectionInfo {
    /// Returns TCP on 127.0.0.1 with an empty key, `hmac-sha256` and no ports.
    fn default() -> Self {
        Self {
            transport: Transport::Tcp,
            ip: default_ip(),
            shell_port: 0,
            iopub_port: 0,
            stdin_port: 0,
            control_port: 0,
            hb_port: 0,
            key: Key::default(),
            signature_scheme: default_scheme(),
            kernel_name: String::new(),
            jupyter_session: None,
            curve_publickey: None,
            curve_secretkey: None,
            registration_port: None,
            extra: Map::new(),
        }
    }
}

impl ConnectionInfo {
    /// Reads a connection file.
    ///
    /// Blocks on the file system.
    ///
    /// # Errors
    /// - [`ConnectionFileError::Read`] if reading fails.
    /// - [`ConnectionFileError::NotAFile`] if the path is not a regular file.
    /// - [`ConnectionFileError::TooLarge`] if the file exceeds [`MAX_CONNECTION_FILE`].
    /// - [`ConnectionFileError::Malformed`] if the file is not a valid connection file.
    /// - [`ConnectionFileError::MissingPort`] if the file has neither shell and iopub ports nor a registration port.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, ConnectionFileError> {
        let path = path.as_ref();
        let bytes = bounded_read::read_limited(path, MAX_CONNECTION_FILE).map_err(|error| {
            let path = path.to_owned();
            match error {
                ReadError::Io(source) => ConnectionFileError::Read { path, source },
                ReadError::NotAFile => ConnectionFileError::NotAFile { path },
                ReadError::TooLarge => ConnectionFileError::TooLarge { path },
            }
        })?;
        let info: Self = serde_json::from_slice(&bytes).map_err(|error| ConnectionFileError::Malformed {
            path: path.to_owned(),
            problem: problem_without_values(&error),
        })?;
        match info.missing_port() {
            Some(missing) if info.registration_port.is_none() => Err(ConnectionFileError::MissingPort {
                path: path.to_owned(),
                missing,
            }),
            _ => Ok(info),
        }
    }

    /// Returns the port, or path suffix, of a channel's socket, or 0 if there is none.
    #[must_use]
    pub const fn port(&self, channel: Channel) -> u16 {
        match channel {
            Channel::Shell => self.shell_port,
            Channel::Iopub => self.iopub_port,
            Channel::Stdin => self.stdin_port,
            Channel::Control => self.control_port,
            Channel::Heartbeat => self.hb_port,
        }
    }

    /// Sets the port, or path suffix, of a channel's socket.
    pub const fn set_port(&mut self, channel: Channel, port: u16) {
        *match channel {
            Channel::Shell => &mut self.shell_port,
            Channel::Iopub => &mut self.iopub_port,
            Channel::Stdin => &mut self.stdin_port,
            Channel::Control => &mut self.control_port,
            Channel::Heartbeat => &mut self.hb_port,
        } = port;
    }

    /// Returns the ZeroMQ address of a channel: `tcp://127.0.0.1:5555`, `tcp://[::1]:5555` or `ipc:///path-1`.
    #[must_use]
    pub fn address(&self, channel: Channel) -> String {
        self.address_of_port(self.port(channel))
    }

    fn address_of_port(&self, port: u16) -> String {
        let ip = &self.ip;
        match self.transport {
            Transport::Tcp if ip.contains(':') && !ip.starts_with('[') => {
                format!("tcp://[{ip}]:{port}")
            }
            Transport::Tcp => format!("tcp://{ip}:{port}"),
            Transport::Ipc => format!("ipc://{ip}-{port}"),
        }
    }

    /// Returns the ZeroMQ address at which the kernel registers its ports (JEP 66), if there is a registration port.
    #[must_use]
    pub fn registration_address(&self) -> Option<String> {
        self.registration_port.map(|port| self.address_of_port(port))
    }

    /// Replaces the registration port with the ports that a kernel announced in a handshake (JEP 66).
    pub fn complete(&mut self, announced: &HandshakeRequest) {
        self.registration_port = None;
        self.shell_port = announced.shell_port;
        self.iopub_port = announced.iopub_port;
        self.stdin_port = announced.stdin_port;
        self.control_port = announced.control_port;
        self.hb_port = announced.hb_port;
    }

    /// Returns the path of a channel's Unix socket, or `None` if the transport is TCP.
    #[must_use]
    pub fn socket_path(&self, channel: Channel) -> Option<PathBuf> {
        match self.transport {
            Transport::Ipc => Some(PathBuf::from(format!("{}-{}", self.ip, self.port(channel)))),
            Transport::Tcp => None,
        }
    }

    /// Creates the signer for `signature_scheme` and `key`.
    ///
    /// # Errors
    /// [`SigningError::UnknownScheme`] if there is a key and its scheme is not supported.
    pub fn signer(&self) -> Result<Signer, SigningError> {
        Signer::new(&self.signature_scheme, self.key.as_bytes())
    }

    /// Returns whether the sockets are encrypted with CurveZMQ.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.curve_publickey.as_ref().is_some_and(|key| !key.is_empty())
    }

    fn missing_port(&self) -> Option<&'static str> {
        [("shell_port", self.shell_port), ("iopub_port", self.iopub_port)]
            .into_iter()
            .find(|(_, port)| *port == 0)
            .map(|(name, _)| name)
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(port: &u16) -> bool {
    *port == 0
}

fn default_ip() -> String {
    "127.0.0.1".to_owned()
}

fn default_scheme() -> String {
    "hmac-sha256".to_owned()
}

fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

fn ip_or_default<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let ip = Option::<String>::deserialize(deserializer)?;
    Ok(ip.filter(|ip| !ip.is_empty()).unwrap_or_else(default_ip))
}

fn scheme_or_default<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let scheme = Option::<String>::deserialize(deserializer)?;
    Ok(scheme
        .filter(|scheme| !scheme.is_empty())
        .unwrap_or_else(default_scheme))
}

/// Describes a parse error without the offending value, which may be a misplaced key.
fn problem_without_values(error: &serde_json::Error) -> String {
    let kind = match error.classify() {
        serde_json::error::Category::Data => "a field has the wrong type or a value out of range",
        serde_json::error::Category::Eof => "the JSON ends too early",
        serde_json::error::Category::Syntax | serde_json::error::Category::Io => "it is not valid JSON",
    };
    format!("{kind} (line {}, column {})", error.line(), error.column())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> ConnectionInfo {
        ConnectionInfo {
            shell_port: 1,
            iopub_port: 2,
            stdin_port: 3,
            control_port: 4,
            hb_port: 5,
            key: "topsecret".into(),
            curve_secretkey: Some("curvesecret".into()),
            ..ConnectionInfo::default()
        }
    }

    fn read_text(text: &str) -> Result<ConnectionInfo, ConnectionFileError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        ConnectionInfo::read(file.path())
    }

    #[test]
    fn written_files_are_read_back_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/on/the/way/kernel-1.json");
        let mut written = info();
        written.extra.insert("provider".into(), serde_json::json!({"a": [1]}));
        written.write(&path).unwrap();
        assert_eq!(ConnectionInfo::read(&path).unwrap(), written);
        written.hb_port = 6;
        written.write(&path).unwrap();
        assert_eq!(ConnectionInfo::read(&path).unwrap(), written);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            let folder = std::fs::metadata(path.parent().unwrap()).unwrap();
            assert_eq!(folder.permissions().mode() & 0o777, 0o700);
        }
    }

    #[test]
    fn debug_output_and_errors_contain_no_secret() {
        let text = format!("{:?}", info());
        assert!(!text.contains("topsecret") && !text.contains("curvesecret"), "{text}");
        let error = read_text(r#"{"shell_port": "topsecret"}"#).unwrap_err();
        assert!(!error.to_string().contains("topsecret"), "{error}");
    }

    #[test]
    fn addresses_and_socket_paths_follow_the_transport() {
        let mut info = info();
        assert_eq!(info.address(Channel::Shell), "tcp://127.0.0.1:1");
        info.ip = "::1".into();
        assert_eq!(info.address(Channel::Control), "tcp://[::1]:4");
        info.ip = "[::1]".into();
        assert_eq!(info.address(Channel::Heartbeat), "tcp://[::1]:5");
        assert_eq!(info.socket_path(Channel::Stdin), None);
        info.transport = Transport::Ipc;
        info.ip = "/run/k".into();
        assert_eq!(info.address(Channel::Iopub), "ipc:///run/k-2");
        assert_eq!(info.socket_path(Channel::Stdin), Some("/run/k-3".into()));
    }

    #[test]
    fn absent_fields_get_defaults_and_unknown_ones_are_kept() {
        let info =
            read_text(r#"{"shell_port": 1, "iopub_port": 2, "key": null, "ip": null, "x": {"b": 1, "a": 2}}"#).unwrap();
        assert_eq!(info.ip, "127.0.0.1");
        assert_eq!(info.signature_scheme, "hmac-sha256");
        assert!(info.key.is_empty() && !info.signer().unwrap().signs());
        assert_eq!(info.extra["x"].to_string(), r#"{"b":1,"a":2}"#);
    }

    #[test]
    fn a_file_with_a_registration_port_has_no_other_ports_until_completed() {
        let mut info = ConnectionInfo {
            registration_port: Some(7),
            ..ConnectionInfo::default()
        };
        let written = serde_json::to_value(&info).unwrap();
        assert_eq!(written.get("shell_port"), None);
        assert_eq!(written["registration_port"], 7);
        assert_eq!(info.registration_address().as_deref(), Some("tcp://127.0.0.1:7"));
        let announced = HandshakeRequest {
            shell_port: 1,
            iopub_port: 2,
            stdin_port: 3,
            hb_port: 4,
            control_port: 5,
            ..HandshakeRequest::default()
        };
        info.complete(&announced);
        assert_eq!(info.registration_address(), None);
        assert_eq!(info.address(Channel::Control), "tcp://127.0.0.1:5");
    }

    #[test]
    fn invalid_files_are_typed_errors_that_name_the_file() {
        let text_of = |error: &ConnectionFileError| error.to_string();
        let missing = ConnectionInfo::read("/nonexistent/kernel.json").unwrap_err();
        assert!(matches!(missing, ConnectionFileError::Read { .. }));
        assert!(text_of(&missing).contains("/nonexistent/kernel.json"));
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            ConnectionInfo::read(dir.path()),
            Err(ConnectionFileError::NotAFile { .. })
        ));
        assert!(matches!(
            read_text(&" ".repeat(70_000)),
            Err(ConnectionFileError::TooLarge { .. })
        ));
        for text in [
            "",
            "[]",
            "{",
            "null",
            r#"{"shell_port": 70000}"#,
            r#"{"transport": "pigeon"}"#,
            "\u{0}",
        ] {
            assert!(
                matches!(read_text(text), Err(ConnectionFileError::Malformed { .. })),
                "{text:?}"
            );
        }
        assert!(matches!(
            read_text(r#"{"shell_port": 1}"#),
            Err(ConnectionFileError::MissingPort {
                missing: "iopub_port",
                ..
            })
        ));
        assert_eq!(
            read_text(r#"{"registration_port": 7}"#).unwrap().registration_port,
            Some(7)
        );
    }
}
