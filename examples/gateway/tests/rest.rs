//! Kernels over HTTP: the routes, their answers and their errors.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Served, UNKNOWN, is_timestamp};
use kernel_provider::fake::FakeSpec;
use kernel_provider::{ExitCause, LaunchError};
use serde_json::{Value, json};

#[tokio::test]
async fn the_version_is_given_as_version_and_gateway_version() {
    let answer = Served::start().await.ask("GET", "/api").await;
    let body = answer.json();
    assert_eq!(body["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(body["gateway_version"], body["version"]);
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
}

#[tokio::test]
async fn a_kernel_can_be_started_listed_interrupted_restarted_and_deleted() {
    let served = Served::start().await;
    let answer = served.send("POST", "/api/kernels", json!({"name": "echo"})).await;
    assert_eq!(answer.status, 201);
    let model = answer.json();
    let id = model["id"].as_str().unwrap();
    let path = format!("/api/kernels/{id}");
    assert_eq!(answer.header("location"), path);
    let fields: Vec<_> = model.as_object().unwrap().keys().collect();
    assert_eq!(
        fields,
        [
            "id",
            "name",
            "last_activity",
            "execution_state",
            "connections",
            "kernelmux"
        ]
    );
    assert_eq!((&model["name"], &model["connections"]), (&json!("echo"), &json!(0)));
    assert!(is_timestamp(&model["last_activity"]), "{model}");

    let list = served.ask("GET", "/api/kernels").await.json();
    assert_eq!(list[0]["id"], id);
    assert_eq!(served.ask("GET", &path).await.json()["id"], id);
    let status = served.ask("GET", "/api/status").await.json();
    assert_eq!((&status["kernels"], &status["connections"]), (&json!(1), &json!(0)));
    assert!(is_timestamp(&status["started"]) && is_timestamp(&status["last_activity"]));

    let interrupt = served.send("POST", &format!("{path}/interrupt"), "{}").await;
    assert_eq!((interrupt.status, interrupt.body.len()), (204, 0));
    assert_eq!(served.provider.fake.interrupts(id.parse().unwrap()), 1);
    let restart = served.send("POST", &format!("{path}/restart"), "{}").await;
    assert_eq!(restart.status, 200);
    assert_eq!(restart.json()["id"], id);

    let delete = served.ask("DELETE", &path).await;
    assert_eq!((delete.status, delete.body.len()), (204, 0));
    for (method, tail) in [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/interrupt"),
        ("POST", "/restart"),
    ] {
        let message = served.ask(method, &format!("{path}{tail}")).await.error(404);
        assert!(message.contains(id), "{message}");
    }
    assert_eq!(served.ask("GET", "/api/kernels").await.json(), json!([]));
}

#[tokio::test]
async fn a_dead_kernel_has_a_reason_and_can_be_restarted() {
    let served = Served::with(|_| {}, |manager| manager.restart_limit = 0).await;
    let model = served.start_kernel(json!({})).await;
    let id = model["id"].as_str().unwrap();
    let path = format!("/api/kernels/{id}");
    let kernel = served.manager.get(id.parse().unwrap()).unwrap();
    let mut state = kernel.state();
    served.provider.fake.end(id.parse().unwrap(), ExitCause::OutOfMemory);
    state.wait_for(|state| state.as_str() == "dead").await.unwrap();
    let dead = served.ask("GET", &path).await.json();
    assert_eq!(dead["execution_state"], "dead");
    assert!(dead["reason"].as_str().unwrap().contains("memory"), "{dead}");
    let message = served.ask("POST", &format!("{path}/interrupt")).await.error(409);
    assert!(message.contains("memory"), "{message}");
    let alive = served.ask("POST", &format!("{path}/restart")).await.json();
    assert_ne!(alive["execution_state"], "dead");
    assert_eq!(alive.get("reason"), None);
    assert_eq!(served.ask("DELETE", &path).await.status, 204);
}

#[tokio::test]
async fn a_kernel_can_be_started_without_a_kernelspec_name() {
    let served = Served::start().await;
    for body in [
        "",
        "  ",
        "{}",
        r#"{"name": null, "env": null, "path": null}"#,
        r#"{"name": ""}"#,
        r#"{"path": "x/y"}"#,
    ] {
        let answer = served.send("POST", "/api/kernels", body).await;
        assert_eq!(answer.status, 201, "{body:?} {answer:?}");
        assert_eq!(answer.json()["name"], "echo");
    }
}

#[tokio::test]
async fn the_client_can_choose_the_kernel_id() {
    let served = Served::start().await;
    let by_env = uuid::Uuid::new_v4().to_string();
    let by_body = uuid::Uuid::new_v4().to_string();
    let env = json!({"env": {"KERNEL_ID": by_env}});
    assert_eq!(served.start_kernel(env.clone()).await["id"], by_env);
    assert_eq!(served.start_kernel(json!({"kernel_id": by_body})).await["id"], by_body);
    // Version 1 UUIDs are accepted too, as by other servers.
    let by_time = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
    assert_eq!(served.start_kernel(json!({"kernel_id": by_time})).await["id"], by_time);
    assert!(
        served
            .send("POST", "/api/kernels", env)
            .await
            .error(409)
            .contains(&by_env)
    );
    assert_eq!(
        served.ask("GET", "/api/kernels").await.json().as_array().unwrap().len(),
        3
    );
    for body in [
        json!({"kernel_id": "seven"}),
        json!({"kernel_id": 7}),
        json!({"kernel_id": "6ba7b8109dad11d180b400c04fd430c8"}),
        json!({"kernel_id": "a-b-c-d-e"}),
        json!({"env": {"KERNEL_ID": "../../etc/passwd"}}),
        json!({"kernel_id": UNKNOWN, "env": {"KERNEL_ID": uuid::Uuid::new_v4()}}),
    ] {
        served.send("POST", "/api/kernels", body).await.error(400);
    }
}

#[tokio::test]
async fn kernel_variables_reach_the_provider() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("sub")).unwrap();
    let root_dir = root.path().to_owned();
    let served = Served::with(
        |options| {
            options.client_envs = vec!["LANG".to_owned()];
            options.default_owner = Some("nobody".to_owned());
            options.root_dir = Some(root_dir);
        },
        |_| {},
    )
    .await;
    let env = json!({
        "KERNEL_USERNAME": "ada", "KERNEL_X": "1", "LANG": "C", "PATH": "/evil", "KERNEL_LAUNCH_TIMEOUT": "7.5",
        "KERNEL_WORKING_DIR": root.path(), "KERNEL_AUTH_TOKEN": "no",
    });
    let model = served.start_kernel(json!({"env": env, "path": "sub/n.ipynb"})).await;
    let launch = served.provider.last_launch();
    assert_eq!(launch.owner.as_deref(), Some("ada"));
    assert_eq!(launch.timeout.as_secs_f64(), 7.5);
    assert_eq!(launch.working_dir.as_deref(), Some(root.path()));
    let get = |name: &str| launch.env.get(name).map(String::as_str);
    assert_eq!(get("KERNEL_GATEWAY"), Some("1"));
    assert_eq!(get("KERNEL_ID"), model["id"].as_str());
    assert_eq!((get("KERNEL_X"), get("LANG")), (Some("1"), Some("C")));
    assert_eq!((get("PATH"), get("KERNEL_AUTH_TOKEN")), (None, None));

    served
        .start_kernel(json!({"path": "sub/n.ipynb", "env": {"KERNEL_WORKING_DIR": "/nowhere"}}))
        .await;
    let launch = served.provider.last_launch();
    assert_eq!(launch.owner.as_deref(), Some("nobody"));
    assert_eq!(launch.env.get("KERNEL_USERNAME").map(String::as_str), Some("nobody"));
    assert_eq!(launch.working_dir, Some(root.path().join("sub")));
    assert!(!launch.env.contains_key("KERNEL_X"));
}

