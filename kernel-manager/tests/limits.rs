//! Limits on kernels, and when kernels are culled.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use jupyter_protocol::content::{ExecuteReply, ExecuteRequest, KernelInfoReply, ReplyError};
use jupyter_protocol::kernel::{Context, Kernel as KernelSide, async_trait};
use kernel_log::{Lifecycle, LogOptions, Logs, MemoryStore, Seq};
use kernel_manager::{
    AtClose, Counted, Culling, CullingRules, ExecutionState, GroupOptions, Kernel, KernelEventKind, Manager,
    ManagerOptions, StartError, StartRequest,
};
use kernel_provider::fake::{FakeProvider, FakeSpec};
use serde_json::Value;

/// Fails the test if the future does not complete within the deadline.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("not done within the deadline")
}

/// Prints the code, and never ends if the code is `hang`.
struct Printing;

#[async_trait]
impl KernelSide for Printing {
    fn info(&self) -> KernelInfoReply {
        KernelInfoReply::default()
    }

    async fn execute(&self, request: &ExecuteRequest, context: &Context) -> Result<ExecuteReply, ReplyError> {
        context.stdout(&request.code).await;
        if request.code == "hang" {
            std::future::pending::<()>().await;
        }
        Ok(ExecuteReply::default())
    }
}

fn provider() -> FakeProvider {
    let provider = FakeProvider::new();
    provider.install("echo", FakeSpec::kernel(|| Printing));
    provider
}

fn manager(provider: &FakeProvider, options: ManagerOptions) -> Manager {
    let logs = Logs::new(Arc::new(MemoryStore::new()), LogOptions::default()).unwrap();
    Manager::new(vec![Arc::new(provider.clone())], logs, options)
}

fn of(owner: &str, groups: &[&str]) -> StartRequest {
    StartRequest::new("echo")
        .with_owner(owner)
        .with_groups(groups.iter().copied())
}

async fn start(manager: &Manager, request: StartRequest) -> Arc<Kernel> {
    soon(manager.start(request)).await.unwrap()
}

