//! Restoring kernels that are starting, cannot be reached, or have ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jupyter_protocol::kernel::async_trait;
use jupyter_protocol::{Channel, KernelId};
use kernel_log::{LogOptions, Logs, MemoryStore};
use kernel_manager::{AtClose, ExecutionStatus, KernelEventKind, Manager, ManagerOptions, StartRequest};
use kernel_provider::fake::FakeProvider;
use kernel_provider::{
    AttachError, KernelHandle, KernelProvider, KernelRecord, LaunchError, LaunchRequest, Progress, ProviderError,
    Selector, Specs,
};
use tokio::sync::{Notify, watch};

use crate::fixture::{Fixture, record, request, soon, start, until};

/// A provider that completes each attach only after `go` is notified.
struct SlowProvider {
    provider: FakeProvider,
    go: Arc<Notify>,
    /// Whether the first attach fails.
    fails: AtomicBool,
}

impl Fixture {
    fn slow_manager(&self, go: &Arc<Notify>, fails: bool, restore_timeout: Duration) -> Manager {
        let slow = SlowProvider {
            provider: self.provider.clone(),
            go: go.clone(),
            fails: AtomicBool::new(fails),
        };
        let mut options = ManagerOptions::default();
        options.restore_timeout = restore_timeout;
        let logs = Logs::new(self.store.clone(), LogOptions::default()).unwrap();
        Manager::new(vec![Arc::new(slow)], logs, options)
    }
}

#[async_trait]
impl KernelProvider for SlowProvider {
    fn name(&self) -> &str {
        self.provider.name()
    }

    fn specs(&self) -> watch::Receiver<Arc<Specs>> {
        self.provider.specs()
    }

    async fn launch(&self, request: LaunchRequest, progress: Progress) -> Result<Arc<dyn KernelHandle>, LaunchError> {
        self.provider.launch(request, progress).await
    }

    async fn list(&self, selector: &Selector) -> Result<Vec<KernelRecord>, ProviderError> {
        self.provider.list(selector).await
    }

    async fn attach(&self, record: &KernelRecord) -> Result<Arc<dyn KernelHandle>, AttachError> {
        if self.fails.swap(false, Ordering::SeqCst) {
            return Err(ProviderError::failed("attach", "not now").into());
        }
        self.go.notified().await;
        self.provider.attach(record).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn restore_attaches_to_a_starting_kernel_once_it_runs() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let before = fixture.manager();
    let kernel = start(&before).await;
    let (id, epoch) = (kernel.id(), kernel.log().epoch());
    drop(kernel);
    soon(before.close(AtClose::LeaveKernels)).await.unwrap();
    drop(before);

    let go = Arc::new(Notify::new());
    let manager = fixture.slow_manager(&go, false, Duration::ZERO);
    let mut events = manager.events();
    assert_eq!(soon(manager.restore()).await, 0);
    assert!(manager.get(id).is_none());
    go.notify_one();
    let event = soon(events.recv()).await.unwrap();
    assert!(matches!(event.kind, KernelEventKind::Attached), "{event:?}");
    assert_eq!(manager.get(id).unwrap().log().epoch(), epoch);
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

/// Leaves a cell running in a kernel without a manager.
async fn leave_running_cell(fixture: &Fixture) -> (KernelId, String) {
    let manager = fixture.manager();
    let kernel = start(&manager).await;
    let message = request("wait", "s");
    let msg_id = message.header.msg_id.clone();
    soon(kernel.send(&"s".into(), Channel::Shell, message.to_wire()))
        .await
        .unwrap();
    until(&kernel, &msg_id, |execution| {
        execution.status == ExecutionStatus::Running
    })
    .await;
    let id = kernel.id();
    drop(kernel);
    soon(manager.close(AtClose::LeaveKernels)).await.unwrap();
    (id, msg_id)
}

#[tokio::test(flavor = "multi_thread")]
async fn restore_retries_an_unreachable_kernel() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let (id, msg_id) = leave_running_cell(&fixture).await;
    let go = Arc::new(Notify::new());
    let manager = fixture.slow_manager(&go, true, Duration::from_secs(60));
    let mut events = manager.events();
    assert_eq!(soon(manager.restore()).await, 0);
    assert!(manager.get(id).is_none());
    let past = manager.past_executions(id).await.unwrap().unwrap();
    let execution = past.get(&msg_id).await.unwrap().unwrap();
    assert_eq!(execution.status, ExecutionStatus::Running);
    go.notify_one();
    let event = soon(events.recv()).await.unwrap();
    assert!(matches!(event.kind, KernelEventKind::Attached), "{event:?}");
    fixture.go.notify_one();
    let kernel = manager.get(id).unwrap();
    let execution = until(&kernel, &msg_id, |execution| execution.ended.is_some()).await;
    // The kernel may have replied before it accepted the new connection.
    let status = execution.status;
    assert!(
        matches!(status, ExecutionStatus::Ok | ExecutionStatus::Lost),
        "{status:?}"
    );
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn executions_of_a_kernel_that_ended_without_a_manager_have_died() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let (id, msg_id) = leave_running_cell(&fixture).await;
    let left = fixture.provider.list(&Selector::all()).await.unwrap().remove(0);
    let handle = fixture.provider.attach(&left).await.unwrap();
    handle.shutdown(Duration::ZERO).await.unwrap();
    let manager = fixture.manager();
    assert_eq!(soon(manager.restore()).await, 0);
    let past = manager.past_executions(id).await.unwrap().unwrap();
    let execution = past.get(&msg_id).await.unwrap().unwrap();
    assert_eq!(execution.status, ExecutionStatus::Died);
    assert!(execution.reason.is_some());
    drop(past);
    // A new kernel with the same id continues the log, and the execution stays ended.
    let mut again = StartRequest::new("scripts");
    again.id = Some(id);
    let kernel = soon(manager.start(again)).await.unwrap();
    let execution = record(&kernel, &msg_id).await;
    assert_eq!(execution.status, ExecutionStatus::Died);
    assert!(execution.ended.is_some() && execution.reply.is_some() && execution.idle.is_some());
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}
