//! Message signatures: HMAC over the frames as they are.
//!
//! <https://jupyter-client.readthedocs.io/en/stable/messaging.html#the-wire-protocol>

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

use hmac::digest::KeyInit;
use hmac::{Hmac, Mac, SimpleHmac};
use subtle::ConstantTimeEq;

/// How many digests [`DigestHistory::default`] remembers, as jupyter_client does.
pub const DEFAULT_DIGEST_HISTORY: usize = 1 << 16;

/// The key cannot be used to sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SigningError {
    /// The connection file names a scheme that is not known here.
    #[error(
        "signature scheme {0:?} is not supported; known are hmac-md5, hmac-sha1, hmac-sha224, hmac-sha256, \
         hmac-sha384, hmac-sha512, hmac-sha3_224, _256, _384, _512, hmac-blake2b and hmac-blake2s"
    )]
    UnknownScheme(String),
}

macro_rules! schemes {
    ($($variant:ident, $hmac:ty, [$($name:literal),+];)+) => {
        #[derive(Clone)]
        enum Scheme {
            Unsigned,
            $($variant($hmac),)+
        }

        impl Scheme {
            fn new(name: &str, key: &[u8]) -> Result<Self, SigningError> {
                if key.is_empty() {
                    return Ok(Self::Unsigned);
                }
                match name {
                    // HMAC takes keys of any length, so the error cannot occur; it is reported all the same.
                    $($($name)|+ => <$hmac as KeyInit>::new_from_slice(key)
                        .map(Self::$variant)
                        .map_err(|_| SigningError::UnknownScheme(name.to_owned())),)+
                    other => Err(SigningError::UnknownScheme(other.chars().take(64).collect())),
                }
            }

            fn digest(&self, parts: [&[u8]; 4]) -> Digest {
                match self {
                    Self::Unsigned => Digest { bytes: [0; 64], len: 0 },
                    $(Self::$variant(keyed) => {
                        let mut mac = keyed.clone();
                        for part in parts {
                            mac.update(part);
                        }
                        Digest::new(&mac.finalize().into_bytes())
                    })+
                }
            }
        }
    };
}

// What Python's `hashlib` has by these names. Its `shake_*` have no digest of a fixed size, so no HMAC is made of them.
schemes! {
    Md5, Hmac<md5::Md5>, ["hmac-md5"];
    Sha1, Hmac<sha1::Sha1>, ["hmac-sha1"];
    Sha224, Hmac<sha2::Sha224>, ["hmac-sha224"];
    Sha256, Hmac<sha2::Sha256>, ["hmac-sha256"];
    Sha384, Hmac<sha2::Sha384>, ["hmac-sha384"];
    Sha512, Hmac<sha2::Sha512>, ["hmac-sha512"];
    Sha3x224, Hmac<sha3::Sha3_224>, ["hmac-sha3-224", "hmac-sha3_224"];
    Sha3x256, Hmac<sha3::Sha3_256>, ["hmac-sha3-256", "hmac-sha3_256"];
    Sha3x384, Hmac<sha3::Sha3_384>, ["hmac-sha3-384", "hmac-sha3_384"];
    Sha3x512, Hmac<sha3::Sha3_512>, ["hmac-sha3-512", "hmac-sha3_512"];
    Blake2b, SimpleHmac<blake2::Blake2b512>, ["hmac-blake2b"];
    Blake2s, SimpleHmac<blake2::Blake2s256>, ["hmac-blake2s"];
}

/// Signs and verifies messages with a connection's key.
///
/// Cloning is cheap. The key is not in its `Debug` output.
#[derive(Clone)]
pub struct Signer {
    scheme: Scheme,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("signs", &self.signs())
            .finish_non_exhaustive()
    }
}

impl Signer {
    /// A signer for a connection file's `signature_scheme` and `key`. An empty key means unsigned messages.
    ///
    /// # Errors
    /// [`SigningError::UnknownScheme`] where the key is not empty and the scheme is none of the `hmac-*` above.
    pub fn new(scheme: &str, key: &[u8]) -> Result<Self, SigningError> {
        Ok(Self {
            scheme: Scheme::new(scheme, key)?,
        })
    }

    /// A signer that signs nothing and accepts any signature, as an empty key asks.
    #[must_use]
    pub fn unsigned() -> Self {
        Self {
            scheme: Scheme::Unsigned,
        }
    }

    /// Whether messages are signed at all.
    #[must_use]
    pub fn signs(&self) -> bool {
        !matches!(self.scheme, Scheme::Unsigned)
    }

    /// The signature of header, parent header, metadata and content: lower-case hex, empty where unsigned.
    #[must_use]
    pub fn sign(&self, parts: [&[u8]; 4]) -> Signature {
        let digest = self.scheme.digest(parts);
        let mut signature = Signature {
            hex: [0; 128],
            len: digest.len * 2,
        };
        // All of the array, whatever the digest's length: of a known length it takes a few instructions.
        for (byte, pair) in digest.bytes.iter().zip(signature.hex.chunks_exact_mut(2)) {
            pair[0] = hex_digit(byte >> 4);
            pair[1] = hex_digit(byte & 15);
        }
        signature
    }

