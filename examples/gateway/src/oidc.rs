//! Users with tokens of an OpenID Connect issuer: JWTs that are signed with the issuer's published keys.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::http::Uri;
use chrono::{DateTime, TimeDelta, Utc};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, Validation};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::group_roles::GroupRoles;
use crate::http_get::{GetError, HttpGet};
use crate::identity::{Identity, checked_name};

/// Longest token, in bytes.
const MAX_TOKEN: usize = 16 << 10;
/// How long the issuer's keys are used before they are fetched again.
const KEYS_AGE: Duration = Duration::from_secs(10 * 60);
/// The age from which requests wait for a fetch of keys. Younger keys are fetched again in the background.
const KEYS_MAX_AGE: Duration = Duration::from_secs(20 * 60);
/// The shortest time between two fetches, so that tokens with unknown keys cannot cause many.
const FETCH_PAUSE: Duration = Duration::from_secs(5);
/// How long a request waits for a fetch of keys.
const FETCH_WAIT: Duration = Duration::from_secs(5);
/// The most groups of a user.
const MAX_GROUPS: usize = 1_024;

/// Options of an [`Oidc`] issuer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OidcOptions {
    /// The issuer's URL, which is the claim `iss` of its tokens.
    pub issuer: String,
    /// The audience, which the claim `aud` of tokens must name.
    pub audience: String,
    /// The claim with the user's name.
    pub user_claim: String,
    /// The claim with the list of the user's groups.
    pub groups_claim: String,
    /// How far the clocks of the issuer and the gateway may differ.
    pub clock_skew: Duration,
}

impl OidcOptions {
    /// The user's name is in the claim `sub`, their groups are in `groups`, and clocks may differ by a minute.
    #[must_use]
    pub fn new(issuer: impl Into<String>, audience: impl Into<String>) -> Self {
        Self {
            issuer: issuer.into(),
            audience: audience.into(),
            user_claim: "sub".to_owned(),
            groups_claim: "groups".to_owned(),
            clock_skew: Duration::from_secs(60),
        }
    }
}

/// Why an [`Oidc`] issuer cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OidcError {
    /// The issuer is not a URL.
    #[error("the issuer {0:?} is not a URL with https://, or with http:// and a loopback address")]
    Issuer(String),
    /// The audience is empty.
    #[error("the audience of the issuer's tokens is empty; without it, tokens for other services would be accepted")]
    Audience,
    /// The system's certificates cannot be read.
    #[error("the system's certificates cannot be read, with which the issuer is verified: {0}")]
    Certificates(#[source] std::io::Error),
    /// The issuer's keys cannot be fetched.
    #[error("the issuer's keys cannot be fetched: {0}")]
    Keys(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Why a token is not accepted.
#[derive(Debug, thiserror::Error, PartialEq)]
pub(crate) enum OidcRefusal {
    /// The token is of another kind.
    #[error("it is not a JWT")]
    NoJwt,
    #[error("it has more than {MAX_TOKEN} bytes")]
    TooLong,
    #[error("its algorithm is not one with public keys: use RS256, PS256, ES256 or EdDSA, or their longer variants")]
    Algorithm,
    #[error("the issuer has no such key")]
    UnknownKey,
    #[error("its key is not for this algorithm")]
    WrongKey,
    #[error("it has expired")]
    Expired,
    #[error("it is not valid yet")]
    Immature,
    #[error("it is for another audience")]
    Audience,
    #[error("it is from another issuer")]
    Issuer,
    #[error("its claim {0:?} is missing")]
    MissingClaim(String),
    #[error("its claim {0:?} is not the name of a user")]
    Name(String),
    #[error("it is damaged, or its signature is wrong")]
    Invalid,
    /// Not a fault of the token.
    #[error("the issuer's keys cannot be fetched now; try again later")]
    NoKeys,
}

/// An OpenID Connect issuer whose tokens are accepted. Clones share the keys.
#[derive(Clone)]
pub struct Oidc {
    shared: Arc<SharedOidc>,
}

struct SharedOidc {
    options: OidcOptions,
    configuration: Uri,
    http: HttpGet,
    keys: Mutex<Option<Keys>>,
    fetches: Mutex<Fetches>,
}

/// The fetches of keys, of which one runs at a time.
#[derive(Default)]
struct Fetches {
    /// Its channel closes when the fetch ends.
    running: Option<watch::Receiver<()>>,
    /// When the last one ended.
    ended: Option<Instant>,
}

#[derive(Clone)]
struct Keys {
    set: Arc<JwkSet>,
    fetched: Instant,
}

/// The part of an issuer's configuration that is needed.
#[derive(Deserialize)]
struct Configuration {
    issuer: String,
    jwks_uri: String,
}

impl fmt::Debug for Oidc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Oidc")
            .field("options", &self.shared.options)
            .finish_non_exhaustive()
    }
}

