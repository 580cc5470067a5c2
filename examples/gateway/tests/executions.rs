//! `GET /api/kernels/{id}/executions/{msg_id}` with unusual outputs.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use async_trait::async_trait;
use common::Served;
use jupyter_protocol::content::{DisplayData, ExecuteReply, ExecuteRequest, KernelInfoReply, MimeBundle, ReplyError};
use jupyter_protocol::kernel::{Context, Kernel};
use kernel_provider::fake::FakeSpec;
use serde_json::{Value, json};
use tokio::task::yield_now;

/// Displays JSON nested to the depth given as code.
struct NestedJson;

#[async_trait]
impl Kernel for NestedJson {
    fn info(&self) -> KernelInfoReply {
        KernelInfoReply::default()
    }

    async fn execute(&self, request: &ExecuteRequest, context: &Context) -> Result<ExecuteReply, ReplyError> {
        let depth: usize = request.code.parse().unwrap();
        let nested = (0..depth).fold(json!(1), |inner, _| json!([inner]));
        let bundle = MimeBundle::new().with("application/json", nested);
        context.display(DisplayData::new(bundle)).await;
        Ok(ExecuteReply::default())
    }
}

#[tokio::test]
async fn outputs_nested_beyond_the_json_parsers_limit_are_sent_verbatim() {
    let served = Served::start().await;
    served
        .provider
        .install("nests", FakeSpec::kernel(|| NestedJson), json!({}));
    let kernel = served.start_kernel(json!({"name": "nests"})).await;
    let executions = format!("/api/kernels/{}/executions", kernel["id"].as_str().unwrap());
    for depth in [10, 120, 128, 500] {
        let started = served
            .send("POST", &executions, json!({"code": depth.to_string()}))
            .await;
        assert_eq!(started.status, 202, "{started:?}");
        let path = started.json()["url"].as_str().unwrap().to_owned();
        let body = loop {
            let answer = served.ask("GET", &path).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            let body = String::from_utf8(answer.body.to_vec()).unwrap();
            if body.contains("\"status\":\"ok\"") && body.contains("display_data") {
                break body;
            }
            yield_now().await;
        };
        let nested = format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert!(body.contains(&nested), "{depth}");
        if depth < 100 {
            let body: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(body["outputs"][0]["output_type"], "display_data");
            assert_eq!(body["execution_count"], 1);
        }
    }
}

#[tokio::test]
async fn the_latest_executions_of_cells_are_listed_with_their_input_requests() {
    let served = Served::start().await;
    served.provider.install("asks", FakeSpec::kernel(|| Asks), json!({}));
    let kernel = served.start_kernel(json!({"name": "asks"})).await;
    let executions = format!("/api/kernels/{}/executions", kernel["id"].as_str().unwrap());
    for (code, cell) in [("one", "a"), ("two", "a"), ("ask", "b")] {
        let body = json!({"code": code, "cellId": cell, "allow_stdin": true});
        let started = served.send("POST", &executions, body).await;
        assert_eq!(started.status, 202, "{started:?}");
    }
    let listed = loop {
        let answer = served.ask("GET", &format!("{executions}?latest=cell")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let answer = answer.json();
        if answer["executions"][0]["input_request"].is_object() {
            break answer;
        }
        yield_now().await;
    };
    assert_eq!(listed["next"], Value::Null);
    let listed = listed["executions"].as_array().unwrap();
    assert_eq!(listed.len(), 2);
    assert_eq!(listed[0]["cellId"], "b");
    assert_eq!(
        listed[0]["input_request"],
        json!({"prompt": "name? ", "password": false})
    );
    assert_eq!(listed[1]["cellId"], "a");
    assert_eq!(listed[1]["input_request"], Value::Null);
    let two = "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3";
    assert_eq!(listed[1]["code_hash"], two);
    assert!(listed.iter().all(|execution| execution["outputs_digest"].is_string()));
    assert!(listed.iter().all(|execution| execution.get("outputs").is_none()));
    // Only ended executions have outputs that no longer change.
    let small = served
        .ask("GET", &format!("{executions}?latest=cell&outputs=small"))
        .await;
    let small = small.json();
    assert_eq!(small["executions"][0].get("outputs"), None);
    assert_eq!(small["executions"][1]["outputs"], json!([]));
    let later = served
        .ask(
            "GET",
            &format!("{executions}?latest=cell&outputs=small&outputs_since=2100-01-01T00:00:00Z"),
        )
        .await;
    assert_eq!(later.json()["executions"][1].get("outputs"), None);
    // The plain list has all of them, without the additions.
    let all = served.ask("GET", &executions).await.json();
    let all = all["executions"].as_array().unwrap();
    assert_eq!(all.len(), 3);
    assert!(all.iter().all(|execution| execution.get("outputs_digest").is_none()));
    served
        .ask("GET", &format!("{executions}?latest=session"))
        .await
        .error(400);
}

/// Asks for a name if the code is `ask`.
struct Asks;

#[async_trait]
impl Kernel for Asks {
    fn info(&self) -> KernelInfoReply {
        KernelInfoReply::default()
    }

    async fn execute(&self, request: &ExecuteRequest, context: &Context) -> Result<ExecuteReply, ReplyError> {
        if request.code == "ask" {
            drop(context.input("name? ", false).await);
        }
        Ok(ExecuteReply::default())
    }
}
