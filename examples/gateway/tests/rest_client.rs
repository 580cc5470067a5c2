//! `GatewayClient` against the real gateway.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use async_trait::async_trait;
use common::{Served, TOKEN};
use gateway_client::GatewayClient;
use gateway_client::rest::{
    ExecutionOutputs, ExecutionQuery, ExecutionStatus, GatewayClientOptions, KernelState, NewExecution, NewKernel,
    Output, RestError,
};
use gateway_client::resume::Start;
use gateway_client::resume::client::{Event, ResumeClient};
use jupyter_protocol::KernelId;
use jupyter_protocol::content::{DisplayData, ExecuteReply, ExecuteRequest, KernelInfoReply, MimeBundle, ReplyError};
use jupyter_protocol::kernel::{Context, Kernel};
use kernel_provider::fake::FakeSpec;
use kernelmux_gateway::BaseUrl;
use serde_json::json;
use tokio::time::{sleep, timeout};

const DEADLINE: Duration = Duration::from_secs(60);

/// `print x` prints, `show x` displays, `fail` fails, `ask` requests input.
struct Scripted;

#[async_trait]
impl Kernel for Scripted {
    fn info(&self) -> KernelInfoReply {
        KernelInfoReply::default()
    }

    async fn execute(&self, request: &ExecuteRequest, context: &Context) -> Result<ExecuteReply, ReplyError> {
        let (verb, rest) = request.code.split_once(' ').unwrap_or((&request.code, ""));
        match verb {
            "print" => context.stdout(rest.to_owned()).await,
            "show" => {
                let nested = (0..200).fold(json!(rest), |inner, _| json!([inner]));
                let bundle = MimeBundle::new()
                    .with("text/plain", rest)
                    .with("application/json", nested);
                context.display(DisplayData::new(bundle)).await;
            }
            "ask" => {
                context.input("Name?", false).await?;
            }
            _ => return Err(ReplyError::new("ValueError", "no such verb")),
        }
        Ok(ExecuteReply::default())
    }
}

/// A gateway below a base path, with the kernelspec `scripted`.
async fn served() -> (Served, GatewayClient) {
    let served = Served::with(|options| options.base_url = "/hub/".parse::<BaseUrl>().unwrap(), |_| {}).await;
    served
        .provider
        .install("scripted", FakeSpec::kernel(|| Scripted), json!({}));
    let client = client(&served, TOKEN);
    (served, client)
}

fn client(served: &Served, token: &str) -> GatewayClient {
    let options = GatewayClientOptions::new(format!("http://{}/hub", served.address)).with_token(token);
    GatewayClient::new(options).unwrap()
}

/// Awaits a request's result, and fails the test at the deadline.
async fn within_deadline<T>(what: impl Future<Output = T>) -> T {
    timeout(DEADLINE, what).await.expect("the deadline passed")
}