#[tokio::test]
async fn concurrent_starts_keep_their_environments_apart() {
    let served = Served::start().await;
    let start = async |user: &str| {
        let only = format!("KERNEL_ONLY_{user}");
        let body = json!({"env": {"KERNEL_USERNAME": user, only: "1"}});
        served.start_kernel(body).await
    };
    tokio::join!(start("a"), start("b"), start("c"), start("d"));
    let launches = served.provider.launches.lock().unwrap();
    assert_eq!(launches.len(), 4);
    for launch in launches.iter() {
        let only: Vec<_> = launch
            .env
            .keys()
            .filter(|name| name.starts_with("KERNEL_ONLY_"))
            .collect();
        assert_eq!(only, [&format!("KERNEL_ONLY_{}", launch.owner.as_deref().unwrap())]);
    }
}

#[tokio::test]
async fn exceeding_a_kernel_limit_is_forbidden() {
    let served = Served::with(
        |_| {},
        |manager| {
            manager.max_kernels = Some(3);
            manager.max_kernels_per_owner = Some(2);
        },
    )
    .await;
    let start = async |user: &str| {
        let body = json!({"env": {"KERNEL_USERNAME": user}});
        served.send("POST", "/api/kernels", body).await
    };
    let first = start("ada").await.json();
    assert_eq!(start("ada").await.status, 201);
    assert!(start("ada").await.error(403).contains("ada"));
    assert_eq!(start("bob").await.status, 201);
    assert!(start("eve").await.error(403).contains('3'));
    let path = format!("/api/kernels/{}", first["id"].as_str().unwrap());
    assert_eq!(served.ask("DELETE", &path).await.status, 204);
    assert_eq!(start("eve").await.status, 201);
}

