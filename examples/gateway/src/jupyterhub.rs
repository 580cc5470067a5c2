//! Users of a JupyterHub, with the tokens that it gives them.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, Uri};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::group_roles::GroupRoles;
use crate::http_get::{GetError, HttpGet};
use crate::identity::{Identity, checked_name};
use crate::keyed_hash::{KeyedHash, TokenHasher};

/// The most tokens that are remembered.
const MAX_TOKENS: usize = 4_096;
/// The most requests to the hub at a time about new tokens, the most about tokens in use, and how long another one
/// waits.
const MAX_REQUESTS: usize = 8;
const REQUEST_WAIT: Duration = Duration::from_secs(5);
/// How long a token that is in use stays valid while the hub does not answer.
const MAX_UNCHECKED: Duration = Duration::from_secs(5 * 60);

/// Options of a [`JupyterHub`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HubOptions {
    /// The URL of its API, such as `http://127.0.0.1:8081/hub/api`, which JupyterHub passes to its services as
    /// `JUPYTERHUB_API_URL`.
    pub api_url: String,
    /// The gateway's name as a service of the hub. Then tokens need the scope `access:services!service=NAME` or
    /// `access:services`.
    pub service: Option<String>,
    /// How often a token that is in use is checked again. If the hub no longer accepts it, its streams end.
    pub recheck: Duration,
}

impl HubOptions {
    /// A hub with this API, all of whose users are accepted, and whose tokens are checked every minute.
    #[must_use]
    pub fn new(api_url: impl Into<String>) -> Self {
        Self {
            api_url: api_url.into(),
            service: None,
            recheck: Duration::from_secs(60),
        }
    }
}

/// Why a [`JupyterHub`] cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The address is not a URL.
    #[error("{0:?} is not the URL of a JupyterHub's API, such as http://127.0.0.1:8081/hub/api")]
    Url(String),
    /// The system's certificates cannot be read.
    #[error("the system's certificates cannot be read, with which the hub is verified: {0}")]
    Certificates(#[source] std::io::Error),
}

/// The hub does not answer, or too many requests wait for it.
#[derive(Debug, PartialEq)]
pub(crate) struct HubUnavailable;

/// A JupyterHub whose users are accepted. Clones share the tokens that were checked.
#[derive(Clone)]
pub struct JupyterHub {
    shared: Arc<SharedHub>,
}

struct SharedHub {
    options: HubOptions,
    user: Uri,
    http: HttpGet,
    requests: Semaphore,
    rechecks: Semaphore,
    hasher: TokenHasher,
    /// Tokens that the hub has accepted. A task for each checks it again.
    known: Mutex<HashMap<KeyedHash, Arc<Identity>>>,
}

/// The hub's answer, in the parts that are needed.
#[derive(Deserialize)]
struct HubUser {
    #[serde(default)]
    kind: String,
    name: String,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    scopes: Vec<String>,
}

impl fmt::Debug for JupyterHub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JupyterHub")
            .field("options", &self.shared.options)
            .finish_non_exhaustive()
    }
}

impl JupyterHub {
    /// A hub, which is asked when the first token arrives.
    ///
    /// # Errors
    /// [`HubError`] if the address is wrong or the system has no certificates.
    pub fn new(options: HubOptions) -> Result<Self, HubError> {
        let user = format!("{}/user", options.api_url.trim_end_matches('/'));
        let user: Uri = user.parse().map_err(|_| HubError::Url(options.api_url.clone()))?;
        if user.host().is_none() || !matches!(user.scheme_str(), Some("http" | "https")) {
            return Err(HubError::Url(options.api_url));
        }
        Ok(Self {
            shared: Arc::new(SharedHub {
                options,
                user,
                http: HttpGet::new().map_err(HubError::Certificates)?,
                requests: Semaphore::new(MAX_REQUESTS),
                rechecks: Semaphore::new(MAX_REQUESTS),
                hasher: TokenHasher::random(),
                known: Mutex::default(),
            }),
        })
    }

    /// The user with this token; `None` if the hub does not accept it.
    ///
    /// # Errors
    /// [`HubUnavailable`] if the hub cannot be asked now.
    pub(crate) async fn find(&self, token: &[u8], roles: &GroupRoles) -> Result<Option<Arc<Identity>>, HubUnavailable> {
        if !may_be_of_hub(token) {
            return Ok(None);
        }
        let Ok(authorization) = HeaderValue::from_bytes(&[b"token ", token].concat()) else {
            return Ok(None);
        };
        let hash = self.shared.hasher.hash(token);
        let known = kernel_provider::lock(&self.shared.known).get(&hash).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let Some(mut identity) = self.ask(&self.shared.requests, authorization.clone(), roles).await? else {
            return Ok(None);
        };
        let revoked = CancellationToken::new();
        identity.revoked = Some(revoked.clone());
        let identity = Arc::new(identity);
        {
            let mut known = kernel_provider::lock(&self.shared.known);
            if let Some(known) = known.get(&hash) {
                return Ok(Some(known.clone()));
            }
            // Without a task that checks it again, its streams would not end.
            if known.len() >= MAX_TOKENS && !forget_unused(&mut known) {
                return Err(HubUnavailable);
            }
            known.insert(hash, identity.clone());
        }
        let (hub, roles, checked) = (self.clone(), roles.clone(), identity.clone());
        tokio::spawn(async move {
            hub.until_unused(&checked, authorization, &roles).await;
            kernel_provider::lock(&hub.shared.known).retain(|_, known| !Arc::ptr_eq(known, &checked));
            revoked.cancel();
        });
        Ok(Some(identity))
    }

