//! Access control: tokens, origins, CORS, and the base URL.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use common::{Served, TOKEN, UNKNOWN};
use kernelmux_gateway::{Access, AllowOrigin, GatewayOptions};

/// One route of each kind, one unknown path, and one method that is not allowed.
const ADDRESSES: [(&str, &str); 8] = [
    ("GET", "/api"),
    ("GET", "/api/kernels"),
    ("POST", "/api/kernels"),
    ("GET", "/api/kernelspecs"),
    ("GET", "/kernelspecs/echo/logo-64x64.png"),
    ("GET", "/metrics"),
    ("GET", "/nothing"),
    ("DELETE", "/api/kernels"),
];

#[tokio::test]
async fn requests_without_a_valid_token_are_refused() {
    let served = Served::start().await;
    let almost = format!("token {TOKEN}x");
    for value in ["", "token", "token ", "token wrong", &almost, "Basic s3cret", TOKEN] {
        for (method, path) in ADDRESSES {
            let answer = served
                .send_with_headers(method, path, &[("authorization", value)], "")
                .await;
            let message = answer.error(401);
            assert!(!message.contains(TOKEN), "{message}");
            assert_eq!(answer.header("www-authenticate"), "Bearer");
        }
    }
    for query in ["token=", "token=wrong", "Token=s3cret"] {
        served
            .send_with_headers("GET", &format!("/api?{query}"), &[], "")
            .await
            .error(401);
    }
    let channels = format!("/api/kernels/{UNKNOWN}/channels");
    served.send_with_headers("GET", &channels, &[], "").await.error(401);
    assert!(served.provider.launches.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_token_is_accepted_in_the_header_and_in_the_query() {
    let served = Served::start().await;
    for scheme in ["token", "Token", "TOKEN", "Bearer", "bearer"] {
        let value = format!("{scheme} {TOKEN}");
        assert_eq!(
            served
                .send_with_headers("GET", "/api", &[("authorization", &value)], "")
                .await
                .status,
            200
        );
    }
    let query = format!("/api?token={TOKEN}");
    assert_eq!(served.send_with_headers("GET", &query, &[], "").await.status, 200);
    // An empty token in the header, as a client without a token sends it, does not override the query.
    assert_eq!(
        served
            .send_with_headers("GET", &query, &[("authorization", "token")], "")
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn without_access_control_any_token_is_accepted() {
    let served = Served::with(
        |options| {
            options.access = Access::Open;
            options.local_hosts_only = true;
        },
        |_| {},
    )
    .await;
    for value in ["token", "token anything", "Basic x"] {
        assert_eq!(
            served
                .send_with_headers("GET", "/api", &[("authorization", value)], "")
                .await
                .status,
            200
        );
    }
    assert_eq!(served.send_with_headers("GET", "/api", &[], "").await.status, 200);
    // DNS rebinding: the host name of a foreign page resolves to the gateway's address.
    served
        .send_with_headers("GET", "/api/kernels", &[("host", "rebound.example:8888")], "")
        .await
        .error(403);
}

#[tokio::test]
async fn without_access_control_foreign_origins_cannot_change_anything() {
    let open = Served::with(|options| options.access = Access::Open, |_| {}).await;
    let with_token = Served::start().await;
    let token = format!("token {TOKEN}");
    let upgrade = [("connection", "upgrade"), ("upgrade", "websocket")];
    let channels = format!("/api/kernels/{UNKNOWN}/channels");
    for (served, foreign) in [(&open, 403), (&with_token, 201)] {
        let own = format!("http://{}", served.address);
        for (origin, status) in [(own.as_str(), 201), ("http://evil.example", foreign), ("null", foreign)] {
            let headers = [("authorization", token.as_str()), ("origin", origin)];
            let answer = served.send_with_headers("POST", "/api/kernels", &headers, "{}").await;
            assert_eq!(answer.status, status, "{origin}");
            // Without the CORS header, a browser does not show a foreign page the answer.
            assert_eq!(answer.header("access-control-allow-origin"), "");
            assert_eq!(
                served
                    .send_with_headers("GET", "/api/kernels", &headers, "")
                    .await
                    .status,
                200
            );
            // The origin is checked before the kernel is looked up.
            let status = if status == 201 { 404 } else { 403 };
            served
                .send_with_headers("GET", &channels, &[&headers[..], &upgrade].concat(), "")
                .await
                .error(status);
        }
    }
}

#[tokio::test]
async fn allowed_origins_have_full_access() {
    let allow = AllowOrigin::parse(&["http://lab.example:1234"]).unwrap();
    let served = Served::with(|options| options.allow_origin = allow, |_| {}).await;
    let origin = ("origin", "http://lab.example:1234");
    let token = format!("token {TOKEN}");
    let preflight = [
        origin,
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,content-type"),
    ];
    let answer = served
        .send_with_headers("OPTIONS", "/api/kernels", &preflight, "")
        .await;
    assert_eq!(answer.status, 204);
    assert_eq!(answer.header("access-control-allow-origin"), origin.1);
    assert_eq!(answer.header("access-control-allow-methods"), "GET,HEAD,POST,OPTIONS");
    assert!(answer.header("access-control-allow-headers").contains("Authorization"));
    assert_eq!(answer.header("vary"), "Origin");
    let post = served
        .send_with_headers("POST", "/api/kernels", &[origin, ("authorization", &token)], "{}")
        .await;
    assert_eq!(post.status, 201);
    assert_eq!(post.header("access-control-expose-headers"), "Location");
    // The page can also read errors, including that of a missing token.
    for (path, headers, status) in [
        ("/api/kernels/x", vec![origin, ("authorization", &token)], 404),
        ("/api/kernels", vec![origin], 401),
    ] {
        let answer = served.send_with_headers("GET", path, &headers, "").await;
        answer.error(status);
        assert_eq!(answer.header("access-control-allow-origin"), origin.1);
    }
    let other = [("origin", "http://other.example"), ("authorization", token.as_str())];
    let answer = served.send_with_headers("GET", "/api", &other, "").await;
    assert_eq!(answer.header("access-control-allow-origin"), "");
    assert_eq!(answer.header("vary"), "Origin");

    let any = Served::with(|options| options.allow_origin = AllowOrigin::Any, |_| {}).await;
    let answer = any.send_with_headers("POST", "/api/kernels", &other, "{}").await;
    assert_eq!(
        (answer.status, answer.header("access-control-allow-origin")),
        (201, "*")
    );
}

#[tokio::test]
async fn cors_headers_follow_the_options() {
    let configure = |options: &mut GatewayOptions| {
        options.allow_origin = AllowOrigin::Any;
        options.cors.allow_credentials = true;
        options.cors.allow_headers = vec!["x-mine".parse().unwrap()];
        options.cors.allow_methods = vec!["GET".parse().unwrap(), "POST".parse().unwrap()];
        options.cors.expose_headers = vec!["x-theirs".parse().unwrap()];
        options.cors.max_age = Duration::from_secs(7);
    };
    let served = Served::with(configure, |_| {}).await;
    let origin = ("origin", "http://lab.example");
    let answer = served.send_with_headers("OPTIONS", "/api/kernels", &[origin], "").await;
    for (header, expected) in [
        // With credentials, browsers do not accept `*`, so the answer names the origin.
        ("access-control-allow-origin", origin.1),
        ("access-control-allow-credentials", "true"),
        ("access-control-allow-methods", "GET, POST"),
        (
            "access-control-allow-headers",
            "Authorization, Content-Type, X-XSRFToken, x-mine",
        ),
        ("access-control-expose-headers", "Location, x-theirs"),
        ("access-control-max-age", "7"),
        ("vary", "Origin"),
    ] {
        assert_eq!(answer.header(header), expected, "{header}");
    }
}

#[tokio::test]
async fn options_requests_need_no_token_and_list_the_methods() {
    let served = Served::start().await;
    for (path, methods) in [
        ("/api/kernels", "GET,HEAD,POST,OPTIONS"),
        (&format!("/api/kernels/{UNKNOWN}"), "GET,HEAD,DELETE,OPTIONS"),
        ("/api/sessions", "GET,HEAD,POST,OPTIONS"),
        ("/api/kernelspecs", "GET,HEAD,OPTIONS"),
    ] {
        let answer = served.send_with_headers("OPTIONS", path, &[], "").await;
        assert_eq!((answer.status, answer.header("allow")), (204, methods), "{path}");
        assert_eq!(answer.header("access-control-allow-methods"), "");
    }
    served
        .send_with_headers("OPTIONS", "/nothing", &[], "")
        .await
        .error(404);
}

#[tokio::test]
async fn all_routes_are_below_the_base_url() {
    let served = Served::with(|options| options.base_url = "/some/where".parse().unwrap(), |_| {}).await;
    let spec = served.ask("GET", "/some/where/api/kernelspecs/echo").await.json();
    assert_eq!(
        spec["resources"]["logo-svg"],
        "/some/where/kernelspecs/echo/logo-svg.svg"
    );
    assert_eq!(
        served
            .ask("GET", "/some/where/kernelspecs/echo/logo-svg.svg")
            .await
            .status,
        200
    );
    let kernel = served.send("POST", "/some/where/api/kernels", "").await;
    assert!(kernel.header("location").starts_with("/some/where/api/kernels/"));
    let session = served
        .send("POST", "/some/where/api/sessions", r#"{"path": "p", "type": "x"}"#)
        .await;
    assert!(session.header("location").starts_with("/some/where/api/sessions/"));
    for path in ["/api", "/api/kernels", "/some/where/nothing", "/some"] {
        served.ask("GET", path).await.error(404);
    }
}

#[tokio::test]
async fn the_health_check_needs_no_token() {
    for (base_url, path) in [("/", "/healthz"), ("/jupyter", "/jupyter/healthz")] {
        let served = Served::with(|options| options.base_url = base_url.parse().unwrap(), |_| {}).await;
        for headers in [
            &[][..],
            &[("authorization", "token wrong"), ("origin", "http://evil.example")],
        ] {
            let answer = served.send_with_headers("GET", path, headers, "").await;
            assert_eq!((answer.status, &answer.body[..]), (200, &b"ok\n"[..]));
            assert_eq!(answer.header("cache-control"), "no-store");
            assert_eq!(answer.header("access-control-allow-origin"), "");
        }
        assert_eq!(served.send_with_headers("POST", path, &[], "").await.status, 405);
    }
}
