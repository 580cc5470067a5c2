//! Authentication: finds out who sends a request.
//!
//! Tokens are sent as `Authorization: token X`, `Authorization: Bearer X` or `?token=X`. The words `token` and `Bearer` in
//! the header are case-insensitive. The first way that accepts a token of the request decides: the shared token, the
//! users' tokens, those of an OpenID Connect issuer, and those of a JupyterHub. Without such a token, a trusted proxy or
//! the client's certificate may name the user.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{MatchedPath, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::time::sleep;

use crate::audit::AuditedRequest;
use crate::error::ApiError;
use crate::group_roles::GroupRoles;
use crate::identity::Identity;
use crate::jupyterhub::{HubUnavailable, JupyterHub};
use crate::oidc::{Oidc, OidcRefusal};
use crate::rates::{Limited, TooMany};
use crate::tls::ClientCertificate;
use crate::trusted_header::PeerAddress;
use crate::user_tokens::{Busy, Users};
use crate::wrong_tokens::{ClientAddress, WrongTokens};
use crate::{Access, Gateway, GatewayOptions, Token, authorization, origin};

/// The most tokens of a request. Each may cost a question to JupyterHub.
const MAX_GIVEN: usize = 4;
/// The longest delay of the answer to a wrong token if no token can be guessed.
const MAX_DELAY: Duration = Duration::from_secs(5);

