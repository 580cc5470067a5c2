//! The handshake: greetings, then a READY command from each peer.

use bytes::Bytes;

use super::commands::{command, split_short};
use super::{COMMAND, ZmtpError};

/// Length of a greeting in bytes.
pub(in crate::zmq) const GREETING: usize = 64;

const VERSION: u8 = 3;
const MECHANISM: &[u8] = b"NULL";

/// Returns our greeting.
pub(in crate::zmq) fn greeting() -> [u8; GREETING] {
    let mut greeting = [0; GREETING];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = VERSION;
    greeting[12..12 + MECHANISM.len()].copy_from_slice(MECHANISM);
    greeting
}

/// Checks the part of the peer's greeting that has arrived. Returns `false` while it is incomplete.
///
/// Older versions send less and then wait for an answer, so the first bytes must suffice to reject them.
pub(in crate::zmq) fn check_greeting(greeting: &[u8]) -> Result<bool, ZmtpError> {
    let wrong = |at: usize, is: fn(u8) -> bool| greeting.get(at).is_some_and(|byte| is(*byte));
    if wrong(0, |byte| byte != 0xff) || wrong(9, |byte| byte & 1 == 0) || wrong(10, |version| version < VERSION) {
        return Err(ZmtpError::NotZmtp);
    }
    if greeting.len() < GREETING {
        return Ok(false);
    }
    let name = greeting[12..32].split(|byte| *byte == 0).next().unwrap_or_default();
    if name != MECHANISM {
        return Err(ZmtpError::Mechanism(String::from_utf8_lossy(name).into_owned()));
    }
    Ok(true)
}

/// Returns the READY command, which completes our side of the handshake. The identity has at most 255 bytes.
pub(in crate::zmq) fn ready(socket_type: &str, identity: &[u8]) -> Bytes {
    let mut body = b"\x05READY".to_vec();
    let properties = [("Socket-Type", socket_type.as_bytes()), ("Identity", identity)];
    for (name, value) in properties.into_iter().filter(|(_, value)| !value.is_empty()) {
        // The casts cannot truncate: names and values have at most 255 bytes.
        body.push(name.len() as u8);
        body.extend_from_slice(name.as_bytes());
        body.extend((value.len() as u32).to_be_bytes());
        body.extend_from_slice(value);
    }
    command(&body)
}

/// Checks that the next frame, if any has arrived, is a command: the handshake permits nothing else.
pub(in crate::zmq) fn check_is_command(data: &[u8]) -> Result<(), ZmtpError> {
    match data.first() {
        Some(flags) if flags & COMMAND == 0 => Err(ZmtpError::NotZmtp),
        _ => Ok(()),
    }
}

/// Checks the command that completes the peer's handshake, and returns the peer's identity, which may be empty.
///
/// Fails if the peer's socket type is not one of `types`.
pub(in crate::zmq) fn check_ready(command: &Bytes, types: &[&str]) -> Result<Bytes, ZmtpError> {
    let (name, mut rest) = split_short(command).ok_or(ZmtpError::NotZmtp)?;
    match name {
        b"READY" => {}
        b"ERROR" => {
            let reason = split_short(rest).map_or(rest, |(reason, _)| reason);
            return Err(ZmtpError::Refused(String::from_utf8_lossy(reason).into_owned()));
        }
        _ => return Err(ZmtpError::NotZmtp),
    }
    let mut identity = Bytes::new();
    while let Some((name, after)) = split_short(rest) {
        let (length, after) = after.split_first_chunk::<4>().ok_or(ZmtpError::NotZmtp)?;
        let value = after
            .get(..u32::from_be_bytes(*length) as usize)
            .ok_or(ZmtpError::NotZmtp)?;
        if name.eq_ignore_ascii_case(b"Socket-Type") && !types.iter().any(|known| known.as_bytes() == value) {
            return Err(ZmtpError::SocketType {
                found: String::from_utf8_lossy(value).into_owned(),
                expected: types.join(" or "),
            });
        }
        if name.eq_ignore_ascii_case(b"Identity") {
            identity = Bytes::copy_from_slice(value);
        }
        rest = &after[value.len()..];
    }
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_greetings_of_zmtp_3_with_null_are_accepted() {
        assert_eq!(check_greeting(&greeting()), Ok(true));
        for length in 0..GREETING {
            assert_eq!(check_greeting(&greeting()[..length]), Ok(false));
        }
        assert_eq!(check_greeting(b"H"), Err(ZmtpError::NotZmtp));
        // The bytes that ZMTP 2.0 and 1.0 send before they wait for an answer.
        assert_eq!(
            check_greeting(b"\xff\0\0\0\0\0\0\0\x01\x7f\x01"),
            Err(ZmtpError::NotZmtp)
        );
        assert_eq!(check_greeting(b"\x01\0"), Err(ZmtpError::NotZmtp));
        let mut plain = greeting();
        plain[12..17].copy_from_slice(b"PLAIN");
        assert_eq!(check_greeting(&plain), Err(ZmtpError::Mechanism("PLAIN".to_owned())));
    }

    #[test]
    fn only_compatible_socket_types_are_accepted() {
        let check = |command: &[u8]| check_ready(&Bytes::copy_from_slice(command), &["XPUB", "PUB"]);
        assert_eq!(
            check(&ready("SUB", b"")[2..]),
            Err(ZmtpError::SocketType {
                found: "SUB".to_owned(),
                expected: "XPUB or PUB".to_owned()
            })
        );
        assert_eq!(check(&ready("PUB", b"me")[2..]), Ok(Bytes::from_static(b"me")));
        assert_eq!(
            check(b"\x05READY\x0bsocket-type\0\0\0\x04XPUB\x08Identity\0\0\0\0"),
            Ok(Bytes::new())
        );
        assert_eq!(check(b"\x05ERROR\x04full"), Err(ZmtpError::Refused("full".to_owned())));
        for bad in [
            &b""[..],
            b"\x06READY",
            b"\x04PING",
            b"\x05READY\x01a\0\0\0\x09b",
            b"\x05READY\x01a\0",
        ] {
            assert_eq!(check(bad), Err(ZmtpError::NotZmtp), "{bad:?}");
        }
    }
}