#[tokio::test]
async fn a_failed_start_reports_the_cause() {
    let served = Served::start().await;
    let install = |name: &str, spec| served.provider.install(name, spec, json!({}));
    install(
        "dies",
        FakeSpec::failing(LaunchError::died(ExitCause::Code(1), "the licence has run out")),
    );
    let reason = "no GPU is free".to_owned();
    install("full", FakeSpec::failing(LaunchError::NoRoom { reason }));
    install(
        "bad",
        FakeSpec::failing(LaunchError::BadRequest("bad volume".to_owned())),
    );
    install("silent", FakeSpec::silent("still compiling"));
    for (name, status, evidence) in [
        ("dies", 500, "the licence has run out"),
        ("full", 503, "no GPU is free"),
        ("bad", 400, "bad volume"),
        ("silent", 504, "still compiling"),
        ("nothing", 400, "echo"),
    ] {
        let body = json!({"name": name, "env": {"KERNEL_LAUNCH_TIMEOUT": "0.2"}});
        let message = served.send("POST", "/api/kernels", body).await.error(status);
        assert!(message.contains(evidence), "{name}: {message}");
    }
    assert_eq!(served.ask("GET", "/api/kernels").await.json(), json!([]));
}

#[tokio::test]
async fn malformed_ids_are_not_found() {
    let served = Served::start().await;
    for id in [
        UNKNOWN,
        "7",
        "-1",
        "NaN",
        "%00",
        "..%2f..%2fetc%2fpasswd",
        &"9".repeat(5_000),
    ] {
        for (method, tail) in [
            ("GET", ""),
            ("DELETE", ""),
            ("POST", "/restart"),
            ("POST", "/interrupt"),
        ] {
            served.ask(method, &format!("/api/kernels/{id}{tail}")).await.error(404);
        }
        served.ask("GET", &format!("/api/sessions/{id}")).await.error(404);
    }
    served.ask("GET", "/api/kernels/%ff%fe").await.error(400);
}