/// Waits until the execution's outputs are as expected.
async fn wait_for(
    client: &GatewayClient,
    kernel: KernelId,
    msg_id: &str,
    is_expected: impl Fn(&ExecutionOutputs) -> bool,
) -> ExecutionOutputs {
    within_deadline(async {
        loop {
            let outputs = client.execution(kernel, msg_id).await.unwrap();
            if is_expected(&outputs) {
                return outputs;
            }
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

#[tokio::test]
async fn kernels_are_started_found_restarted_interrupted_and_shut_down() {
    let (served, client) = served().await;
    let specs = within_deadline(client.list_kernelspecs()).await.unwrap();
    assert_eq!(specs.default, "echo");
    assert_eq!(specs.kernelspecs["scripted"].spec.display_name, "Fake");
    assert!(specs.kernelspecs["scripted"].resources.contains_key("logo-svg"));

    let id = KernelId::random();
    let kernel = NewKernel::new("scripted")
        .with_id(id)
        .with_env("KERNEL_USERNAME", "ada");
    let started = within_deadline(client.start_kernel(kernel.clone())).await.unwrap();
    assert_eq!((started.id, started.name.as_str()), (id, "scripted"));
    assert_eq!(served.provider.last_launch().env["KERNEL_USERNAME"], "ada");
    let repeated = within_deadline(client.start_kernel(kernel)).await.unwrap_err();
    assert_eq!(repeated.status(), Some(409));
    let other = within_deadline(client.start_kernel(NewKernel::default()))
        .await
        .unwrap();
    assert_eq!(other.name, "echo");

    assert_eq!(within_deadline(client.kernel(id)).await.unwrap().id, id);
    let ids: Vec<KernelId> = within_deadline(client.list_kernels())
        .await
        .unwrap()
        .iter()
        .map(|kernel| kernel.id)
        .collect();
    assert_eq!(ids, [id, other.id]);
    let found = within_deadline(client.find_kernels("scripted")).await.unwrap();
    assert_eq!((found.len(), found[0].id), (1, id));

    let restarted = within_deadline(client.restart_kernel(id)).await.unwrap();
    assert_eq!(restarted.id, id);
    assert_ne!(restarted.execution_state, KernelState::Dead);
    within_deadline(client.interrupt_kernel(id)).await.unwrap();
    within_deadline(client.shut_down_kernel(id)).await.unwrap();
    let gone = within_deadline(client.kernel(id)).await.unwrap_err();
    assert!(gone.is_not_found());
    assert!(gone.to_string().contains("Kernel does not exist"), "{gone}");
}

#[tokio::test]
async fn refusals_have_the_gateways_explanation() {
    let (served, authorized) = served().await;
    let error = within_deadline(client(&served, "0thert0ken").list_kernels())
        .await
        .unwrap_err();
    assert_eq!(error.status(), Some(401));
    assert!(!format!("{error} {error:?}").contains("0thert0ken"), "{error:?}");
    let error = within_deadline(authorized.start_kernel("none")).await.unwrap_err();
    let RestError::Status { status: 400, message } = &error else {
        panic!("{error:?}")
    };
    assert!(message.as_deref().unwrap().contains("none"), "{error}");
    let unknown = KernelId::random();
    for error in [
        within_deadline(authorized.interrupt_kernel(unknown)).await.unwrap_err(),
        within_deadline(authorized.restart_kernel(unknown)).await.unwrap_err(),
        within_deadline(authorized.shut_down_kernel(unknown)).await.unwrap_err(),
        within_deadline(authorized.execute(unknown, "1")).await.unwrap_err(),
        within_deadline(authorized.list_executions(unknown, &ExecutionQuery::new()))
            .await
            .unwrap_err(),
    ] {
        assert!(error.is_not_found(), "{error}");
    }
}

#[tokio::test]
async fn executions_run_detached_and_are_listed_and_read_with_outputs() {
    let (_served, client) = served().await;
    let kernel = within_deadline(client.start_kernel("scripted")).await.unwrap().id;
    let code = NewExecution::new("print hello")
        .with_msg_id("first/1")
        .with_cell_id("c1")
        .with_session("s1");
    for _ in 0..2 {
        let started = within_deadline(client.execute(kernel, code.clone())).await.unwrap();
        assert_eq!((started.msg_id.as_str(), started.session.as_str()), ("first/1", "s1"));
    }
    let conflict = NewExecution::new("print other").with_msg_id("first/1");
    let conflict = within_deadline(client.execute(kernel, conflict)).await.unwrap_err();
    assert_eq!(conflict.status(), Some(409));
    let first = wait_for(&client, kernel, "first/1", |outputs| {
        outputs.execution.status == ExecutionStatus::Ok && !outputs.outputs.is_empty()
    })
    .await;
    assert_eq!(first.text(), "hello");
    assert_eq!(first.code.as_deref(), Some("print hello"));
    assert_eq!(first.execution.cell_id.as_deref(), Some("c1"));
    assert!(first.complete && !first.truncated);
    assert!(first.execution.requested.is_some() && first.execution.seq.is_some());

    let shown = within_deadline(client.execute(kernel, "show deep")).await.unwrap();
    let shown = wait_for(&client, kernel, &shown.msg_id, |outputs| !outputs.outputs.is_empty()).await;
    assert_eq!(shown.text(), "deep");
    let [Output::DisplayData { data, .. }] = &shown.outputs[..] else {
        panic!("{shown:?}")
    };
    assert!(data["application/json"].get().starts_with("[[[["));

    let failed = NewExecution::new("fail").with_cell_id("c1").with_stop_on_error(false);
    let failed = within_deadline(client.execute(kernel, failed)).await.unwrap();
    wait_for(&client, kernel, &failed.msg_id, |outputs| {
        outputs.execution.status == ExecutionStatus::Error
    })
    .await;
    let asking = NewExecution::new("ask").with_allow_stdin(true);
    let asking = within_deadline(client.execute(kernel, asking)).await.unwrap();
    let asking = wait_for(&client, kernel, &asking.msg_id, |outputs| {
        outputs.input_request.is_some()
    })
    .await;
    assert_eq!(asking.input_request.unwrap().prompt, "Name?");
    assert!(!asking.execution.status.has_ended());

    let list = async |query: ExecutionQuery| within_deadline(client.list_executions(kernel, &query)).await.unwrap();
    let ids = async |query| {
        let page = list(query).await.executions;
        page.into_iter().map(|execution| execution.msg_id).collect::<Vec<_>>()
    };
    let of_cell = ids(ExecutionQuery::new().with_cell_id("c1")).await;
    assert_eq!(of_cell, [failed.msg_id.as_str(), "first/1"]);
    assert_eq!(ids(ExecutionQuery::new().with_session("s1")).await, ["first/1"]);
    let running = ExecutionQuery::new().with_status(ExecutionStatus::Running);
    assert_eq!(ids(running).await, [asking.execution.msg_id.as_str()]);
    let requested = first.execution.requested.unwrap();
    assert_eq!(ids(ExecutionQuery::new().with_until(requested)).await, [""; 0]);
    assert_eq!(ids(ExecutionQuery::new().with_since(requested)).await.len(), 4);
    let (mut query, mut paged) = (ExecutionQuery::new().with_limit(3), Vec::new());
    loop {
        let page = list(query.clone()).await;
        paged.extend(page.executions.into_iter().map(|execution| execution.msg_id));
        match page.next {
            Some(next) => query = query.with_before(next),
            None => break,
        }
    }
    assert_eq!(paged, ids(ExecutionQuery::new()).await);
    assert_eq!(paged.len(), 4);

    within_deadline(client.shut_down_kernel(kernel)).await.unwrap();
    assert_eq!(
        within_deadline(client.execution(kernel, "first/1"))
            .await
            .unwrap()
            .text(),
        "hello"
    );
}

#[tokio::test]
async fn the_resume_client_follows_a_kernel_that_the_rest_client_found() {
    let (_served, client) = served().await;
    let kernel = within_deadline(client.start_kernel("scripted")).await.unwrap().id;
    let before = within_deadline(client.execute(kernel, "print before")).await.unwrap();
    let before = wait_for(&client, kernel, &before.msg_id, |outputs| {
        outputs.execution.status == ExecutionStatus::Ok && !outputs.outputs.is_empty()
    })
    .await;
    let options = client.resume(kernel).with_start(Start::After(before.cursor));
    let mut following = within_deadline(ResumeClient::connect(options)).await.unwrap();
    within_deadline(client.execute(kernel, "print after")).await.unwrap();
    let text = loop {
        let Some(Event::Entry(entry)) = within_deadline(following.next()).await.unwrap() else {
            continue;
        };
        if entry.message.header_ref().unwrap().msg_type == "stream" {
            break String::from_utf8_lossy(entry.message.content()).into_owned();
        }
    };
    assert!(text.contains("after"), "{text}");
}
