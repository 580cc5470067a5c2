//! What every provider must do, as tests that its own tests run.
//!
//! A provider says with a [`Subject`] how it is made and what it has, and runs the suite with
//! [`provider_conformance!`](crate::provider_conformance), which makes one test of each case:
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
//! The cases wait for what is to happen, and never for a time to pass. Each has a subject of its own, so all can run
//! side by side.

mod ending;
mod launching;
mod running;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jupyter_protocol::client::{Client, ClientError};
use jupyter_protocol::content::KernelInfoRequest;

pub use ending::*;
pub use launching::*;
pub use running::*;

use crate::KernelId;
use crate::provider::{
    Exit, Interrupt, KernelHandle, KernelProvider, KernelRecord, LaunchRequest, Phase, Progress, Selector,
};

/// A place where the provider under test runs kernels: a state directory, a namespace. At first none runs there.
#[async_trait]
pub trait Subject: Send + Sync {
    /// Opens a provider on the place, as an embedder that starts does. The suite drops the one before, with all of its
    /// handles, and calls this in the same process.
    async fn open(&self) -> Arc<dyn KernelProvider>;

    /// A kernelspec whose kernel starts, answers `kernel_info_request`, and ends when it is asked to.
    fn spec(&self) -> String;

    /// How a kernel of [`spec`](Self::spec) is interrupted.
    fn interrupt(&self) -> Interrupt {
        Interrupt::Signalled
    }

    /// A kernelspec whose kernel writes [`LAST_WORDS`] and ends with exit code 3 before its sockets are open.
    fn dying_spec(&self) -> String;

    /// A kernelspec whose kernel writes [`LAST_WORDS`], runs on, and never opens its sockets.
    fn silent_spec(&self) -> String;

    /// A kernelspec whose kernel cannot even be begun: its program or image does not exist.
    fn missing_spec(&self) -> String;

    /// Ends a kernel behind the provider's back, as `kill -9` does.
    async fn kill(&self, record: &KernelRecord);

    /// What is left at the place of kernels that run or are being launched: processes, pods, files. Each as text for
    /// who reads the failure. Logs that are kept on purpose do not count.
    async fn leftovers(&self) -> Vec<String>;

    /// The longest that any one step may take before the case fails.
    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }

    /// How long a kernel of [`silent_spec`](Self::silent_spec) is given. It has to have written its words by then, also
    /// on a machine that has much else to do.
    fn short_timeout(&self) -> Duration {
        Duration::from_secs(5)
    }
}

/// How long a kernel that was asked what it is has to answer before it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// What the kernels that fail write before.
pub const LAST_WORDS: &str = "these are the last words";

/// What a provider did wrong.
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

/// How a case went.
pub type Outcome = Result<(), Failure>;

/// Makes one `#[tokio::test]` of each case of the suite.
///
/// The argument is an expression of a future that gives `Some` new [`Subject`](crate::conformance::Subject), or `None`
/// where the tests cannot run here. The crate that uses this needs `tokio` with `macros` and `rt-multi-thread`.
#[macro_export]
macro_rules! provider_conformance {
    ($subject:expr) => {
        $crate::provider_conformance!(@cases $subject;
            says_what_can_be_launched, reports_how_far_a_launch_is, answers_at_its_connection, refuses_an_unknown_spec,
            says_what_is_missing, says_how_a_kernel_died_at_start, says_that_a_kernel_never_answered,
            launching_twice_attaches, launches_side_by_side, a_dropped_launch_leaves_nothing,
            lists_what_is_selected, a_record_is_text_without_secrets, refuses_records_that_are_not_its_own,
            a_dropped_handle_leaves_the_kernel, interrupts_as_the_spec_says, restarts_under_the_same_id,
            restarts_a_dead_kernel, kernels_outlive_the_embedder, a_reopened_provider_sees_the_end,
            ends_when_asked, ends_at_once_without_grace, sees_a_kernel_die, a_shutdown_ends_a_restart,
            a_dropped_shutdown_can_be_repeated,
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

/// Waits for a step, not longer than the subject's patience.
async fn step<T>(subject: &dyn Subject, what: &str, step: impl Future<Output = T>) -> Result<T, Failure> {
    let patience = subject.patience();
    tokio::time::timeout(patience, step)
        .await
        .map_err(|_| Failure::new(format!("{what}: not done within {patience:?}")))
}

/// Waits for a step and takes an error of it for a failure.
async fn expect<T, E: fmt::Display>(
    subject: &dyn Subject,
    what: &str,
    future: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure> {
    step(subject, what, future)
        .await?
        .map_err(|error| Failure::new(format!("{what}: {error}")))
}

/// For a kernel of the subject's spec, which may take as long as all else.
fn launch_request(subject: &dyn Subject, id: KernelId) -> LaunchRequest {
    let mut request = LaunchRequest::new(id, subject.spec());
    request.timeout = subject.patience();
    request
}

/// Launches a kernel of the subject's spec.
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

/// Asks the kernel, at the connection that its handle gives, what it is.
async fn ask(subject: &dyn Subject, kernel: &dyn KernelHandle) -> Outcome {
    let connection = expect(subject, "connection", kernel.connection()).await?;
    let client = expect(subject, "connect to the kernel", Client::connect(&connection)).await?;
    // Again where no answer comes, as jupyter_client and the manager do: a kernel whose sockets are open has just begun.
    let asking = async {
        loop {
            match client.request_within(KernelInfoRequest::default(), ASK_AGAIN).await {
                Err(ClientError::Deadline { .. }) => {}
                answer => return answer,
            }
        }
    };
    step(subject, "kernel_info", asking)
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
    .map_err(|_| Failure::new("the phase's sender is gone while the handle is there"))
}

/// Waits until nothing is left at the place.
async fn nothing_is_left(subject: &dyn Subject, provider: &dyn KernelProvider) -> Outcome {
    let listed = list(subject, provider).await?;
    ensure!(listed.is_empty(), "kernels are listed that were ended: {listed:?}");
    let deadline = tokio::time::Instant::now() + subject.patience();
    loop {
        let left = subject.leftovers().await;
        if left.is_empty() {
            return Ok(());
        }
        ensure!(tokio::time::Instant::now() < deadline, "this is left: {left:?}");
        // What others see of a process's or pod's end has no event here.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
