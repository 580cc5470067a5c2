use std::fmt;

use subtle::ConstantTimeEq;
use uuid::Uuid;

/// The token that a client must have. Its `Debug` output does not tell it.
#[derive(Clone)]
pub struct Token(String);

/// A text that cannot be a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a token must have at least one character, and only visible ASCII ones, as it travels in a header")]
pub struct InvalidToken;

impl Token {
    /// Takes a token that somebody chose.
    ///
    /// # Errors
    /// [`InvalidToken`] where it is empty, or holds a character that is no visible ASCII.
    pub fn new(token: impl Into<String>) -> Result<Self, InvalidToken> {
        let token = token.into();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(InvalidToken);
        }
        Ok(Self(token))
    }

    /// Makes one that nobody can guess, of 32 letters and digits.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4().simple().to_string())
    }

    /// The token itself. It opens the gateway: show it only to whom it is for, and never log it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether it is so short that somebody may guess it: a random one has 32 characters.
    pub(crate) fn is_guessable(&self) -> bool {
        self.0.len() < 32
    }

    /// Whether `given` is the token, in a time that does not tell how much of it is right.
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
    fn a_token_is_told_by_itself_only() {
        let token = Token::new("abc").unwrap();
        assert!(token.is(b"abc"));
        for wrong in ["", "ab", "abcd", "abd", "ABC"] {
            assert!(!token.is(wrong.as_bytes()), "{wrong:?}");
        }
        assert_eq!(format!("{token:?}"), "Token(…)");
    }

    #[test]
    fn what_cannot_travel_is_no_token() {
        for text in ["", "a b", "a\n", "ü", " "] {
            assert_eq!(Token::new(text).unwrap_err(), InvalidToken, "{text:?}");
        }
        let random = Token::random();
        assert_eq!(random.reveal().len(), 32);
        assert!(!random.is_guessable() && Token::new("abc").unwrap().is_guessable());
        assert_ne!(random.reveal(), Token::random().reveal());
    }
}
