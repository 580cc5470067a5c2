//! Tests that every provider must pass.
//!
//! A provider describes its test setup with a [`Subject`] and runs the suite with
//! [`provider_conformance!`](crate::provider_conformance), which creates one test per case:
//!
//! ```ignore
//! struct MySubject { /* … */ }
//!
//! #[async_trait::async_trait]
//! impl kernel_provider::conformance::Subject for MySubject { /* … */ }
//!
//! kernel_provider::provider_conformance!(async { Some(MySubject::new()) });
//! ```
//!
//! The suite tests kernelspecs; launches that are refused, fail, time out, are repeated or cancelled
//! ([`KernelProvider::launch`]); records, lists and attaching ([`KernelProvider::list`], [`KernelProvider::attach`]);
//! and interrupts, restarts and ends ([`KernelHandle`]). The linked items document the requirements. Code in the kernel
//! must see its environment and working directory, stop on an interrupt, and leave no process behind.
//!
//! The cases wait for events and poll for leftovers; none relies on a fixed delay. Each has its own subject, so they
//! can run concurrently.

mod ending;
mod launching;
mod probe;
mod probing;
mod running;

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jupyter_protocol::client::{Client, ClientError};
use jupyter_protocol::content::KernelInfoRequest;
use jupyter_protocol::{ConnectionInfo, KernelId};

pub use ending::*;
pub use launching::*;
pub use probe::Probe;
pub use probing::*;
pub use running::*;

use crate::{
    Exit, Interrupt, KernelHandle, KernelProvider, KernelRecord, LaunchRequest, Phase, Progress, ProviderError,
    Selector,
};

/// An isolated environment for the provider under test, such as a state directory or a namespace, initially without
/// kernels.
#[async_trait]
pub trait Subject: Send + Sync {
    /// Opens a provider in this environment, as a new embedder does. The suite first drops the previous provider and
    /// all its handles; everything happens in one process.
    async fn open(&self) -> Arc<dyn KernelProvider>;

    /// A kernelspec whose kernel starts, answers `kernel_info_request`, and shuts down on request.
    fn spec(&self) -> String;

    /// How kernels of [`spec`](Self::spec) are interrupted.
    fn interrupt(&self) -> Interrupt {
        Interrupt::Signalled
    }

    /// Code that does what `probe` describes in kernels of [`spec`](Self::spec). `None` skips the cases that need it.
    /// For ipykernel: [`Probe::in_python`].
    fn code(&self, probe: &Probe) -> Option<String>;

    /// The connection information with which this process reaches the kernel's sockets, by default that of the handle.
    /// If only the kernel's agent can reach the sockets, as in a pod, a subject returns that of a tunnel to them.
    async fn connection(&self, kernel: &dyn KernelHandle) -> Result<ConnectionInfo, ProviderError> {
        kernel.connection().await
    }

    /// A directory other than the default one in which kernels can be started: its path inside the kernels. `None`
    /// skips the case that needs it.
    fn working_dir(&self) -> Option<PathBuf>;

    /// A kernelspec whose kernel writes [`LAST_WORDS`] and exits with code 3 before its sockets are open.
    fn dying_spec(&self) -> String;

    /// A kernelspec whose kernel writes [`LAST_WORDS`], keeps running, and never opens its sockets.
    fn silent_spec(&self) -> String;

    /// A kernelspec whose kernel cannot be started: its program or image does not exist.
    fn missing_spec(&self) -> String;

    /// Kills a kernel without the provider, as `kill -9` does.
    async fn kill(&self, record: &KernelRecord);

    /// Leftovers of running or starting kernels: processes, pods, files, each as text for error messages. Logs that are
    /// kept on purpose do not count.
    async fn leftovers(&self) -> Vec<String>;

    /// Timeout of a single step.
    fn step_timeout(&self) -> Duration {
        Duration::from_secs(60)
    }

    /// Launch timeout for kernels of [`silent_spec`](Self::silent_spec). They must have written their output by then,
    /// even on a busy machine.
    fn short_timeout(&self) -> Duration {
        Duration::from_secs(5)
    }
}

/// How long to wait for a kernel's answer before the request is repeated.
const REPEAT_AFTER: Duration = Duration::from_secs(5);
/// Output of the kernels that die or stay silent.
pub const LAST_WORDS: &str = "these are the last words";

/// Why a case failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(String);