/// Passes requests of known identities that may do what they request. Without authentication, it applies
/// [`origin::check`] instead.
///
/// A page that knows a token could send its requests from elsewhere, so its origin does not matter. No cookie grants
/// access, so a page cannot use a token that it does not know.
pub(crate) async fn guard(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    // Browsers send preflight requests without a token. No route handles OPTIONS, so this allows nothing.
    if request.method() == Method::OPTIONS {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let audited = gateway
        .options()
        .audit
        .clone()
        .map(|log| (log, AuditedRequest::new(&parts)));
    let identity = authenticate(&gateway, &parts).await;
    let caller = identity.as_ref().ok().cloned();
    let response = match identity {
        Ok(identity) => answer(&gateway, identity, parts, body, next).await,
        Err(refusal) => *refusal,
    };
    if let Some((log, request)) = audited
        && let Some(line) = request.line(&gateway, caller.as_deref(), &response)
    {
        log.append(line).await;
    }
    response
}

/// Answers the request of a known identity, if it may do what it requests.
async fn answer(gateway: &Arc<Gateway>, identity: Arc<Identity>, mut parts: Parts, body: Body, next: Next) -> Response {
    if let Err(refusal) = count(gateway, &identity, &parts) {
        gateway.metrics.refusal(refusal.limit());
        return refusal.into_response();
    }
    let permission = match authorization::check(gateway, &identity, &mut parts).await {
        Ok(permission) => permission,
        Err(refusal) => return refusal.into_response(),
    };
    parts.extensions.insert(identity.clone());
    parts.extensions.insert(permission.clone());
    // The permission may end while the body arrives.
    let response = tokio::select! {
        response = next.run(Request::from_parts(parts, body)) => response,
        () = permission.clone().ended(gateway.clone()) => {
            return if identity.has_ended() {
                *unauthorized("the token was revoked or has expired while the request was answered")
            } else {
                ApiError::not_found("the kernel is no longer shared").into_response()
            };
        }
    };
    permission.limit(gateway.clone(), response)
}

/// Counts the request for the limits of its user.
fn count(gateway: &Gateway, identity: &Identity, request: &Parts) -> Result<(), TooMany> {
    let Some(user) = identity.name.as_deref().filter(|_| !identity.acts_for_others()) else {
        return Ok(());
    };
    gateway.rates.count(Limited::Requests, user)?;
    let route = request.extensions.get::<MatchedPath>();
    if route.is_some_and(|route| authorization::is_connection(route.as_str())) {
        gateway.rates.count(Limited::Connections, user)?;
    }
    Ok(())
}

/// Finds out who sends the request.
async fn authenticate(gateway: &Gateway, request: &Parts) -> Result<Arc<Identity>, Box<Response>> {
    let (options, shared) = gateway.access();
    let options = &*options;
    let token = match &options.access {
        Access::Open => {
            return match origin::check(options, &request.method, &request.headers) {
                Ok(()) => Ok(shared),
                Err(refusal) => Err(Box::new(refusal.into_response())),
            };
        }
        Access::Token(token) => Some((token, shared)),
        Access::Users => None,
    };
    let by_connection = by_connection(options, request);
    let ways = Ways {
        token,
        users: options.users.as_ref(),
        oidc: options.oidc.as_ref(),
        hub: options.hub.as_ref(),
        roles: &options.group_roles,
        by_connection: by_connection.clone(),
    };
    // Missing if the router is not served by `serve`.
    let address = request.extensions.get::<ClientAddress>().copied();
    let given = given(&request.headers, &request.uri);
    if given.len() > MAX_GIVEN {
        let message = format!("the request has more than {MAX_GIVEN} tokens; send one");
        return Err(Box::new(ApiError::bad_request(message).into_response()));
    }
    let identity = ways.identity(&gateway.wrong_tokens, address, &given).await?;
    // Browsers send cookies, by which a proxy may authenticate them, and certificates with requests of foreign pages too.
    if by_connection.is_some_and(|by_connection| Arc::ptr_eq(&by_connection, &identity)) {
        let checked = origin::check(options, &request.method, &request.headers);
        checked.map_err(|refusal| Box::new(refusal.into_response()))?;
    }
    Ok(identity)
}

/// The user that a trusted proxy or the client's certificate names.
fn by_connection(options: &GatewayOptions, request: &Parts) -> Option<Arc<Identity>> {
    let peer = request.extensions.get::<PeerAddress>().copied();
    let certificate = request.extensions.get::<ClientCertificate>();
    let trusted = options.trusted_header.as_ref();
    let from_proxy =
        trusted.and_then(|trusted| trusted.identity(&request.headers, peer, certificate, &options.group_roles));
    from_proxy.or_else(|| {
        let certificate =
            certificate.filter(|certificate| !trusted.is_some_and(|trusted| trusted.is_of_proxy(certificate)));
        Some(certificate?.identity(&options.group_roles))
    })
}

/// The ways to authenticate. The first one that accepts a token decides; the proxy's header and the client's certificate
/// come last.
struct Ways<'a> {
    /// The shared token and the identity of those who have it.
    token: Option<(&'a Token, Arc<Identity>)>,
    users: Option<&'a Users>,
    oidc: Option<&'a Oidc>,
    hub: Option<&'a JupyterHub>,
    roles: &'a GroupRoles,
    /// See [`by_connection`].
    by_connection: Option<Arc<Identity>>,
}

impl Ways<'_> {
    async fn identity(
        &self,
        wrong_tokens: &WrongTokens,
        address: Option<ClientAddress>,
        given: &[Vec<u8>],
    ) -> Result<Arc<Identity>, Box<Response>> {
        let locked_out = address.and_then(|address| wrong_tokens.locked_out(address, Instant::now()));
        // Locking out an address, which may be a proxy's, is justified only if tokens can be guessed.
        let is_guessable = self.token.as_ref().is_some_and(|(token, _)| token.is_guessable());
        let locked_out = locked_out.filter(|_| is_guessable);
        if locked_out.is_none()
            && let Some((token, shared)) = &self.token
            && given.iter().any(|given| token.is(given))
        {
            return Ok(shared.clone());
        }
        let mut reason = "the token is wrong".to_owned();
        // An expired token with the right signature is no guess.
        let mut is_guess = false;
        let mut unchecked = None;
        for given in given {
            match self.user(given).await {
                Ok(user) => return Ok(user),
                Err(Refusal::Wrong) => is_guess = true,
                Err(Refusal::Jwt(refusal)) => {
                    is_guess |= refusal != OidcRefusal::Expired;
                    reason = format!("the token is not accepted: {refusal}");
                }
                Err(Refusal::Later(message)) => {
                    unchecked = Some(message);
                    break;
                }
            }
        }
        if let Some(by_connection) = &self.by_connection {
            return Ok(by_connection.clone());
        }
        if let Some(message) = unchecked {
            return Err(later(StatusCode::SERVICE_UNAVAILABLE, Duration::from_secs(1), message));
        }
        if given.is_empty() {
            let message = "a token is required: send `Authorization: token TOKEN`, or `?token=TOKEN`";
            return Err(unauthorized(message));
        }
        if let Some(wait) = locked_out {
            let message = "too many wrong tokens from this address; wait for the time in Retry-After";
            return Err(later(StatusCode::TOO_MANY_REQUESTS, wait, message));
        }
        if is_guess && let Some(address) = address {
            let delay = wrong_tokens.count(address, Instant::now());
            // The address may be a proxy's, with many users.
            sleep(if is_guessable { delay } else { delay.min(MAX_DELAY) }).await;
        }
        Err(unauthorized(&reason))
    }

    /// The user with this token.
    async fn user(&self, token: &[u8]) -> Result<Arc<Identity>, Refusal> {
        if let Some(users) = self.users
            && let Some(user) = users.find(token).await?
        {
            return Ok(user);
        }
        let mut refusal = Refusal::Wrong;
        if let Some(oidc) = self.oidc {
            match oidc.find(token, self.roles).await {
                Ok(user) => return Ok(user),
                Err(OidcRefusal::NoJwt) => {}
                Err(OidcRefusal::NoKeys) => {
                    return Err(Refusal::Later(
                        "the issuer's keys cannot be fetched now; try again later",
                    ));
                }
                Err(refused) => refusal = Refusal::Jwt(refused),
            }
        }
        if let Some(hub) = self.hub
            && let Some(user) = hub.find(token, self.roles).await?
        {
            return Ok(user);
        }
        Err(refusal)
    }
}

