//! The greeting and the READY command, with which a connection begins.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::AsyncWriteExt as _;

use super::ZmtpError;
use super::endpoint::{Reader, Writer};
use super::frame::{FrameReader, Incoming, put_command};

/// A ZeroMQ socket's type, which the two sides of a connection tell each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SocketType {
    /// Asks, and gets answers from whomever it is connected to.
    Dealer,
    /// Answers each peer by its identity.
    Router,
    /// Asks, one question at a time.
    Req,
    /// Hears what it subscribed to.
    Sub,
    /// Publishes, and hears of subscriptions.
    Xpub,
}

impl SocketType {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Dealer => "DEALER",
            Self::Router => "ROUTER",
            Self::Req => "REQ",
            Self::Sub => "SUB",
            Self::Xpub => "XPUB",
        }
    }

    fn fits(self, theirs: &[u8]) -> bool {
        match self {
            Self::Dealer => matches!(theirs, b"ROUTER" | b"REP" | b"DEALER"),
            Self::Router => matches!(theirs, b"DEALER" | b"REQ" | b"ROUTER"),
            Self::Req => matches!(theirs, b"REP" | b"ROUTER"),
            Self::Sub => matches!(theirs, b"PUB" | b"XPUB"),
            Self::Xpub => matches!(theirs, b"SUB" | b"XSUB"),
        }
    }
}

const GREETING_LENGTH: usize = 64;

fn greeting() -> [u8; GREETING_LENGTH] {
    let mut greeting = [0; GREETING_LENGTH];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

fn check_greeting(theirs: &[u8]) -> Result<(), ZmtpError> {
    if theirs[0] != 0xff || theirs[9] & 1 == 0 {
        return Err(ZmtpError::Protocol("no ZMTP greeting"));
    }
    if theirs[10] < 3 {
        return Err(ZmtpError::Protocol("a version of ZMTP before 3"));
    }
    if theirs[12..32] != *b"NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0" {
        return Err(ZmtpError::Protocol(
            "it wants encryption or a password, which is not supported",
        ));
    }
    Ok(())
}

fn ready(socket_type: SocketType, identity: &[u8]) -> BytesMut {
    let mut body = BytesMut::new();
    body.put_slice(b"\x05READY");
    for (name, value) in [
        ("Socket-Type", socket_type.as_str().as_bytes()),
        ("Identity", identity),
    ] {
        body.put_u8(name.len() as u8);
        body.put_slice(name.as_bytes());
        body.put_u32(value.len() as u32);
        body.put_slice(value);
    }
    let mut command = BytesMut::new();
    put_command(&mut command, &body);
    command
}

/// The peer's socket type and identity.
fn parse_ready(mut body: Bytes) -> Result<(Bytes, Bytes), ZmtpError> {
    const MALFORMED: ZmtpError = ZmtpError::Protocol("a malformed READY command");
    if !body.starts_with(b"\x05READY") {
        return Err(ZmtpError::Protocol("no READY command"));
    }
    body.advance(6);
    let (mut socket_type, mut identity) = (Bytes::new(), Bytes::new());
    while !body.is_empty() {
        let name_length = usize::from(body.get_u8());
        if body.len() < name_length + 4 {
            return Err(MALFORMED);
        }
        let name = body.split_to(name_length);
        let value_length = body.get_u32() as usize;
        if body.len() < value_length {
            return Err(MALFORMED);
        }
        let value = body.split_to(value_length);
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            socket_type = value;
        } else if name.eq_ignore_ascii_case(b"Identity") {
            identity = value;
        }
    }
    if identity.len() > 255 {
        return Err(MALFORMED);
    }
    Ok((socket_type, identity))
}

/// Greets the other side and gives the connection's halves and the peer's identity, which may be empty.
pub(super) async fn shake_hands(
    reader: Reader,
    mut writer: Writer,
    socket_type: SocketType,
    identity: &[u8],
) -> Result<(FrameReader, Writer, Bytes), ZmtpError> {
    let mut reader = FrameReader::new(reader);
    let send = async {
        writer.write_all(&greeting()).await?;
        writer.write_all(&ready(socket_type, identity)).await
    };
    // Both sides may speak first, and what we have to say does not depend on what the other says.
    send.await.map_err(|_| ZmtpError::Closed)?;
    check_greeting(&reader.take(GREETING_LENGTH).await?)?;
    let Incoming::Command(command) = reader.next().await? else {
        return Err(ZmtpError::Protocol("a message before READY"));
    };
    let (theirs, identity) = parse_ready(command)?;
    if !socket_type.fits(&theirs) {
        return Err(ZmtpError::SocketType {
            ours: socket_type.as_str(),
            theirs: String::from_utf8_lossy(&theirs[..theirs.len().min(16)]).into_owned(),
        });
    }
    Ok((reader, writer, identity))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_ready_never_panics(tail in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut body = b"\x05READY".to_vec();
            body.extend(tail);
            let _ = parse_ready(body.into());
        }

        #[test]
        fn any_greeting_never_panics(bytes in prop::collection::vec(any::<u8>(), 64)) {
            let _ = check_greeting(&bytes);
        }
    }

    #[test]
    fn ready_reads_as_it_was_written() {
        let command = ready(SocketType::Dealer, b"me").freeze();
        let (socket_type, identity) = parse_ready(command.slice(2..)).unwrap();
        assert_eq!(
            (&socket_type[..], &identity[..]),
            (&b"DEALER"[..], &b"me"[..])
        );
        assert!(check_greeting(&greeting()).is_ok());
    }
}