impl Failure {
    fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

/// The result of a case.
pub type Outcome = Result<(), Failure>;

/// Creates one `#[tokio::test]` for each case of the suite.
///
/// The argument is a future that returns `Some` new [`Subject`](crate::conformance::Subject), or `None` if the tests
/// cannot run here. The calling crate needs `tokio` with `macros` and `rt-multi-thread`.
#[macro_export]
macro_rules! provider_conformance {
    ($subject:expr) => {
        $crate::provider_conformance!(@cases $subject;
            lists_kernelspecs, reports_launch_progress, answers_at_its_connection, refuses_an_unknown_kernelspec,
            reports_a_kernel_that_cannot_start, reports_a_death_at_start, reports_a_start_timeout,
            launching_twice_attaches, launches_concurrently, a_cancelled_launch_leaves_nothing,
            list_applies_the_selector, a_record_is_serializable_without_secrets, refuses_foreign_and_gone_records,
            a_dropped_handle_does_not_end_the_kernel, interrupts_as_the_kernelspec_says, restarts_under_the_same_id,
            restarts_a_dead_kernel, kernels_outlive_the_embedder, a_reopened_provider_reports_the_end,
            a_shutdown_ends_the_kernel, a_shutdown_without_grace_kills_the_kernel, reports_the_death_of_a_kernel,
            a_shutdown_cancels_a_restart, a_cancelled_shutdown_can_be_repeated, passes_environment_variables,
            starts_in_the_working_directory, an_interrupt_ends_the_code, a_shutdown_ends_processes_of_the_kernel,
        );
    };
    (@cases $subject:expr; $($case:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                if let Some(subject) = $subject.await
                    && let Err(failure) = $crate::conformance::$case(&subject).await
                {
                    panic!("{failure}");
                }
            }
        )*
    };
}

/// Fails the case unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($what:tt)+) => {
        if !$condition {
            return Err($crate::conformance::Failure::new(format!($($what)+)));
        }
    };
}
use ensure;

/// Waits for a step, up to the subject's timeout.
async fn step<T>(subject: &dyn Subject, what: &str, step: impl Future<Output = T>) -> Result<T, Failure> {
    let limit = subject.step_timeout();
    tokio::time::timeout(limit, step)
        .await
        .map_err(|_| Failure::new(format!("{what}: not done within {limit:?}")))
}

/// Waits for a step and turns its error into a failure.
async fn expect<T, E: fmt::Display>(
    subject: &dyn Subject,
    what: &str,
    future: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure> {
    step(subject, what, future)
        .await?
        .map_err(|error| Failure::new(format!("{what}: {error}")))
}

/// A request to launch the subject's kernelspec, with a generous timeout.
fn launch_request(subject: &dyn Subject, id: KernelId) -> LaunchRequest {
    let mut request = LaunchRequest::new(id, subject.spec());
    request.timeout = subject.step_timeout();
    request
}

/// Launches a kernel of the subject's kernelspec.
async fn launch(
    subject: &dyn Subject,
    provider: &dyn KernelProvider,
    id: KernelId,
) -> Result<Arc<dyn KernelHandle>, Failure> {
    let request = launch_request(subject, id);
    expect(subject, "launch", provider.launch(request, Progress::ignored())).await
}

async fn shutdown(subject: &dyn Subject, kernel: &dyn KernelHandle) -> Result<Exit, Failure> {
    expect(subject, "shutdown", kernel.shutdown(Duration::from_secs(5))).await
}

async fn list(subject: &dyn Subject, provider: &dyn KernelProvider) -> Result<Vec<KernelRecord>, Failure> {
    expect(subject, "list", provider.list(&Selector::all())).await
}

/// Sends a `kernel_info_request` over the [`connection`](Subject::connection) of the subject and waits for the answer.
async fn check_answers(subject: &dyn Subject, kernel: &dyn KernelHandle) -> Outcome {
    let connection = expect(subject, "connection", subject.connection(kernel)).await?;
    let client = expect(subject, "connect to the kernel", Client::connect(&connection)).await?;
    // Repeats an unanswered request, as jupyter_client and the manager do, because a kernel may have just opened its
    // sockets.
    let requesting = async {
        loop {
            match client.request_within(KernelInfoRequest::default(), REPEAT_AFTER).await {
                Err(ClientError::Deadline { .. }) => {}
                answer => return answer,
            }
        }
    };
    step(subject, "kernel_info", requesting)
        .await?
        .map(drop)
        .map_err(|error| Failure::new(format!("kernel_info: {error}")))
}

async fn wait_for_phase(subject: &dyn Subject, kernel: &dyn KernelHandle, wanted: &Phase) -> Outcome {
    let mut phase = kernel.phase();
    step(
        subject,
        &format!("phase {wanted:?}"),
        phase.wait_for(|phase| phase == wanted),
    )
    .await?
    .map(drop)
    .map_err(|_| Failure::new("the phase's sender was dropped before the handle"))
}

/// Checks that no kernel is listed, and waits until no leftovers remain.
async fn check_nothing_left(subject: &dyn Subject, provider: &dyn KernelProvider) -> Outcome {
    let listed = list(subject, provider).await?;
    ensure!(listed.is_empty(), "ended kernels are listed: {listed:?}");
    let deadline = tokio::time::Instant::now() + subject.step_timeout();
    loop {
        let left = subject.leftovers().await;
        if left.is_empty() {
            return Ok(());
        }
        ensure!(tokio::time::Instant::now() < deadline, "leftovers remain: {left:?}");
        // The suite has no event for the end of a process or pod.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