#[track_caller]
fn limit(refused: Result<Arc<Kernel>, StartError>) -> (usize, Counted) {
    match refused.map(|kernel| kernel.id()) {
        Err(StartError::LimitReached { limit, counted }) => (limit, counted),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_have_limits_of_their_own() {
    let provider = provider();
    let options = ManagerOptions::default()
        .with_max_kernels(6)
        .with_max_kernels_per_owner(1)
        .with_group("students", GroupOptions::default().with_max_kernels(2))
        .with_group("staff", GroupOptions::default().with_max_kernels_per_owner(2));
    let manager = manager(&provider, options.clone());
    let first = start(&manager, of("ada", &["students"])).await;
    let group = |group: &str| Counted::Group(group.to_owned());
    let owner = |owner: &str| Counted::Owner(owner.to_owned());
    let again = async |request| limit(soon(manager.start(request)).await);
    assert_eq!(again(of("ada", &["students"])).await, (1, owner("ada")));
    start(&manager, of("bob", &["students"])).await;
    assert_eq!(again(of("eve", &["students"])).await, (2, group("students")));
    // Without the group, only the other limits apply.
    start(&manager, of("eve", &["other"])).await;
    // The first group with a rule decides.
    for _ in 0..2 {
        start(&manager, of("zoe", &["other", "staff"])).await;
    }
    let refused = again(of("zoe", &["other", "staff"])).await;
    assert_eq!(refused, (2, owner("zoe")));
    start(&manager, StartRequest::new("echo")).await;
    assert_eq!(again(of("max", &[])).await, (6, Counted::All));

    // A lowered limit ends nothing and refuses further starts; a raised one allows them.
    manager.set_options(options.clone().with_max_kernels(2));
    assert_eq!(again(of("max", &[])).await, (2, Counted::All));
    assert_eq!(manager.list().len(), 6);
    manager.set_options(options.with_max_kernels(7));
    start(&manager, of("max", &[])).await;
    soon(first.shutdown()).await.unwrap();
    start(&manager, of("ada", &["students"])).await;
    soon(manager.close(AtClose::LeaveKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn restored_kernels_count_for_their_groups() {
    let provider = provider();
    let options = ManagerOptions::default().with_group("students", GroupOptions::default().with_max_kernels(1));
    let before = manager(&provider, options.clone());
    start(&before, of("ada", &["students"])).await;
    soon(before.close(AtClose::LeaveKernels)).await.unwrap();
    let manager = manager(&provider, options);
    assert_eq!(soon(manager.restore()).await, 1);
    let refused = limit(soon(manager.start(of("bob", &["students"]))).await);
    assert_eq!(refused, (1, Counted::Group("students".to_owned())));
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

/// A manager that looks for kernels to cull often.
fn culling(culling: Culling) -> ManagerOptions {
    ManagerOptions::default().with_culling(culling.with_interval(Duration::from_millis(20)))
}

/// The reason why the kernel is dead, which is the last entry of its log.
async fn death(kernel: &Kernel) -> String {
    let mut reader = kernel.log().reader(Seq::START);
    soon(async {
        loop {
            let block = reader.next().await.unwrap().expect("the log ended without a death");
            let dead = block.entries().find_map(|entry| {
                let content: Value = serde_json::from_slice(entry.message().content()).unwrap();
                let is_dead = content["execution_state"] == "dead";
                is_dead.then(|| content["reason"].as_str().unwrap().to_owned())
            });
            if let Some(reason) = dead {
                return reason;
            }
        }
    })
    .await
}

/// Waits for a warning.
async fn warning(kernel: &Kernel) -> (u64, String) {
    let mut reader = kernel.log().reader(Seq::START);
    soon(async {
        loop {
            let block = reader.next().await.unwrap().expect("the log ended without a warning");
            let found = block.entries().find_map(|entry| match entry.lifecycle() {
                Some(Lifecycle::Culling { seconds, reason, .. }) => Some((seconds, reason)),
                _ => None,
            });
            if let Some(found) = found {
                return found;
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_is_culled_at_its_greatest_age_even_if_it_is_busy() {
    let provider = provider();
    let young = GroupOptions::default().with_culling(CullingRules::default().with_max_age(Duration::from_secs(2)));
    let options = culling(Culling::default()).with_group("students", young);
    let manager = manager(&provider, options);
    let other = start(&manager, of("ada", &[])).await;
    let kernel = start(&manager, of("bob", &["students"])).await;
    let _client = kernel.attach("s");
    let mut running = kernel.execute(ExecuteRequest::new("hang")).await.unwrap();
    soon(running.next()).await.unwrap().unwrap();
    let reason = death(&kernel).await;
    assert!(reason.starts_with("culled: it had run for "), "{reason}");
    assert_ne!(*other.state().borrow(), ExecutionState::Dead);
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connected_clients_are_warned_before_their_kernel_is_culled() {
    let provider = provider();
    let warned = Culling::after(Duration::from_secs(2))
        .with_connected(true)
        .with_warning(Duration::from_secs(1));
    let manager = manager(&provider, culling(warned));
    let mut events = manager.events();
    let kernel = start(&manager, of("ada", &[])).await;
    let alone = start(&manager, of("bob", &[])).await;
    let _client = kernel.attach("s");
    let (seconds, reason) = warning(&kernel).await;
    assert!(seconds <= 2, "{seconds}");
    assert_eq!(reason, "idle for 2 s");
    let reason = death(&kernel).await;
    assert!(reason.starts_with("culled: idle for "), "{reason}");
    // Without a client there is no warning.
    death(&alone).await;
    let entries = alone.log().reader(Seq::START).next().await.unwrap().unwrap();
    let is_warning = |entry: kernel_log::Entry| matches!(entry.lifecycle(), Some(Lifecycle::Culling { .. }));
    assert!(!entries.entries().any(is_warning));
    soon(async { while events.recv().await.unwrap().kind != KernelEventKind::Culled {} }).await;
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warning_does_not_prolong_a_short_idle_time() {
    let provider = provider();
    let warned = Culling::after(Duration::from_secs(2))
        .with_connected(true)
        .with_warning(Duration::from_secs(3_600));
    let manager = manager(&provider, culling(warned));
    let kernel = start(&manager, of("ada", &[])).await;
    let _client = kernel.attach("s");
    assert!(warning(&kernel).await.0 <= 1);
    death(&kernel).await;
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_that_is_used_after_a_warning_lives_on() {
    let provider = provider();
    // Beyond the length of the test, so that only the warning comes.
    let warned = Culling::after(Duration::from_secs(600))
        .with_connected(true)
        .with_warning(Duration::from_secs(599));
    let manager = manager(&provider, culling(warned));
    let kernel = start(&manager, of("ada", &[])).await;
    let client = kernel.attach("s");
    warning(&kernel).await;
    let before = kernel.log().head();
    soon(kernel.run("hello")).await.unwrap();
    // It is idle again, so there is another warning.
    let mut reader = kernel.log().reader(before);
    let is_warning = |entry: kernel_log::Entry| matches!(entry.lifecycle(), Some(Lifecycle::Culling { .. }));
    soon(async { while !reader.next().await.unwrap().unwrap().entries().any(is_warning) {} }).await;
    // Now the kernel is idle for too long, and its time of warning is over.
    drop(client);
    let now = culling(Culling::after(Duration::from_millis(1)));
    manager.set_options(now);
    death(&kernel).await;
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shorter_interval_takes_effect_at_once() {
    let provider = provider();
    let manager = manager(
        &provider,
        ManagerOptions::default().with_culling(Culling::default().with_interval(Duration::MAX)),
    );
    let kernel = start(&manager, of("ada", &[])).await;
    manager.set_options(culling(Culling::after(Duration::from_millis(1))));
    death(&kernel).await;
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}