impl Oidc {
    /// An issuer, whose keys are fetched when the first token arrives.
    ///
    /// # Errors
    /// [`OidcError`] if the options are wrong or the system has no certificates.
    pub fn new(options: OidcOptions) -> Result<Self, OidcError> {
        let address = format!(
            "{}/.well-known/openid-configuration",
            options.issuer.trim_end_matches('/')
        );
        let configuration = safe_uri(&address).ok_or_else(|| OidcError::Issuer(options.issuer.clone()))?;
        if options.audience.is_empty() {
            return Err(OidcError::Audience);
        }
        Ok(Self {
            shared: Arc::new(SharedOidc {
                options,
                configuration,
                http: HttpGet::new().map_err(OidcError::Certificates)?,
                keys: Mutex::default(),
                fetches: Mutex::default(),
            }),
        })
    }

    /// The user with this token.
    pub(crate) async fn find(&self, token: &[u8], roles: &GroupRoles) -> Result<Arc<Identity>, OidcRefusal> {
        if token.iter().filter(|byte| **byte == b'.').count() != 2 {
            return Err(OidcRefusal::NoJwt);
        }
        if token.len() > MAX_TOKEN {
            return Err(OidcRefusal::TooLong);
        }
        // Fails for algorithms that are unknown, such as `none`.
        let header = jsonwebtoken::decode_header(token).map_err(|_| OidcRefusal::Algorithm)?;
        if header.alg.family() == AlgorithmFamily::Hmac {
            return Err(OidcRefusal::Algorithm);
        }
        let key = self.key(header.kid.as_deref(), header.alg).await?;
        let claims = self.claims(token, header.alg, &key)?;
        self.identity(&claims, roles).map(Arc::new)
    }

