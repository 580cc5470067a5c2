//! The routes below `/api/sessions`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Served, UNKNOWN};
use serde_json::{Value, json};

async fn create(served: &Served, body: Value) -> Value {
    let answer = served.send("POST", "/api/sessions", body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let model = answer.json();
    assert_eq!(answer.header("location"), path(&model));
    model
}

fn path(model: &Value) -> String {
    format!("/api/sessions/{}", model["id"].as_str().unwrap())
}

fn kernel_path(model: &Value) -> String {
    format!("/api/kernels/{}", model["kernel"]["id"].as_str().unwrap())
}

#[tokio::test]
async fn a_session_can_be_created_renamed_moved_and_deleted() {
    let served = Served::start().await;
    let body = json!({"path": "a/b.ipynb", "type": "notebook", "name": "b", "kernel": {"name": "echo"}});
    let model = create(&served, body.clone()).await;
    assert_eq!(model["kernel"]["name"], "echo");
    assert_eq!(model["notebook"], json!({"path": "a/b.ipynb", "name": "b"}));
    assert_eq!(served.ask("GET", "/api/sessions").await.json()[0]["id"], model["id"]);
    assert_eq!(served.ask("GET", &path(&model)).await.json()["path"], "a/b.ipynb");
    // Creating a session for the same path returns the existing one.
    assert_eq!(create(&served, body).await["id"], model["id"]);

    let renamed = served
        .send(
            "PATCH",
            &path(&model),
            json!({"path": "c", "name": "n", "type": "console"}),
        )
        .await;
    let renamed = renamed.json();
    assert_eq!((&renamed["path"], &renamed["name"]), (&json!("c"), &json!("n")));
    assert_eq!(renamed["kernel"]["id"], model["kernel"]["id"]);
    assert_eq!(renamed.get("notebook"), None);
    let moved = served
        .send("PATCH", &path(&model), json!({"kernel": {"name": "echo"}}))
        .await
        .json();
    assert_ne!(moved["kernel"]["id"], model["kernel"]["id"]);
    // The session's previous kernel is shut down.
    served.ask("GET", &kernel_path(&model)).await.error(404);

    assert_eq!(served.ask("DELETE", &path(&model)).await.status, 204);
    served.ask("GET", &kernel_path(&moved)).await.error(404);
    for method in ["GET", "PATCH", "DELETE"] {
        served.ask(method, &path(&model)).await.error(404);
    }
}

#[tokio::test]
async fn a_kernel_can_have_several_sessions() {
    let served = Served::start().await;
    let kernel = served.start_kernel(json!({})).await;
    let of = |path: &str| json!({"path": path, "type": "console", "kernel": {"id": kernel["id"]}});
    let (first, second) = (create(&served, of("x")).await, create(&served, of("y")).await);
    assert_eq!(first["kernel"]["id"], kernel["id"]);
    assert_eq!(second["kernel"]["id"], kernel["id"]);
    assert_eq!(served.ask("DELETE", &path(&first)).await.status, 204);
    assert_eq!(served.ask("GET", &kernel_path(&second)).await.status, 200);
    // The session ends with its kernel. Deleting it answers "gone" once, then "not found".
    assert_eq!(served.ask("DELETE", &kernel_path(&second)).await.status, 204);
    assert_eq!(served.ask("GET", "/api/sessions").await.json(), json!([]));
    served.ask("GET", &path(&second)).await.error(404);
    served.ask("DELETE", &path(&second)).await.error(410);
    served.ask("DELETE", &path(&second)).await.error(404);
}

#[tokio::test]
async fn concurrent_requests_for_one_path_create_one_session() {
    let served = Served::start().await;
    let open = || create(&served, json!({"path": "p", "type": "notebook"}));
    let (a, b, c) = tokio::join!(open(), open(), open());
    assert_eq!(a["id"], b["id"]);
    assert_eq!(b["id"], c["id"]);
    assert_eq!(
        served.ask("GET", "/api/kernels").await.json().as_array().unwrap().len(),
        1
    );
}

#[tokio::test]
async fn the_old_notebook_form_is_accepted() {
    let served = Served::start().await;
    let model = create(
        &served,
        json!({"notebook": {"path": "old.ipynb"}, "kernel": {"name": "echo"}}),
    )
    .await;
    assert_eq!(
        (&model["path"], &model["type"]),
        (&json!("old.ipynb"), &json!("notebook"))
    );
    let moved = served
        .send("PATCH", &path(&model), json!({"notebook": {"path": "new.ipynb"}}))
        .await
        .json();
    assert_eq!(moved["notebook"]["path"], "new.ipynb");
}

#[tokio::test]
async fn malformed_session_requests_are_refused() {
    let served = Served::start().await;
    let post = async |body: Value| served.send("POST", "/api/sessions", body).await;
    assert_eq!(
        post(json!({"type": "notebook"})).await.error(400),
        "Missing field in JSON data: path"
    );
    assert_eq!(
        post(json!({"path": "p"})).await.error(400),
        "Missing field in JSON data: type"
    );
    let of = |kernel: Value| json!({"path": "p", "type": "x", "kernel": kernel});
    assert!(
        post(of(json!({"name": "nothing"})))
            .await
            .error(501)
            .contains("nothing")
    );
    post(of(json!("echo"))).await.error(400);
    post(of(json!({"env": {"KERNEL_ID": "seven"}}))).await.error(400);
    post(json!({"path": 1, "type": "x"})).await.error(400);
    post(json!({"path": "p".repeat(5_000), "type": "x"})).await.error(400);
    served.send("POST", "/api/sessions", "[]").await.error(400);

    // If there is no kernel with this id, a new one is started, as by jupyter_server. It has this id if the id is
    // valid.
    for (path, id, is_taken) in [("y", UNKNOWN, true), ("z", "seven", false)] {
        let kernel = json!({"id": id, "name": "echo"});
        let started = create(&served, json!({"path": path, "type": "x", "kernel": kernel})).await;
        assert_eq!(started["kernel"]["id"] == id, is_taken, "{started}");
        assert_eq!(started["kernel"]["name"], "echo");
    }
    let kernel = served.start_kernel(json!({})).await;
    post(of(json!({"env": {"KERNEL_ID": kernel["id"]}}))).await.error(409);
    let model = create(&served, of(json!({}))).await;
    let patch = async |body: Value| served.send("PATCH", &path(&model), body).await;
    patch(json!({"kernel": {"name": "nothing"}})).await.error(501);
    patch(json!({"kernel": {"id": "00000000-0000-4000-8000-000000000001"}}))
        .await
        .error(400);
    patch(json!({"path": []})).await.error(400);
    assert_eq!(
        served.ask("GET", &path(&model)).await.json()["kernel"]["id"],
        model["kernel"]["id"]
    );
    served
        .ask("PATCH", &format!("/api/sessions/{UNKNOWN}"))
        .await
        .error(404);
}
