//! Kernelspecs over HTTP.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::Served;
use kernel_provider::fake::FakeSpec;
use serde_json::json;

#[tokio::test]
async fn kernelspecs_are_listed_with_their_resource_files() {
    let served = Served::start().await;
    let body = served.ask("GET", "/api/kernelspecs").await.json();
    assert_eq!(body["default"], "echo");
    let spec = &body["kernelspecs"]["echo"];
    assert_eq!(spec["name"], "echo");
    assert_eq!(spec["spec"]["argv"], json!(["fake", "{connection_file}"]));
    assert_eq!(spec["spec"]["interrupt_mode"], "signal");
    assert_eq!(
        spec["resources"],
        json!({"logo-64x64": "/kernelspecs/echo/logo-64x64.png", "logo-svg": "/kernelspecs/echo/logo-svg.svg"})
    );
    assert_eq!(served.ask("GET", "/api/kernelspecs/echo").await.json(), *spec);
    served.ask("GET", "/api/kernelspecs/nothing").await.error(404);
    served.ask("GET", "/api/kernelspecs/..%2Fecho").await.error(404);
}

#[tokio::test]
async fn broken_kernelspecs_are_listed_with_the_reason() {
    let served = Served::start().await;
    assert!(
        served
            .ask("GET", "/api/kernelspecs")
            .await
            .json()
            .get("broken")
            .is_none()
    );
    let reason = "/kernels/bad/kernel.json is not a kernelspec: argv: invalid type";
    served.provider.install_broken("bad", reason);
    let body = served.ask("GET", "/api/kernelspecs").await.json();
    assert_eq!(body["broken"], json!({"bad": reason}));
    assert!(body["kernelspecs"].get("bad").is_none());
    for name in ["bad", "BAD"] {
        let error = served.ask("GET", &format!("/api/kernelspecs/{name}")).await.error(404);
        assert!(error.contains(reason), "{error}");
        let error = served
            .send("POST", "/api/kernels", json!({"name": name}))
            .await
            .error(500);
        assert!(error.contains(reason), "{error}");
    }
}

#[tokio::test]
async fn kernelspec_names_match_as_in_jupyter_client() {
    let served = Served::start().await;
    served.provider.install("python3", FakeSpec::echo(), json!({}));
    for (name, expected) in [
        ("ECHO", "echo"),
        ("Python3", "python3"),
        ("python", "python3"),
        ("python2", "python3"),
    ] {
        assert_eq!(
            served.ask("GET", &format!("/api/kernelspecs/{name}")).await.json()["name"],
            expected
        );
        let model = served.send("POST", "/api/kernels", json!({"name": name})).await.json();
        assert_eq!(model["name"], expected);
        let body = json!({"path": name, "name": "", "type": "notebook", "kernel": {"name": name}});
        let session = served.send("POST", "/api/sessions", body).await.json();
        assert_eq!(session["kernel"]["name"], expected);
    }
}

#[tokio::test]
async fn only_resource_files_of_kernelspecs_are_served() {
    let served = Served::start().await;
    let png = served.ask("GET", "/kernelspecs/echo/logo-64x64.png").await;
    assert_eq!((png.status, png.header("content-type")), (200, "image/png"));
    assert_eq!(&png.body[..], b"\x89PNG logo");
    let head = served.ask("HEAD", "/kernelspecs/echo/logo-64x64.png").await;
    assert_eq!((head.status, head.header("content-length")), (200, "9"));
    assert!(head.body.is_empty());
    let svg = served.ask("GET", "/kernelspecs/echo/logo-svg.svg").await;
    assert_eq!(svg.header("content-type"), "image/svg+xml");
    assert!(svg.header("content-security-policy").contains("sandbox"));
    for path in [
        "echo/none.png",
        "none/logo-64x64.png",
        "echo/",
        "echo/../../../../etc/passwd",
        "echo/..%2f..%2f..%2fetc%2fpasswd",
        "echo/%2fetc%2fpasswd",
        "echo//etc/passwd",
        "echo/logo-64x64.png%00.js",
        "echo/..%5cx",
    ] {
        served.ask("GET", &format!("/kernelspecs/{path}")).await.error(404);
    }
}

#[tokio::test]
async fn a_kernelspec_can_be_restricted_to_some_users() {
    let served = Served::start().await;
    let config = json!({"process_proxy": {"config": {"authorized_users": "ada,bob"}}});
    served.provider.install("hers", FakeSpec::echo(), config);
    let names = async |query: &str| {
        let body = served.ask("GET", &format!("/api/kernelspecs{query}")).await.json();
        body["kernelspecs"]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(names("").await, ["echo", "hers"]);
    assert_eq!(names("?user=").await, ["echo", "hers"]);
    assert_eq!(names("?user=ada").await, ["echo", "hers"]);
    assert_eq!(names("?user=eve").await, ["echo"]);
    // jupyter_server with KERNEL_USERNAME set appends the kernelspec's name to the user's.
    let one = served.ask("GET", "/api/kernelspecs?user=bob/hers").await.json();
    assert_eq!(one["name"], "hers");
    served.ask("GET", "/api/kernelspecs?user=eve/hers").await.error(403);
    served.ask("GET", "/api/kernelspecs?user=bob/nothing").await.error(404);
    served.ask("GET", "/api/kernelspecs/hers?user=eve").await.error(403);
    assert_eq!(served.ask("GET", "/api/kernelspecs/hers?user=bob").await.status, 200);

    let start = async |user: &str| {
        let body = json!({"name": "hers", "env": {"KERNEL_USERNAME": user}});
        served.send("POST", "/api/kernels", body).await
    };
    assert!(start("eve").await.error(403).contains("eve"));
    assert_eq!(start("ada").await.status, 201);
}
