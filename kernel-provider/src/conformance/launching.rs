//! Tests of kernelspecs and launches.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::{Arc, Mutex};

use jupyter_protocol::KernelId;

use super::{
    Failure, LAST_WORDS, Outcome, Subject, check_answers, check_nothing_left, ensure, expect, launch, launch_request,
    list, shutdown, step,
};
use crate::{ExitCause, LaunchError, LaunchRequest, LaunchStage, Phase, Progress, lock};

/// Records the reported stages.
#[derive(Clone, Default)]
struct Stages(Arc<Mutex<Vec<LaunchStage>>>);

impl Stages {
    fn progress(&self) -> Progress {
        let stages = self.clone();
        Progress::new(move |stage| lock(&stages.0).push(stage))
    }

    fn get(&self) -> Vec<LaunchStage> {
        lock(&self.0).clone()
    }
}

/// An opened provider lists its kernelspecs at once, under the names that launches accept.
pub async fn lists_kernelspecs(subject: &dyn Subject) -> Outcome {
    let provider = subject.open().await;
    ensure!(
        !provider.name().is_empty() && !provider.name().contains('/'),
        "{:?} cannot be a provider's name",
        provider.name()
    );
    let specs = provider.specs().borrow().clone();
    for name in [subject.spec(), subject.dying_spec(), subject.silent_spec()] {
        ensure!(specs.by_name.contains_key(&name), "there is no kernelspec {name:?}");
    }
    Ok(())
}

/// Progress never goes back, and a finished launch has reported that the kernel is ready.
pub async fn reports_launch_progress(subject: &dyn Subject) -> Outcome {
    let provider = subject.open().await;
    let stages = Stages::default();
    let id = KernelId::random();
    let mut request = launch_request(subject, id);
    request.owner = Some("ann".to_owned());
    let kernel = expect(subject, "launch", provider.launch(request, stages.progress())).await?;
    let order = |stage: &LaunchStage| match stage {
        LaunchStage::Cold(_) | LaunchStage::Scheduled => 0,
        LaunchStage::Pulling(_) => 1,
        LaunchStage::Starting => 2,
        LaunchStage::Ready => 3,
    };
    let stages = stages.get();
    ensure!(stages.is_sorted_by_key(order), "progress goes back: {stages:?}");
    ensure!(
        stages.contains(&LaunchStage::Starting) && stages.last() == Some(&LaunchStage::Ready),
        "progress lacks a stage that every launch has: {stages:?}"
    );
    ensure!(
        *kernel.phase().borrow() == Phase::Running,
        "the phase of a ready kernel is not running"
    );
    let record = kernel.record();
    ensure!(
        record.id == id
            && record.spec == subject.spec()
            && record.provider == provider.name()
            && record.owner.as_deref() == Some("ann"),
        "the record does not match the launch: {record:?}"
    );
    shutdown(subject, &*kernel).await?;
    check_nothing_left(subject, &*provider).await
}

/// A ready kernel answers at its connection with its key.
pub async fn answers_at_its_connection(subject: &dyn Subject) -> Outcome {
    let provider = subject.open().await;
    let kernel = launch(subject, &*provider, KernelId::random()).await?;
    let connection = expect(subject, "connection", kernel.connection()).await?;
    ensure!(!connection.key.is_empty(), "the kernel's messages are not signed");
    check_answers(subject, &*kernel).await?;
    shutdown(subject, &*kernel).await.map(drop)
}

/// The error for an unknown kernelspec lists the known ones.
pub async fn refuses_an_unknown_kernelspec(subject: &dyn Subject) -> Outcome {
    let provider = subject.open().await;
    let request = LaunchRequest::new(KernelId::random(), "no-such-spec");
    match step(subject, "launch", provider.launch(request, Progress::ignored())).await? {
        Err(LaunchError::NoSuchSpec { spec, known }) => {
            ensure!(
                spec == "no-such-spec" && known.contains(&subject.spec()),
                "the error does not list the known kernelspecs: {known:?}"
            );
        }
        other => return Err(unexpected("NoSuchSpec", other.err())),
    }
    check_nothing_left(subject, &*provider).await
}

/// A kernel that cannot be started fails at once and leaves nothing behind.
pub async fn reports_a_kernel_that_cannot_start(subject: &dyn Subject) -> Outcome {
    let provider = subject.open().await;
    let request = LaunchRequest::new(KernelId::random(), subject.missing_spec());
    match step(subject, "launch", provider.launch(request, Progress::ignored())).await? {
        Err(LaunchError::CannotStart { what, reason }) => {
            ensure!(
                !what.is_empty() && !reason.is_empty(),
                "the error does not name what is missing"
            );
        }
        other => return Err(unexpected("CannotStart", other.err())),
    }
    check_nothing_left(subject, &*provider).await
}

