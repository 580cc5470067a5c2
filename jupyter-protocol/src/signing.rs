//! Message signatures: HMAC over the frames as received.
//!
//! <https://jupyter-client.readthedocs.io/en/stable/messaging.html#the-wire-protocol>

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

use hmac::digest::KeyInit;
use hmac::{Hmac, Mac, SimpleHmac};
use subtle::ConstantTimeEq;

/// Capacity of [`DigestHistory::default`], the same as in jupyter_client.
pub const DEFAULT_DIGEST_HISTORY: usize = 1 << 16;

/// Error of creating a [`Signer`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SigningError {
    /// The signature scheme of the connection file is not supported.
    #[error(
        "signature scheme {0:?} is not supported; the supported ones are hmac-md5, hmac-sha1, hmac-sha224, \
         hmac-sha256, hmac-sha384, hmac-sha512, hmac-sha3_224, hmac-sha3_256, hmac-sha3_384, hmac-sha3_512, \
         hmac-blake2b and hmac-blake2s"
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
                    // The error cannot occur, because HMAC accepts keys of any length.
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

// The hashes of Python's `hashlib`, with its names. Its `shake_*` functions are missing: they have no fixed digest
// size, so HMAC does not support them.
schemes! {
    Md5, Hmac<md5::Md5>, ["hmac-md5"];
    Sha1, Hmac<sha1::Sha1>, ["hmac-sha1"];
    Sha224, Hmac<sha2::Sha224>, ["hmac-sha224"];
    Sha256, Hmac<sha2::Sha256>, ["hmac-sha256"];
    Sha384, Hmac<sha2::Sha384>, ["hmac-sha384"];
    Sha512, Hmac<sha2::Sha512>, ["hmac-sha512"];
    Sha3x224, SimpleHmac<sha3::Sha3_224>, ["hmac-sha3-224", "hmac-sha3_224"];
    Sha3x256, SimpleHmac<sha3::Sha3_256>, ["hmac-sha3-256", "hmac-sha3_256"];
    Sha3x384, SimpleHmac<sha3::Sha3_384>, ["hmac-sha3-384", "hmac-sha3_384"];
    Sha3x512, SimpleHmac<sha3::Sha3_512>, ["hmac-sha3-512", "hmac-sha3_512"];
    Blake2b, SimpleHmac<blake2::Blake2b512>, ["hmac-blake2b"];
    Blake2s, SimpleHmac<blake2::Blake2s256>, ["hmac-blake2s"];
}

/// Signs and verifies messages with the key of a connection.
///
/// Cloning is cheap. The `Debug` output does not contain the key.
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
    /// Creates a signer for the `signature_scheme` and `key` of a connection file.
    ///
    /// With an empty key, messages are not signed. The supported schemes are `hmac-md5`, `hmac-sha1`, `hmac-sha224`,
    /// `hmac-sha256`, `hmac-sha384`, `hmac-sha512`, `hmac-sha3_224`, `hmac-sha3_256`, `hmac-sha3_384`, `hmac-sha3_512`
    /// (the last four also in the form `hmac-sha3-224`), `hmac-blake2b` and `hmac-blake2s`.
    ///
    /// # Errors
    /// [`SigningError::UnknownScheme`] if the key is not empty and the scheme is not supported.
    pub fn new(scheme: &str, key: &[u8]) -> Result<Self, SigningError> {
        Ok(Self {
            scheme: Scheme::new(scheme, key)?,
        })
    }

    /// Creates a signer that signs nothing and accepts any signature, as with an empty key.
    #[must_use]
    pub fn unsigned() -> Self {
        Self {
            scheme: Scheme::Unsigned,
        }
    }

    /// Returns whether messages are signed.
    #[must_use]
    pub fn signs(&self) -> bool {
        !matches!(self.scheme, Scheme::Unsigned)
    }

    /// Signs header, parent header, metadata and content. The signature is empty if messages are not signed.
    #[must_use]
    pub fn sign(&self, parts: [&[u8]; 4]) -> Signature {
        let digest = self.scheme.digest(parts);
        let mut signature = Signature {
            hex: [0; 128],
            len: digest.len * 2,
        };
        // Encodes the whole array, because a loop of constant length compiles to a few vector instructions.
        for (byte, pair) in digest.bytes.iter().zip(signature.hex.chunks_exact_mut(2)) {
            pair[0] = hex_digit(byte >> 4);
            pair[1] = hex_digit(byte & 15);
        }
        signature
    }

    /// Verifies a signature of these parts in constant time. Always returns `true` if messages are not signed.
    #[must_use]
    pub fn verify(&self, signature: &[u8], parts: [&[u8]; 4]) -> bool {
        if !self.signs() {
            return true;
        }
        let expected = self.sign(parts);
        let expected = expected.as_bytes();
        // The length is not secret. The result depends on the digits only after all of them were compared.
        let differing = expected.iter().zip(signature).fold(0, |all, (a, b)| all | (a ^ b));
        expected.len() == signature.len() && bool::from(differing.ct_eq(&0))
    }
}

/// Returns the lowercase hex digit of a value below 16.
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

/// Signature in lowercase hex, stored without an allocation.
#[derive(Clone)]
pub struct Signature {
    hex: [u8; 128],
    len: usize,
}

impl Signature {
    /// Returns the lowercase hex digits, empty if messages are not signed.
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

/// Bounded history of recent signatures, which detects replayed messages.
///
/// At its capacity, the oldest signature is dropped. Memory grows with use, so the history of an idle kernel is small.
#[derive(Debug)]
pub struct DigestHistory {
    seen: HashSet<u64, BuildHasherDefault<IdentityHasher>>,
    order: VecDeque<u64>,
    capacity: usize,
}

impl Default for DigestHistory {
    fn default() -> Self {
        Self::new(DEFAULT_DIGEST_HISTORY)
    }
}

impl DigestHistory {
    /// Creates a history of at most `capacity` signatures, and at least one.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            seen: HashSet::default(),
            order: VecDeque::new(),
            capacity: capacity.max(1),
        }
    }

    /// Stores a verified signature. Returns `false` if it is a replay. Empty signatures are never replays.
    pub fn insert(&mut self, signature: &[u8]) -> bool {
        if signature.is_empty() {
            return true;
        }
        // The digits of a verified signature are as random as the digest, so 16 of them identify it.
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

/// Hasher that returns a value unchanged, for prefixes of digests, which are already random.
#[derive(Default)]
struct IdentityHasher(u64);

impl Hasher for IdentityHasher {
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
    fn an_empty_key_means_unsigned_with_any_scheme() {
        let signer = Signer::new("hmac-of-the-future", b"").unwrap();
        assert!(!signer.signs());
        assert!(signer.verify(b"anything", [b"a", b"b", b"c", b"d"]));
        assert_eq!(signer.sign([b"a", b"b", b"c", b"d"]).as_bytes(), b"");
    }

    #[test]
    fn an_unknown_scheme_is_named_in_the_error() {
        let error = Signer::new("hmac-crc32", b"key").unwrap_err();
        assert!(error.to_string().contains("hmac-crc32"));
    }

    #[test]
    fn a_changed_part_and_a_truncated_signature_do_not_verify() {
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
    fn the_history_detects_replays_and_drops_the_oldest() {
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
    fn debug_output_does_not_contain_the_key() {
        let signer = Signer::new("hmac-sha256", b"very-secret").unwrap();
        assert!(!format!("{signer:?}").contains("very-secret"));
    }
}