    fn claims(&self, token: &[u8], algorithm: Algorithm, key: &DecodingKey) -> Result<Map<String, Value>, OidcRefusal> {
        let options = &self.shared.options;
        let mut validation = Validation::new(algorithm);
        validation.set_issuer(&[&options.issuer]);
        validation.set_audience(&[&options.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation.validate_nbf = true;
        validation.leeway = options.clock_skew.as_secs();
        let decoded = jsonwebtoken::decode::<Map<String, Value>>(token, key, &validation);
        decoded.map(|token| token.claims).map_err(|error| match error.kind() {
            ErrorKind::ExpiredSignature => OidcRefusal::Expired,
            ErrorKind::ImmatureSignature => OidcRefusal::Immature,
            ErrorKind::InvalidAudience => OidcRefusal::Audience,
            ErrorKind::InvalidIssuer => OidcRefusal::Issuer,
            ErrorKind::MissingRequiredClaim(claim) => OidcRefusal::MissingClaim(claim.clone()),
            _ => OidcRefusal::Invalid,
        })
    }

    fn identity(&self, claims: &Map<String, Value>, roles: &GroupRoles) -> Result<Identity, OidcRefusal> {
        let options = &self.shared.options;
        let claim = &options.user_claim;
        let name = claims
            .get(claim)
            .ok_or_else(|| OidcRefusal::MissingClaim(claim.clone()))?;
        let name = name.as_str().and_then(|name| checked_name(name).ok());
        let name = name.ok_or_else(|| OidcRefusal::Name(claim.clone()))?;
        let groups = claims.get(&options.groups_claim).and_then(Value::as_array);
        let groups: Vec<String> = groups
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .take(MAX_GROUPS)
            .map(str::to_owned)
            .collect();
        let role = roles.role_of(&groups);
        let mut identity = Identity::new(name, groups, role);
        // Checked before as a time in the future, possibly with a fraction.
        let expires = claims.get("exp").and_then(Value::as_f64).unwrap_or_default() as i64;
        let skew = TimeDelta::from_std(options.clock_skew).unwrap_or_default();
        identity.expires = DateTime::from_timestamp(expires, 0).and_then(|expires| expires.checked_add_signed(skew));
        if identity.expires.is_none() {
            return Err(OidcRefusal::Invalid);
        }
        Ok(identity)
    }

    /// Fetches the issuer's keys, and returns the issuer's time if it tells it.
    ///
    /// # Errors
    /// [`OidcError::Keys`] if the keys cannot be fetched.
    pub async fn check(&self) -> Result<Option<DateTime<Utc>>, OidcError> {
        match self.fetch().await {
            Ok((_, date)) => Ok(date),
            Err(error) => Err(OidcError::Keys(error.into())),
        }
    }

    /// The issuer's key with this id, or its only key if the token names none. Fetches the keys again if the key is not
    /// known, because issuers change their keys.
    async fn key(&self, id: Option<&str>, algorithm: Algorithm) -> Result<DecodingKey, OidcRefusal> {
        let known = self.keys();
        let is_known = known.as_ref().is_some_and(|keys| find(&keys.set, id).is_some());
        let is_older_than = |age| known.as_ref().is_none_or(|keys| keys.fetched.elapsed() >= age);
        if !is_known || is_older_than(KEYS_AGE) {
            let fetching = self.start_fetch();
            if (!is_known || is_older_than(KEYS_MAX_AGE))
                && let Some(mut fetching) = fetching
                && timeout(FETCH_WAIT, fetching.changed()).await.is_err()
                // If the key is known, its age matters less than an issuer that does not answer.
                && !is_known
            {
                return Err(OidcRefusal::NoKeys);
            }
        }
        let keys = self.keys().ok_or(OidcRefusal::NoKeys)?;
        let found = find(&keys.set, id).ok_or(OidcRefusal::UnknownKey)?.clone();
        if !is_for(&found, algorithm) {
            return Err(OidcRefusal::WrongKey);
        }
        DecodingKey::from_jwk(&found).map_err(|_| OidcRefusal::WrongKey)
    }

    fn keys(&self) -> Option<Keys> {
        kernel_provider::lock(&self.shared.keys).clone()
    }

    /// Starts to fetch the keys, unless a fetch runs or has ended just now. The receiver's channel closes at the end of
    /// the fetch, which goes on if the request that needs it is cancelled.
    fn start_fetch(&self) -> Option<watch::Receiver<()>> {
        let mut fetches = kernel_provider::lock(&self.shared.fetches);
        // An error means that the fetch has ended.
        let running = fetches.running.clone().filter(|running| running.has_changed().is_ok());
        if running.is_some() {
            return running;
        }
        if fetches.ended.is_some_and(|ended| ended.elapsed() < FETCH_PAUSE) {
            return None;
        }
        let (running, waiting) = watch::channel(());
        fetches.running = Some(waiting.clone());
        let oidc = self.clone();
        tokio::spawn(async move {
            oidc.fetch_and_keep().await;
            kernel_provider::lock(&oidc.shared.fetches).ended = Some(Instant::now());
            drop(running);
        });
        Some(waiting)
    }

    async fn fetch_and_keep(&self) {
        match self.fetch().await {
            Ok((set, _)) => {
                info!(keys = set.keys.len(), "the issuer's keys were fetched");
                let keys = Keys {
                    set: Arc::new(set),
                    fetched: Instant::now(),
                };
                *kernel_provider::lock(&self.shared.keys) = Some(keys);
            }
            // The keys from before stay in use.
            Err(error) => warn!(issuer = self.shared.options.issuer, %error, "the issuer's keys cannot be fetched"),
        }
    }

    async fn fetch(&self) -> Result<(JwkSet, Option<DateTime<Utc>>), FetchError> {
        let SharedOidc {
            options,
            configuration,
            http,
            ..
        } = &*self.shared;
        let found: Configuration = http.json(configuration, None).await?;
        if found.issuer != options.issuer {
            return Err(FetchError::OtherIssuer(found.issuer));
        }
        let keys = safe_uri(&found.jwks_uri).ok_or_else(|| FetchError::Unsafe(found.jwks_uri.clone()))?;
        Ok(http.json_and_date(&keys, None).await?)
    }
}

/// Why an issuer's keys could not be fetched.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Get(#[from] GetError),
    #[error("its configuration names the issuer {0:?}; write it exactly like that in --oidc-issuer")]
    OtherIssuer(String),
    #[error("the address {0:?} of its keys does not begin with https://")]
    Unsafe(String),
}

/// The URL, if its content cannot be changed on the way: HTTPS, or HTTP on this machine.
fn safe_uri(text: &str) -> Option<Uri> {
    let uri: Uri = text.parse().ok()?;
    let host = uri.host()?.trim_matches(['[', ']']).to_owned();
    let is_local = host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    match uri.scheme_str() {
        Some("https") => Some(uri),
        Some("http") if is_local => Some(uri),
        _ => None,
    }
}

fn find<'a>(keys: &'a JwkSet, id: Option<&str>) -> Option<&'a Jwk> {
    match (id, keys.keys.as_slice()) {
        (Some(id), _) => keys.find(id),
        (None, [only]) => Some(only),
        (None, _) => None,
    }
}