    /// Asks the hub again until the identity changes, or no request and stream uses it.
    async fn until_unused(&self, identity: &Arc<Identity>, authorization: HeaderValue, roles: &GroupRoles) {
        let mut checked = Instant::now();
        // It ends here if it is forgotten.
        while timeout(self.shared.options.recheck, identity.ended()).await.is_err() {
            {
                // New requests find the identity while this lock is not held.
                let mut known = kernel_provider::lock(&self.shared.known);
                if is_unused(identity) {
                    known.retain(|_, known| !Arc::ptr_eq(known, identity));
                    return;
                }
            }
            let began = Instant::now();
            match self.ask(&self.shared.rechecks, authorization.clone(), roles).await {
                Ok(Some(now)) if is_same(&now, identity) => checked = began,
                Ok(_) => {
                    info!(
                        user = identity.name,
                        "the user's token of JupyterHub was revoked or changed"
                    );
                    return;
                }
                // Streams go on while the hub restarts.
                Err(HubUnavailable) if checked.elapsed() < MAX_UNCHECKED => {}
                Err(HubUnavailable) => {
                    warn!(
                        user = identity.name,
                        "JupyterHub does not answer, so the user's access ends"
                    );
                    return;
                }
            }
        }
    }

    async fn ask(
        &self,
        permits: &Semaphore,
        authorization: HeaderValue,
        roles: &GroupRoles,
    ) -> Result<Option<Identity>, HubUnavailable> {
        let SharedHub {
            options, user, http, ..
        } = &*self.shared;
        let Ok(Ok(_permit)) = timeout(REQUEST_WAIT, permits.acquire()).await else {
            return Err(HubUnavailable);
        };
        let found: HubUser = match http.json(user, Some(authorization)).await {
            Ok(found) => found,
            Err(GetError::Status(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND)) => {
                return Ok(None);
            }
            Err(error) => {
                warn!(%error, "JupyterHub cannot be asked about a token");
                return Err(HubUnavailable);
            }
        };
        let may_access = options.service.as_ref().is_none_or(|service| {
            let own = format!("access:services!service={service}");
            found
                .scopes
                .iter()
                .any(|scope| *scope == own || scope == "access:services")
        });
        if found.kind != "user" || !may_access || checked_name(&found.name).is_err() {
            return Ok(None);
        }
        let role = roles.role_of(&found.groups);
        Ok(Some(Identity::new(found.name, found.groups, role)))
    }
}

/// Whether a hub can have made this token. Others, of this gateway and of issuers, are not sent to the hub.
fn may_be_of_hub(token: &[u8]) -> bool {
    let is_jwt = token.iter().filter(|byte| **byte == b'.').count() == 2;
    token.iter().all(u8::is_ascii_graphic) && !token.starts_with(b"kmx_") && !is_jwt
}

/// Whether no request and stream uses the identity. The map has one reference, and the task that checks it another.
fn is_unused(identity: &Arc<Identity>) -> bool {
    Arc::strong_count(identity) <= 2
}

/// Forgets a token that no request and stream uses; returns whether there was one.
fn forget_unused(known: &mut HashMap<KeyedHash, Arc<Identity>>) -> bool {
    let unused = known
        .iter()
        .find(|(_, identity)| is_unused(identity))
        .map(|(hash, _)| *hash);
    let forgotten = unused.and_then(|hash| known.remove(&hash));
    if let Some(revoked) = forgotten.as_ref().and_then(|identity| identity.revoked.as_ref()) {
        // The task ends.
        revoked.cancel();
    }
    forgotten.is_some()
}

fn is_same(one: &Identity, other: &Identity) -> bool {
    (&one.name, &one.groups, one.role) == (&other.name, &other.groups, other.role)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Role;

    #[test]
    fn tokens_of_other_systems_are_not_sent_to_the_hub() {
        for wrong in ["kmx_0123_4567", "eyJh.eyJz.c2ln", "t ", "t\t", "a b", "ü"] {
            assert!(!may_be_of_hub(wrong.as_bytes()), "{wrong:?}");
        }
        for right in ["0123456789abcdef", "a.b", "a-b_c"] {
            assert!(may_be_of_hub(right.as_bytes()), "{right:?}");
        }
    }

    #[test]
    fn an_unused_token_is_forgotten_for_a_new_one() {
        let identity = |name: &str| {
            let mut identity = Identity::new(name, Vec::new(), Role::User);
            identity.revoked = Some(CancellationToken::new());
            Arc::new(identity)
        };
        let hasher = TokenHasher::random();
        let (used, unused) = (identity("ada"), identity("bob"));
        let _by_tasks = (used.clone(), unused.clone());
        let mut known = HashMap::from([(hasher.hash(b"a"), used.clone()), (hasher.hash(b"b"), unused)]);
        assert!(forget_unused(&mut known));
        assert!(!forget_unused(&mut known));
        assert!(known.values().all(|known| Arc::ptr_eq(known, &used)));
        assert!(!used.revoked.as_ref().unwrap().is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_ends_when_the_hub_does_not_answer_for_long() {
        // Nothing listens on this port.
        let hub = JupyterHub::new(HubOptions::new("http://127.0.0.1:1/hub/api")).unwrap();
        // Requests about new tokens do not delay those about tokens in use.
        let _all = hub.shared.requests.acquire_many(MAX_REQUESTS as u32).await.unwrap();
        let identity = Arc::new(Identity::new("ada", Vec::new(), Role::User));
        let _used = (identity.clone(), identity.clone());
        let began = Instant::now();
        let authorization = HeaderValue::from_static("token t");
        hub.until_unused(&identity, authorization, &GroupRoles::default()).await;
        let took = began.elapsed();
        assert!(took >= MAX_UNCHECKED && took < 2 * MAX_UNCHECKED, "{took:?}");
    }
}
