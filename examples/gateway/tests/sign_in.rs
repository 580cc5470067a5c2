//! Users of an issuer of tokens, of a JupyterHub and of a proxy. The issuer and the hub are small servers of the test;
//! `tests/e2e` has a real JupyterHub.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::Utc;
use common::{Answer, Served};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use kernelmux_gateway::{
    Access, GatewayOptions, GroupRoles, HubOptions, JupyterHub, Oidc, OidcOptions, Role, TrustedHeader,
};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

const DEADLINE: Duration = Duration::from_secs(60);
const AUDIENCE: &str = "kernelmux";
/// An RSA key of this test only, because making one takes seconds.
const RSA_KEY: &[u8] = include_bytes!("issuer-key.der");

/// A server of the test.
struct Server<T> {
    url: String,
    state: Arc<Mutex<T>>,
}

async fn serve<T: Send + 'static>(router: Router<Arc<Mutex<T>>>, state: T) -> Server<T> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let state = Arc::new(Mutex::new(state));
    let app = router.with_state(state.clone());
    tokio::spawn(async move { axum::serve(listener, app).await });
    Server { url, state }
}

/// An issuer's published keys.
#[derive(Default)]
struct Published {
    issuer: String,
    keys: Vec<Value>,
    fetches: usize,
    /// How long a fetch takes.
    delay: Duration,
}

/// A key of the issuer.
struct Key {
    id: &'static str,
    algorithm: Algorithm,
    private: EncodingKey,
}

impl Key {
    fn new(id: &'static str, algorithm: Algorithm) -> Self {
        let private = match algorithm {
            Algorithm::ES256 => {
                let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
                EncodingKey::from_ec_der(&pair.serialize_der())
            }
            _ => EncodingKey::from_rsa_der(RSA_KEY),
        };
        Self { id, algorithm, private }
    }

    fn public(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.private, self.algorithm).unwrap();
        jwk.common.key_id = Some(self.id.to_owned());
        serde_json::to_value(jwk).unwrap()
    }

    fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.id.to_owned());
        encode(&header, claims, &self.private).unwrap()
    }
}

async fn issuer(keys: &[&Key]) -> Server<Published> {
    let configuration = async |State(state): State<Arc<Mutex<Published>>>| {
        let issuer = state.lock().unwrap().issuer.clone();
        Json(json!({"jwks_uri": format!("{issuer}/keys"), "issuer": issuer}))
    };
    let published = async |State(state): State<Arc<Mutex<Published>>>| {
        let delay = state.lock().unwrap().delay;
        sleep(delay).await;
        let mut state = state.lock().unwrap();
        state.fetches += 1;
        Json(json!({"keys": state.keys.clone()}))
    };
    let router = Router::new()
        .route("/.well-known/openid-configuration", get(configuration))
        .route("/keys", get(published));
    let server = serve(router, Published::default()).await;
    let mut state = server.state.lock().unwrap();
    state.issuer.clone_from(&server.url);
    state.keys = keys.iter().map(|key| key.public()).collect();
    drop(state);
    server
}

fn claims(issuer: &Server<Published>) -> Value {
    let now = Utc::now().timestamp();
    json!({
        "iss": issuer.url, "aud": AUDIENCE, "sub": "ada", "groups": ["staff"], "iat": now, "exp": now + 600,
    })
}

/// The claims with some members replaced, or removed by null.
fn with(mut claims: Value, changes: Value) -> Value {
    let members = claims.as_object_mut().unwrap();
    for (name, value) in changes.as_object().unwrap().clone() {
        match value {
            Value::Null => drop(members.remove(&name)),
            value => drop(members.insert(name, value)),
        }
    }
    claims
}

async fn gateway(adjust: impl FnOnce(&mut GatewayOptions)) -> Served {
    Served::with(
        |options| {
            options.access = Access::Users;
            options.group_roles = GroupRoles::new(vec![("platform".to_owned(), Role::Operator)]);
            adjust(options);
        },
        |_| {},
    )
    .await
}