/// Whether the key is a public key for signatures with this algorithm.
fn is_for(key: &Jwk, algorithm: Algorithm) -> bool {
    let family = match &key.algorithm {
        AlgorithmParameters::RSA(_) => AlgorithmFamily::Rsa,
        AlgorithmParameters::EllipticCurve(_) => AlgorithmFamily::Ec,
        AlgorithmParameters::OctetKeyPair(_) => AlgorithmFamily::Ed,
        _ => return false,
    };
    let common = &key.common;
    let is_same = |named: &KeyAlgorithm| *named == KeyAlgorithm::from(algorithm);
    family == algorithm.family()
        && common
            .public_key_use
            .as_ref()
            .is_none_or(|purpose| *purpose == PublicKeyUse::Signature)
        && common.key_algorithm.as_ref().is_none_or(is_same)
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{EncodingKey, Header};
    use proptest::prelude::*;
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
    use serde_json::json;
    use tokio::runtime::{Builder, Runtime};

    use super::*;

    /// An issuer whose keys need not be fetched, and a token of it.
    fn issuer() -> (Oidc, String) {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let private = EncodingKey::from_ec_der(&pair.serialize_der());
        let mut public = Jwk::from_encoding_key(&private, Algorithm::ES256).unwrap();
        public.common.key_id = Some("key".to_owned());
        let oidc = Oidc::new(OidcOptions::new("http://127.0.0.1:1", "kernelmux")).unwrap();
        *kernel_provider::lock(&oidc.shared.keys) = Some(Keys {
            set: Arc::new(JwkSet { keys: vec![public] }),
            fetched: Instant::now(),
        });
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some("key".to_owned());
        let claims = json!({
            "iss": "http://127.0.0.1:1", "aud": "kernelmux", "sub": "ada", "exp": Utc::now().timestamp() + 600,
        });
        (oidc, jsonwebtoken::encode(&header, &claims, &private).unwrap())
    }

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_all().build().unwrap()
    }

    fn find(runtime: &Runtime, oidc: &Oidc, token: &[u8]) -> Result<Arc<Identity>, OidcRefusal> {
        runtime.block_on(oidc.find(token, &GroupRoles::default()))
    }

    #[test]
    fn a_changed_token_is_refused() {
        let (runtime, (oidc, right)) = (runtime(), issuer());
        let found = find(&runtime, &oidc, right.as_bytes()).unwrap();
        assert_eq!((found.name.as_deref(), found.role), (Some("ada"), crate::Role::User));
        assert!(found.expires.is_some_and(|expires| expires > Utc::now()));
        proptest!(ProptestConfig::with_cases(512), |(place in 0..right.len(), byte: u8, kind in 0..3)| {
            let mut changed = right.clone().into_bytes();
            match kind {
                0 => changed[place] = byte,
                1 => changed.insert(place, byte),
                _ => drop(changed.remove(place)),
            }
            prop_assume!(changed != right.as_bytes());
            prop_assert!(find(&runtime, &oidc, &changed).is_err());
        });
    }

    #[test]
    fn any_bytes_are_refused() {
        let (runtime, (oidc, _)) = (runtime(), issuer());
        proptest!(ProptestConfig::with_cases(512), |(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 1..5))| {
            prop_assert!(find(&runtime, &oidc, &parts.join(&b'.')).is_err());
        });
        proptest!(ProptestConfig::with_cases(512), |(header in ".*", claims in ".*", signature in ".*")| {
            use base64::Engine;
            use base64::prelude::BASE64_URL_SAFE_NO_PAD;
            let parts = [header, claims, signature].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part));
            prop_assert!(find(&runtime, &oidc, parts.join(".").as_bytes()).is_err());
        });
    }
}
