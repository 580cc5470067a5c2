use std::fmt;

use uuid::Uuid;

/// Marks tokens of users, so that other tokens are not looked up.
const PREFIX: &str = "kmx_";
/// Length of the id, in hexadecimal digits.
const ID_LENGTH: usize = 16;

/// The token of a user: `kmx_`, an id that finds the user, and a secret. Its `Debug` output hides it.
#[derive(Clone)]
pub struct UserToken {
    text: String,
}

impl UserToken {
    /// A new token with 244 random bits in its secret part.
    pub(super) fn random() -> Self {
        let [id, first, second] = [(); 3].map(|()| Uuid::new_v4().simple().to_string());
        Self {
            text: format!("{PREFIX}{}_{first}{second}", &id[..ID_LENGTH]),
        }
    }

    /// Splits a token into its id and its secret; `None` if it is not that of a user.
    pub(super) fn split(token: &[u8]) -> Option<(&str, &str)> {
        let token = std::str::from_utf8(token).ok()?;
        token.strip_prefix(PREFIX)?.split_once('_')
    }

    /// The token itself. It grants the user's access, so never log it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.text
    }

    pub(super) fn id(&self) -> &str {
        &self.text[PREFIX.len()..PREFIX.len() + ID_LENGTH]
    }

    pub(super) fn secret(&self) -> &str {
        &self.text[PREFIX.len() + ID_LENGTH + 1..]
    }
}

impl fmt::Debug for UserToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UserToken(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_an_id_and_a_secret() {
        let token = UserToken::random();
        assert_eq!(
            UserToken::split(token.reveal().as_bytes()),
            Some((token.id(), token.secret()))
        );
        assert_eq!((token.id().len(), token.secret().len()), (16, 64));
        assert_eq!(format!("{token:?}"), "UserToken(…)");
        for other in [&b"kmx"[..], b"kmx_abc", b"token", b"", b"kmx_\xff_x"] {
            assert_eq!(UserToken::split(other), None);
        }
    }
}