    /// Whether `signature` is the one of these parts, compared in constant time. Always true where unsigned.
    #[must_use]
    pub fn verify(&self, signature: &[u8], parts: [&[u8]; 4]) -> bool {
        if !self.signs() {
            return true;
        }
        let expected = self.sign(parts);
        let expected = expected.as_bytes();
        // The length is no secret. All digits are looked at before anything depends on one of them.
        let differing = expected.iter().zip(signature).fold(0, |all, (a, b)| all | (a ^ b));
        expected.len() == signature.len() && bool::from(differing.ct_eq(&0))
    }
}

/// The lower-case digit of a value below 16.
const fn hex_digit(value: u8) -> u8 {
    const FROM_TEN: u8 = b'a' - b'0' - 10;
    b'0' + value + if value > 9 { FROM_TEN } else { 0 }
}

struct Digest {
    bytes: [u8; 64],
    len: usize,
}

impl Digest {
    fn new(digest: &[u8]) -> Self {
        let mut bytes = [0; 64];
        bytes[..digest.len()].copy_from_slice(digest);
        Self {
            bytes,
            len: digest.len(),
        }
    }
}

/// A signature as it stands on the wire, held without allocating.
#[derive(Clone)]
pub struct Signature {
    hex: [u8; 128],
    len: usize,
}

impl Signature {
    /// The lower-case hex digits; empty where messages are unsigned.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.hex[..self.len]
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({})", String::from_utf8_lossy(self.as_bytes()))
    }
}

/// The signatures seen lately, so that a recorded message cannot be replayed.
///
/// Holds a bounded number, the oldest is forgotten first. Grows with use, so an idle kernel's costs nothing.
#[derive(Debug)]
pub struct DigestHistory {
    seen: HashSet<u64, BuildHasherDefault<AlreadyRandom>>,
    order: VecDeque<u64>,
    capacity: usize,
}

impl Default for DigestHistory {
    fn default() -> Self {
        Self::new(DEFAULT_DIGEST_HISTORY)
    }
}

impl DigestHistory {
    /// A history of at most `capacity` signatures.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            seen: HashSet::default(),
            order: VecDeque::new(),
            capacity: capacity.max(1),
        }
    }

    /// Remembers a verified signature; `false` where it was seen before. Unsigned (empty) ones always pass.
    pub fn insert(&mut self, signature: &[u8]) -> bool {
        if signature.is_empty() {
            return true;
        }
        // The signature was verified, so its digits are as random as the digest: 16 of them identify it.
        let mut prefix = 0_u64;
        for digit in signature.iter().take(16) {
            let value = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                _ => digit & 15,
            };
            prefix = prefix << 4 | u64::from(value);
        }
        if !self.seen.insert(prefix) {
            return false;
        }
        if self.order.len() == self.capacity
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        self.order.push_back(prefix);
        true
    }
}

/// Hashes a value that is a piece of a digest by taking it as it is.
#[derive(Default)]
struct AlreadyRandom(u64);

impl Hasher for AlreadyRandom {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_key_means_unsigned_whatever_the_scheme() {
        let signer = Signer::new("hmac-of-the-future", b"").unwrap();
        assert!(!signer.signs());
        assert!(signer.verify(b"anything", [b"a", b"b", b"c", b"d"]));
        assert_eq!(signer.sign([b"a", b"b", b"c", b"d"]).as_bytes(), b"");
    }

    #[test]
    fn an_unknown_scheme_is_refused_by_name() {
        let error = Signer::new("hmac-crc32", b"key").unwrap_err();
        assert!(error.to_string().contains("hmac-crc32"));
    }

    #[test]
    fn a_signature_covers_all_parts_and_its_own_length() {
        let signer = Signer::new("hmac-sha256", b"key").unwrap();
        let parts: [&[u8]; 4] = [b"{}", b"{}", b"{}", b"{}"];
        let signature = signer.sign(parts);
        assert_eq!(signature.as_bytes().len(), 64);
        assert!(signer.verify(signature.as_bytes(), parts));
        assert!(!signer.verify(&signature.as_bytes()[..63], parts));
        assert!(!signer.verify(b"", parts));
        assert!(!signer.verify(signature.as_bytes(), [b"{}", b"{}", b"{}", b"{ }"]));
    }

    #[test]
    fn the_history_refuses_a_replay_and_forgets_the_oldest() {
        let signer = Signer::new("hmac-sha256", b"key").unwrap();
        let signature = |n: u32| signer.sign([&n.to_le_bytes(), b"", b"", b""]);
        let mut history = DigestHistory::new(2);
        assert!(history.insert(signature(1).as_bytes()));
        assert!(!history.insert(signature(1).as_bytes()));
        assert!(history.insert(signature(2).as_bytes()));
        assert!(history.insert(signature(3).as_bytes()));
        assert!(history.insert(signature(1).as_bytes()));
        assert!(history.insert(b"") && history.insert(b""));
    }

    #[test]
    fn debug_does_not_show_the_key() {
        let signer = Signer::new("hmac-sha256", b"very-secret").unwrap();
        assert!(!format!("{signer:?}").contains("very-secret"));
    }
}