#[tokio::test]
async fn malformed_bodies_are_refused() {
    let served = Served::start().await;
    let deep = "[".repeat(200_000);
    for body in [
        "{name",
        "{} {}",
        "[]",
        "7",
        "\"echo\"",
        "{\"name\": NaN}",
        &deep,
        "{\"name\": 7}",
        "{\"name\": [\"echo\"]}",
        "{\"path\": 7}",
        "{\"env\": []}",
        "{\"env\": \"KERNEL_X=1\"}",
        "{\"env\": {\"KERNEL_X\": 1}}",
        "{\"env\": {\"KERNEL_X\": \"a\\u0000b\"}}",
        "{\"env\": {\"KERNEL_LAUNCH_TIMEOUT\": \"soon\"}}",
        &format!("{{\"name\": \"{}\"}}", "x".repeat(100_000)),
    ] {
        let message = served.send("POST", "/api/kernels", body).await.error(400);
        assert!(message.len() < 1_000, "{message}");
    }
    assert_eq!(served.provider.launches.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn a_start_completes_although_its_client_disconnects() {
    let served = Served::start().await;
    let id = uuid::Uuid::new_v4().to_string();
    let mut events = served.manager.events();
    let body = json!({"kernel_id": id}).to_string();
    let request = format!(
        "POST /api/kernels HTTP/1.1\r\nHost: x\r\nAuthorization: token {}\r\nContent-Length: {}\r\n\r\n{body}",
        common::TOKEN,
        body.len()
    );
    let mut stream = tokio::net::TcpStream::connect(served.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes())
        .await
        .unwrap();
    // The client leaves while the kernel starts.
    served.provider.launching.notified().await;
    drop(stream);
    assert_eq!(events.recv().await.unwrap().id.to_string(), id);
    assert_eq!(served.ask("GET", &format!("/api/kernels/{id}")).await.json()["id"], id);
}

#[tokio::test]
async fn me_returns_identity_and_permissions() {
    let served = Served::with(|options| options.default_owner = Some("ada".to_owned()), |_| {}).await;
    let me = served.ask("GET", "/api/me").await.json();
    assert_eq!(me["identity"]["username"], "ada");
    assert_eq!(me["identity"]["initials"], "A");
    assert_eq!(me["permissions"], json!({"updatable_fields": []}));
    let asked = "/api/me?permissions=%7B%22kernels%22%3A%5B%22read%22%5D%7D";
    assert_eq!(
        served.ask("GET", asked).await.json()["permissions"]["kernels"],
        json!(["read"])
    );
    for bad in ["%5B%5D", "x", "%7B%22a%22%3A1%7D"] {
        served
            .ask("GET", &format!("/api/me?permissions={bad}"))
            .await
            .error(400);
    }
}

#[tokio::test]
async fn metrics_count_kernels_and_requests() {
    let served = Served::start().await;
    served.start_kernel(json!({})).await;
    served.ask("GET", &format!("/api/kernels/{UNKNOWN}")).await.error(404);
    served.ask("GET", "/nothing").await.error(404);
    // A background task counts events, so the count may lag behind the answer.
    let (answer, text) = loop {
        let answer = served.ask("GET", "/metrics").await;
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        if text.contains("{event=\"started\"} 1") {
            break (answer, text);
        }
    };
    assert!(answer.header("content-type").starts_with("text/plain; version=0.0.4"));
    for line in [
        "kernelmux_connections 0",
        "kernelmux_kernelspecs 1",
        "kernelmux_kernels{state=\"dead\"} 0",
        "kernelmux_http_requests_total{method=\"POST\",route=\"/api/kernels\",status=\"201\"} 1",
        "kernelmux_http_requests_total{method=\"GET\",route=\"/api/kernels/:id\",status=\"404\"} 1",
        "kernelmux_http_requests_total{method=\"GET\",route=\"none\",status=\"404\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line}\n{text}");
    }
    assert!(text.contains("process_resident_memory_bytes "));
}

#[tokio::test]
async fn the_api_description_matches_the_routes() {
    let served = Served::with(|options| options.base_url = "/a".parse().unwrap(), |_| {}).await;
    let json = served.ask("GET", "/a/api/swagger.json").await.json();
    assert_eq!(json["openapi"], "3.1.0");
    assert_eq!(json["servers"], json!([{"url": "/a"}]));
    assert_eq!(json["info"]["version"], env!("CARGO_PKG_VERSION"));
    for address in ["/a/api/spec.yaml", "/a/api/swagger.yaml"] {
        let yaml = served.ask("GET", address).await;
        assert_eq!(yaml.header("content-type"), "application/yaml");
        assert_eq!(yaml.json(), json, "JSON is YAML");
    }
    // Every described route exists and allows exactly the described methods.
    for (path, methods) in json["paths"].as_object().unwrap() {
        let path = path
            .replace("{name}", "echo")
            .replace("{id}", UNKNOWN)
            .replace("{msg_id}", "m")
            .replace("{path}", "x");
        let answer = served.ask("OPTIONS", &format!("/a{path}")).await;
        assert_eq!(answer.status, 204, "{path}");
        let mut taken: Vec<_> = answer.header("allow").split(',').collect();
        taken.retain(|method| !matches!(*method, "HEAD" | "OPTIONS"));
        taken.sort_unstable();
        let methods = methods.as_object().unwrap().keys();
        let mut described: Vec<_> = methods.map(|method| method.to_uppercase()).collect();
        described.sort();
        assert_eq!(taken, described, "{path}");
    }
}

#[tokio::test]
async fn unknown_paths_are_404_and_wrong_methods_405() {
    let served = Served::start().await;
    for path in [
        "/",
        "/nothing",
        "/api/nothing",
        "/api/kernels/x/y/z",
        "/api/kernelspecs/a/b",
    ] {
        let answer = served.ask("GET", path).await;
        assert_eq!(answer.json(), json!({"reason": "Not Found", "message": ""}), "{path}");
        assert_eq!(answer.status, 404);
    }
    for (method, path, allowed) in [
        ("PUT", "/api/kernels", "GET,HEAD,POST"),
        ("DELETE", "/api/kernels", "GET,HEAD,POST"),
        ("BREW", "/api/kernels", "GET,HEAD,POST"),
        ("POST", "/api/kernelspecs", "GET,HEAD"),
        ("GET", "/api/kernels/x/restart", "POST"),
        ("PUT", "/api/sessions/x", "GET,HEAD,PATCH,DELETE"),
    ] {
        let answer = served.ask(method, path).await;
        assert!(!answer.error(405).is_empty());
        assert_eq!(answer.header("allow"), allowed, "{method} {path}");
    }
    for path in ["/api", "/api/kernels", "/api/kernelspecs", "/api/status"] {
        let head = served.ask("HEAD", path).await;
        assert_eq!((head.status, head.body.len()), (200, 0));
    }
}

#[tokio::test]
async fn channels_require_a_websocket_handshake() {
    let served = Served::start().await;
    let id = served.start_kernel(Value::Object(Default::default())).await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    served
        .ask("GET", &format!("/api/kernels/{id}/channels"))
        .await
        .error(400);
    served
        .ask("GET", &format!("/api/kernels/{UNKNOWN}/channels"))
        .await
        .error(404);
}
