use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use uuid::Uuid;

/// The hash of a token, for comparisons and as a key in memory in place of the token.
pub(crate) type KeyedHash = [u8; 32];

/// Hashes tokens with a random key, so that the hashes are useless outside of this process.
pub(crate) struct TokenHasher {
    key: [u8; 64],
}

impl TokenHasher {
    /// A hasher with a key of 488 random bits.
    pub(crate) fn random() -> Self {
        let mut key = [0; 64];
        for part in key.chunks_exact_mut(16) {
            part.copy_from_slice(Uuid::new_v4().as_bytes());
        }
        Self { key }
    }

    /// The HMAC-SHA-256 of the token.
    pub(crate) fn hash(&self, token: &[u8]) -> KeyedHash {
        let mut mac = Hmac::<Sha256>::new(&self.key.into());
        mac.update(token);
        mac.finalize().into_bytes().into()
    }
}