/// Why a token names no user.
enum Refusal {
    Wrong,
    Jwt(OidcRefusal),
    /// It cannot be checked now, for this reason.
    Later(&'static str),
}

impl From<Busy> for Refusal {
    fn from(_: Busy) -> Self {
        Self::Later("too many tokens are being checked; try again after the time in Retry-After")
    }
}

impl From<HubUnavailable> for Refusal {
    fn from(_: HubUnavailable) -> Self {
        Self::Later("JupyterHub does not answer, so the token cannot be checked; try again later")
    }
}

fn later(status: StatusCode, wait: Duration, message: &str) -> Box<Response> {
    let retry_after = [(header::RETRY_AFTER, wait.as_secs().max(1).to_string())];
    let refusal = ApiError::new(status, message);
    Box::new((retry_after, refusal).into_response())
}

fn unauthorized(message: &str) -> Box<Response> {
    let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
    let refusal = ApiError::new(StatusCode::UNAUTHORIZED, message);
    Box::new((challenge, refusal).into_response())
}

/// All tokens in the request. Ignores an empty `Authorization: token` or `?token=`, which clients without a token send.
fn given(headers: &HeaderMap, uri: &Uri) -> Vec<Vec<u8>> {
    let from_headers = headers
        .get_all(header::AUTHORIZATION)
        .iter()
        .filter_map(|value| of_header(value.as_bytes()))
        .map(<[u8]>::to_vec);
    let query = Query::<Vec<(String, String)>>::try_from_uri(uri).map_or_else(|_| Vec::new(), |query| query.0);
    let from_query = query
        .into_iter()
        .filter(|(key, value)| key == "token" && !value.is_empty())
        .map(|(_, value)| value.into_bytes());
    from_headers.chain(from_query).collect()
}

fn of_header(value: &[u8]) -> Option<&[u8]> {
    let value = value.trim_ascii();
    let end = value.iter().position(u8::is_ascii_whitespace)?;
    let (scheme, token) = value.split_at(end);
    let is_known = scheme.eq_ignore_ascii_case(b"token") || scheme.eq_ignore_ascii_case(b"bearer");
    is_known.then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn with_token<'a>(token: &'a Token, roles: &'a GroupRoles) -> Ways<'a> {
        Ways {
            token: Some((token, Arc::new(Identity::shared()))),
            users: None,
            oidc: None,
            hub: None,
            roles,
            by_connection: None,
        }
    }

    #[tokio::test]
    async fn the_token_is_accepted_in_the_header_and_in_the_query() {
        let (wrong_tokens, token) = (WrongTokens::default(), Token::new("s3cret/&").unwrap());
        let status = async |headers: &[&[u8]], uri: &str| {
            let mut map = HeaderMap::new();
            for value in headers {
                map.append(header::AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
            }
            let roles = GroupRoles::default();
            let ways = with_token(&token, &roles);
            let given = given(&map, &uri.parse().unwrap());
            let checked = ways.identity(&wrong_tokens, None, &given).await;
            checked.err().map(|refusal| refusal.status())
        };
        let right: &[(&[&[u8]], &str)] = &[
            (&[b"token s3cret/&"], "/"),
            (&[b"Token  s3cret/& "], "/"),
            (&[b"TOKEN\ts3cret/&"], "/"),
            (&[b"bearer s3cret/&"], "/?x=1"),
            (&[b"Bearer s3cret/&"], "/"),
            (&[], "/?token=s3cret/%26"),
            (&[], "/?a=b&token=s3cret%2F%26"),
            // A proxy may add credentials.
            (&[b"Basic dXNlcjpwYXNz"], "/?token=s3cret/%26"),
            (&[b"token"], "/?token=s3cret/%26"),
        ];
        for (headers, uri) in right {
            assert_eq!(status(headers, uri).await, None, "{headers:?} {uri}");
        }
        let wrong: &[(&[&[u8]], &str)] = &[
            (&[], "/"),
            (&[], "/?token="),
            (&[], "/?Token=s3cret/%26"),
            (&[], "/?token=s3cret"),
            (&[], "/?token=%ff%fe"),
            (&[b"token"], "/"),
            (&[b"token "], "/"),
            (&[b"token s3cret/&x"], "/"),
            (&[b"token s3cret/"], "/"),
            (&[b"token S3CRET/&"], "/"),
            (&[b"Basic s3cret/&"], "/"),
            (&[b"tokens3cret/&"], "/"),
            (&[b"s3cret/&"], "/"),
            (&[b"token \xff\xfe"], "/"),
        ];
        for (headers, uri) in wrong {
            assert_eq!(
                status(headers, uri).await,
                Some(StatusCode::UNAUTHORIZED),
                "{headers:?} {uri}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_tokens_from_a_proxy_do_not_delay_its_users_without_bound() {
        for (token, is_bounded) in [("s3cret".to_owned(), false), ("x".repeat(32), true)] {
            let (wrong_tokens, token) = (WrongTokens::default(), Token::new(token).unwrap());
            let roles = GroupRoles::default();
            let ways = with_token(&token, &roles);
            let address = std::net::IpAddr::from([192, 0, 2, 1]).into();
            let mut longest = Duration::ZERO;
            for _ in 0..40 {
                let began = tokio::time::Instant::now();
                let given = [b"wrong".to_vec()];
                assert!(ways.identity(&wrong_tokens, Some(address), &given).await.is_err());
                longest = longest.max(began.elapsed());
            }
            assert_eq!(
                longest <= MAX_DELAY + Duration::from_millis(10),
                is_bounded,
                "{longest:?}"
            );
        }
    }
}