async fn with_issuer(issuer: &Server<Published>) -> Served {
    let oidc = Oidc::new(OidcOptions::new(issuer.url.clone(), AUDIENCE)).unwrap();
    gateway(|options| options.oidc = Some(oidc)).await
}

async fn me(served: &Served, token: &str) -> Answer {
    let authorization = format!("Bearer {token}");
    served
        .send_with_headers("GET", "/api/me", &[("authorization", &authorization)], "")
        .await
}

fn username(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["identity"]["username"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_signed_token_names_its_user() {
    let (first, second) = (
        Key::new("first", Algorithm::ES256),
        Key::new("second", Algorithm::RS256),
    );
    let issuer = issuer(&[&first, &second]).await;
    let served = with_issuer(&issuer).await;
    for key in [&first, &second] {
        for changes in [
            json!({}),
            json!({"aud": ["other", AUDIENCE]}),
            json!({"exp": Utc::now().timestamp() - 30}),
        ] {
            assert_eq!(
                username(&me(&served, &key.sign(&with(claims(&issuer), changes))).await),
                "ada"
            );
        }
    }
    assert_eq!(issuer.state.lock().unwrap().fetches, 1);
    let authorization = format!("Bearer {}", first.sign(&claims(&issuer)));
    let headers = [("authorization", authorization.as_str())];
    let started = served.send_with_headers("POST", "/api/kernels", &headers, "{}").await;
    assert_eq!(started.status, 201);
    assert_eq!(served.provider.last_launch().owner.as_deref(), Some("ada"));
    served
        .send_with_headers("GET", "/metrics", &headers, "")
        .await
        .error(403);
    let operator = first.sign(&with(claims(&issuer), json!({"groups": ["platform"]})));
    let authorization = format!("Bearer {operator}");
    let headers = [("authorization", authorization.as_str())];
    assert_eq!(
        served.send_with_headers("GET", "/metrics", &headers, "").await.status,
        200
    );
}

#[tokio::test]
async fn bad_tokens_are_refused_with_the_reason() {
    let key = Key::new("key", Algorithm::ES256);
    let issuer = issuer(&[&key]).await;
    let served = with_issuer(&issuer).await;
    let right = key.sign(&claims(&issuer));
    assert_eq!(username(&me(&served, &right).await), "ada");
    let now = Utc::now().timestamp();
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let unsigned = |header: Value| format!("{}.{}.", part(&header), part(&claims(&issuer)));
    // Key confusion: the public key, which everyone knows, as the secret of an HMAC.
    let public = key.public();
    let hmac = |secret: &[u8]| {
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some("key".to_owned());
        encode(&header, &claims(&issuer), &EncodingKey::from_secret(secret).unwrap()).unwrap()
    };
    let x = BASE64_URL_SAFE_NO_PAD.decode(public["x"].as_str().unwrap()).unwrap();
    let other = Key::new("key", Algorithm::ES256);
    let unknown = Key::new("unknown", Algorithm::ES256);
    let wrong_algorithm = Key::new("key", Algorithm::RS256);
    let mut parts: Vec<String> = right.split('.').map(str::to_owned).collect();
    parts[1] = part(&with(claims(&issuer), json!({"sub": "root"})));
    let forged = parts.join(".");
    let sign = |changes: Value| key.sign(&with(claims(&issuer), changes));
    for (token, reason) in [
        (unsigned(json!({"alg": "none"})), "algorithm"),
        (unsigned(json!({"alg": "None", "kid": "key"})), "algorithm"),
        (unsigned(json!({"alg": "HS256", "kid": "key"})), "algorithm"),
        (unsigned(json!({"alg": "ES256", "kid": "key"})), "signature is wrong"),
        (unsigned(json!({"kid": "key"})), "algorithm"),
        (hmac(public.to_string().as_bytes()), "algorithm"),
        (hmac(&x), "algorithm"),
        (forged, "signature is wrong"),
        (format!("{}x", &right[..right.len() - 4]), "signature is wrong"),
        (other.sign(&claims(&issuer)), "signature is wrong"),
        (unknown.sign(&claims(&issuer)), "no such key"),
        (wrong_algorithm.sign(&claims(&issuer)), "not for this algorithm"),
        (sign(json!({"exp": now - 3600})), "expired"),
        (sign(json!({"exp": null})), "exp"),
        (sign(json!({"exp": "tomorrow"})), ""),
        (sign(json!({"exp": 1e300})), ""),
        (sign(json!({"nbf": now + 3600})), "not valid yet"),
        (sign(json!({"aud": "other"})), "audience"),
        (sign(json!({"aud": ["other"]})), "audience"),
        (sign(json!({"aud": null})), "aud"),
        (sign(json!({"iss": "https://evil.example"})), "issuer"),
        (sign(json!({"iss": null})), "iss"),
        (sign(json!({"sub": null})), "sub"),
        (sign(json!({"sub": 7})), "name of a user"),
        (sign(json!({"sub": ""})), "name of a user"),
        (sign(json!({"sub": "a/b"})), "name of a user"),
        (sign(json!({"x": "y".repeat(20_000)})), "more than"),
        ("..".to_owned(), "algorithm"),
        ("a.b.c".to_owned(), "algorithm"),
        (format!("{right}.x"), "wrong"),
        ("x".to_owned(), "wrong"),
    ] {
        let answer = me(&served, &token).await;
        let message = answer.error(401);
        let shown: String = token.chars().take(80).collect();
        assert!(message.contains(reason), "{shown}: {message}");
        assert!(!message.contains(&token) || token.len() < 4, "{message}");
    }
    // Unknown keys cause few fetches.
    assert!(issuer.state.lock().unwrap().fetches <= 3);
    assert_eq!(username(&me(&served, &right).await), "ada");
}

#[tokio::test]
async fn expired_tokens_delay_nobody() {
    let key = Key::new("key", Algorithm::ES256);
    let issuer = issuer(&[&key]).await;
    let served = with_issuer(&issuer).await;
    let expired = key.sign(&with(claims(&issuer), json!({"exp": Utc::now().timestamp() - 3600})));
    let began = std::time::Instant::now();
    // As wrong tokens, 40 of these would each wait for a second.
    for _ in 0..60 {
        me(&served, &expired).await.error(401);
    }
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn the_issuer_may_change_its_keys() {
    let (old, new) = (Key::new("old", Algorithm::ES256), Key::new("new", Algorithm::ES256));
    let issuer = issuer(&[&old]).await;
    let served = with_issuer(&issuer).await;
    assert_eq!(username(&me(&served, &old.sign(&claims(&issuer))).await), "ada");
    issuer.state.lock().unwrap().keys = vec![old.public(), new.public()];
    let changed = async {
        while me(&served, &new.sign(&claims(&issuer))).await.status != 200 {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(DEADLINE, changed).await.expect("the new key is not accepted");
    assert_eq!(username(&me(&served, &old.sign(&claims(&issuer))).await), "ada");
}

#[tokio::test]
async fn a_client_that_disconnects_does_not_stop_the_fetch_of_keys() {
    let key = Key::new("key", Algorithm::ES256);
    let issuer = issuer(&[&key]).await;
    issuer.state.lock().unwrap().delay = Duration::from_millis(500);
    let served = with_issuer(&issuer).await;
    let token = key.sign(&claims(&issuer));
    assert!(timeout(Duration::from_millis(200), me(&served, &token)).await.is_err());
    for answer in futures::future::join_all((0..8).map(|_| me(&served, &token))).await {
        assert_eq!(username(&answer), "ada");
    }
    assert_eq!(issuer.state.lock().unwrap().fetches, 1);
}

#[tokio::test]
async fn an_issuer_that_does_not_answer_is_no_fault_of_the_token() {
    let key = Key::new("key", Algorithm::ES256);
    let issuer = issuer(&[&key]).await;
    issuer.state.lock().unwrap().issuer = "https://other.example".to_owned();
    let served = with_issuer(&issuer).await;
    let answer = me(&served, &key.sign(&claims(&issuer))).await;
    answer.error(503);
    assert_eq!(answer.header("retry-after"), "1");
}

#[test]
fn wrong_issuers_and_hubs_are_refused() {
    for issuer in ["", "issuer.example", "http://issuer.example", "ftp://x", "https://"] {
        assert!(Oidc::new(OidcOptions::new(issuer, AUDIENCE)).is_err(), "{issuer}");
    }
    assert!(Oidc::new(OidcOptions::new("https://issuer.example", "")).is_err());
    for hub in ["", "hub", "ftp://x/hub/api"] {
        assert!(JupyterHub::new(HubOptions::new(hub)).is_err(), "{hub}");
    }
}

#[tokio::test]
async fn a_proxy_names_its_users_and_nobody_else_can() {
    let header = || "x-forwarded-user".parse().unwrap();
    for (proxy, is_trusted) in [("127.0.0.0/8", true), ("10.0.0.0/8", false)] {
        let trusted = TrustedHeader::new(header(), vec![proxy.parse().unwrap()]);
        let served = gateway(|options| options.trusted_header = Some(trusted)).await;
        let ada = ("x-forwarded-user", "ada");
        let answer = served.send_with_headers("GET", "/api/me", &[ada], "").await;
        if !is_trusted {
            answer.error(401);
            continue;
        }
        assert_eq!(username(&answer), "ada");
        // A proxy may authenticate with cookies, so pages of other origins are refused.
        let foreign = [ada, ("origin", "http://evil.example")];
        served
            .send_with_headers("POST", "/api/kernels", &foreign, "{}")
            .await
            .error(403);
        let started = served.send_with_headers("POST", "/api/kernels", &[ada], "{}").await;
        assert_eq!(started.status, 201);
        assert_eq!(served.provider.last_launch().owner.as_deref(), Some("ada"));
        served.send_with_headers("GET", "/api/me", &[], "").await.error(401);
        served
            .send_with_headers("GET", "/api/me", &[ada, ("x-forwarded-user", "root")], "")
            .await
            .error(401);
    }
}

/// The users of a hub, by their tokens.
#[derive(Default)]
struct HubUsers {
    users: HashMap<String, Value>,
    requests: usize,
    is_down: bool,
}

async fn hub() -> Server<HubUsers> {
    let user = async |State(state): State<Arc<Mutex<HubUsers>>>, headers: HeaderMap| -> Response {
        let mut state = state.lock().unwrap();
        state.requests += 1;
        let authorization = headers["authorization"].to_str().unwrap();
        match state.users.get(authorization.strip_prefix("token ").unwrap()) {
            _ if state.is_down => StatusCode::BAD_GATEWAY.into_response(),
            Some(user) => Json(user.clone()).into_response(),
            None => StatusCode::FORBIDDEN.into_response(),
        }
    };
    let server = serve(Router::new().route("/hub/api/user", get(user)), HubUsers::default()).await;
    let users = [
        (
            "a",
            json!({"kind": "user", "name": "ada", "admin": true, "groups": ["platform"], "scopes": ["access:services!service=gw"]}),
        ),
        (
            "b",
            json!({"kind": "user", "name": "bob", "groups": [], "scopes": ["access:services"]}),
        ),
        (
            "c",
            json!({"kind": "user", "name": "eve", "groups": [], "scopes": ["access:servers!server=eve/"]}),
        ),
        (
            "d",
            json!({"kind": "service", "name": "cull", "scopes": ["access:services"]}),
        ),
    ];
    server.state.lock().unwrap().users = users.map(|(token, user)| (token.to_owned(), user)).into();
    server
}

#[tokio::test]
async fn a_hub_names_the_user_of_a_token() {
    let hub = hub().await;
    let mut options = HubOptions::new(format!("{}/hub/api", hub.url));
    options.service = Some("gw".to_owned());
    options.recheck = Duration::from_millis(50);
    let hub_users = JupyterHub::new(options).unwrap();
    let served = gateway(|options| options.hub = Some(hub_users)).await;
    for _ in 0..3 {
        assert_eq!(username(&me(&served, "a").await), "ada");
        assert_eq!(username(&me(&served, "b").await), "bob");
    }
    for wrong in ["c", "d", "x"] {
        me(&served, wrong).await.error(401);
    }
    let status = async |token: &str, path: &str| {
        let authorization = format!("token {token}");
        served
            .send_with_headers("GET", path, &[("authorization", &authorization)], "")
            .await
            .status
    };
    assert_eq!(
        (status("a", "/metrics").await, status("b", "/metrics").await),
        (200, 403)
    );

    // The stream of a user ends when the hub no longer accepts the token.
    let headers = [("authorization", "token b")];
    let kernel = served
        .send_with_headers("POST", "/api/kernels", &headers, "{}")
        .await
        .json();
    let log = format!("/api/kernels/{}/log", kernel["id"].as_str().unwrap());
    let streaming = tokio::spawn({
        let url = format!("http://{}{log}?token=b", served.address);
        async move { read_to_end(&url).await }
    });
    let requests = || hub.state.lock().unwrap().requests;
    let before = requests();
    let rechecked = async {
        while requests() < before + 3 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(DEADLINE, rechecked)
        .await
        .expect("the token is not checked again");
    assert!(!streaming.is_finished());
    hub.state.lock().unwrap().users.remove("b");
    timeout(DEADLINE, streaming)
        .await
        .expect("the stream does not end")
        .unwrap();
    me(&served, "b").await.error(401);
    hub.state.lock().unwrap().is_down = true;
    me(&served, "y").await.error(503);
}

#[tokio::test]
async fn the_hub_is_asked_about_few_tokens() {
    let hub = hub().await;
    let hub_users = JupyterHub::new(HubOptions::new(format!("{}/hub/api", hub.url))).unwrap();
    let trusted = TrustedHeader::new(
        "x-forwarded-user".parse().unwrap(),
        vec!["127.0.0.0/8".parse().unwrap()],
    );
    let served = gateway(|options| {
        options.hub = Some(hub_users);
        options.trusted_header = Some(trusted);
    })
    .await;
    let requests = || hub.state.lock().unwrap().requests;
    served
        .send_with_headers("GET", "/api?token=1&token=2&token=3&token=4&token=5", &[], "")
        .await
        .error(400);
    for other in ["kmx_0123456789abcdef_0123", "eyJh.eyJz.c2ln", "T%20", "%C3%BC"] {
        let path = format!("/api?token={other}");
        served.send_with_headers("GET", &path, &[], "").await.error(401);
    }
    assert_eq!(requests(), 0);
    let four = "/api?token=1&token=2&token=3&token=b";
    assert_eq!(served.send_with_headers("GET", four, &[], "").await.status, 200);
    assert_eq!(requests(), 4);

    // The proxy knows its users even if a token cannot be checked.
    hub.state.lock().unwrap().is_down = true;
    let headers = [("authorization", "token y"), ("x-forwarded-user", "zoe")];
    assert_eq!(
        username(&served.send_with_headers("GET", "/api/me", &headers, "").await),
        "zoe"
    );
    me(&served, "y").await.error(503);
}

/// Reads a response to its end.
async fn read_to_end(url: &str) {
    use http_body_util::{BodyExt, Empty};
    use hyper_util::client::legacy::Client;
    use hyper_util::rt::TokioExecutor;

    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<bytes::Bytes>>();
    let response = client.get(url.parse().unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    response.into_body().collect().await.unwrap();
}