/// The death of a starting kernel is reported at once, with cause and output, long before the timeout.
pub async fn reports_a_death_at_start(subject: &dyn Subject) -> Outcome {
    let provider = subject.open().await;
    let id = KernelId::random();
    let mut request = LaunchRequest::new(id, subject.dying_spec());
    request.timeout = subject.step_timeout() * 10;
    match step(subject, "launch", provider.launch(request, Progress::ignored())).await? {
        Err(LaunchError::Died { exit }) => {
            ensure!(exit.cause == ExitCause::Code(3), "the cause is {}", exit.cause);
            ensure!(
                exit.output.contains(LAST_WORDS),
                "the error lacks the output: {:?}",
                exit.output
            );
        }
        other => return Err(unexpected("Died", other.err())),
    }
    check_nothing_left(subject, &*provider).await?;
    // The kernel's id is free again.
    let kernel = launch(subject, &*provider, id).await?;
    shutdown(subject, &*kernel).await.map(drop)
}

/// A kernel that never answers fails with its output at the timeout, and is ended.
pub async fn reports_a_start_timeout(subject: &dyn Subject) -> Outcome {
    let provider = subject.open().await;
    let mut request = LaunchRequest::new(KernelId::random(), subject.silent_spec());
    request.timeout = subject.short_timeout();
    match step(subject, "launch", provider.launch(request, Progress::ignored())).await? {
        Err(LaunchError::TimedOut { timeout, output }) => {
            ensure!(
                timeout == subject.short_timeout(),
                "the error names another timeout: {timeout:?}"
            );
            ensure!(output.contains(LAST_WORDS), "the error lacks the output: {output:?}");
        }
        other => return Err(unexpected("TimedOut", other.err())),
    }
    check_nothing_left(subject, &*provider).await
}

/// Launching an id repeatedly or concurrently results in one kernel.
pub async fn launching_twice_attaches(subject: &dyn Subject) -> Outcome {
    let provider = subject.open().await;
    let id = KernelId::random();
    let (first, second) = tokio::join!(launch(subject, &*provider, id), launch(subject, &*provider, id));
    let third = launch(subject, &*provider, id).await?;
    let connection = expect(subject, "connection", third.connection()).await?;
    for kernel in [first?, second?] {
        ensure!(
            expect(subject, "connection", kernel.connection()).await? == connection,
            "the same id was launched twice"
        );
    }
    ensure!(
        list(subject, &*provider).await?.len() == 1,
        "the same id is listed twice"
    );
    shutdown(subject, &*third).await?;
    check_nothing_left(subject, &*provider).await
}

/// Concurrent launches do not interfere.
pub async fn launches_concurrently(subject: &dyn Subject) -> Outcome {
    let provider = subject.open().await;
    let launches = (0..8).map(|_| launch(subject, &*provider, KernelId::random()));
    let kernels = futures::future::try_join_all(launches).await?;
    let mut addresses = BTreeSet::new();
    for kernel in &kernels {
        let connection = expect(subject, "connection", kernel.connection()).await?;
        addresses.insert(connection.address(jupyter_protocol::Channel::Shell));
        check_answers(subject, &**kernel).await?;
    }
    ensure!(addresses.len() == kernels.len(), "kernels share sockets: {addresses:?}");
    let ends = kernels.iter().map(|kernel| shutdown(subject, &**kernel));
    futures::future::try_join_all(ends).await?;
    check_nothing_left(subject, &*provider).await
}

/// A launch that is cancelled at any stage leaves nothing behind, and its id is free.
pub async fn a_cancelled_launch_leaves_nothing(subject: &dyn Subject) -> Outcome {
    let provider = subject.open().await;
    let id = KernelId::random();
    // If the cancelled launch left a silent kernel behind, it would not end by itself.
    for spec in [subject.silent_spec(), subject.spec()] {
        for stage in [None, Some(LaunchStage::Scheduled), Some(LaunchStage::Starting)] {
            let (reached, mut wait) = tokio::sync::watch::channel(false);
            let progress = Progress::new({
                let stage = stage.clone();
                move |now| {
                    if Some(now) == stage {
                        reached.send_replace(true);
                    }
                }
            });
            {
                let mut request = LaunchRequest::new(id, &*spec);
                request.timeout = subject.step_timeout();
                let mut launch = pin!(provider.launch(request, progress));
                // Without a stage, poll once: the earliest possible cancellation.
                let reached = async {
                    match &stage {
                        Some(_) => wait.wait_for(|reached| *reached).await.is_ok(),
                        None => true,
                    }
                };
                tokio::select! {
                    biased;
                    launched = &mut launch => {
                        // Providers may skip stages, and the kernel may be fast.
                        ensure!(spec == subject.spec(), "the silent kernel answered: {:?}", launched.err());
                        if let Ok(kernel) = launched {
                            shutdown(subject, &*kernel).await?;
                        }
                    }
                    _ = reached => {}
                }
            }
            check_nothing_left(subject, &*provider).await?;
        }
    }
    let kernel = launch(subject, &*provider, id).await?;
    check_answers(subject, &*kernel).await?;
    shutdown(subject, &*kernel).await?;
    check_nothing_left(subject, &*provider).await
}

fn unexpected(wanted: &str, error: Option<LaunchError>) -> Failure {
    match error {
        Some(error) => Failure::new(format!("expected {wanted}, got {error:?}")),
        None => Failure::new(format!("expected {wanted}, got a kernel")),
    }
}
