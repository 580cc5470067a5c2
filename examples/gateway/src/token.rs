use std::fmt;

use subtle::ConstantTimeEq;
use uuid::Uuid;

/// A token for authentication. Its `Debug` output hides it.
#[derive(Clone)]
pub struct Token(String);

/// The text is not a valid token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a token must consist of one or more visible ASCII characters, because it is sent in a header")]
pub struct InvalidToken;

impl Token {
    /// Accepts a chosen token.
    ///
    /// # Errors
    /// [`InvalidToken`] if it is empty or contains characters other than visible ASCII.
    pub fn new(token: impl Into<String>) -> Result<Self, InvalidToken> {
        let token = token.into();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(InvalidToken);
        }
        Ok(Self(token))
    }

    /// Generates a random token of 32 letters and digits.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4().simple().to_string())
    }

    /// The token itself. It grants full access, so never log it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether the token may be guessed because it is short; random tokens have 32 characters.
    pub(crate) fn is_guessable(&self) -> bool {
        self.0.len() < 32
    }

    /// Whether `given` is the token, compared in constant time.
    pub(crate) fn is(&self, given: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(given).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_token_matches() {
        let token = Token::new("abc").unwrap();
        assert!(token.is(b"abc"));
        for wrong in ["", "ab", "abcd", "abd", "ABC"] {
            assert!(!token.is(wrong.as_bytes()), "{wrong:?}");
        }
        assert_eq!(format!("{token:?}"), "Token(…)");
    }

    #[test]
    fn a_token_must_be_visible_ascii() {
        for text in ["", "a b", "a\n", "ü", " "] {
            assert_eq!(Token::new(text).unwrap_err(), InvalidToken, "{text:?}");
        }
        let random = Token::random();
        assert_eq!(random.reveal().len(), 32);
        assert!(!random.is_guessable() && Token::new("abc").unwrap().is_guessable());
        assert_ne!(random.reveal(), Token::random().reveal());
    }
}
