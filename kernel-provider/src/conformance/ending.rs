//! Tests of how kernels end.

use std::time::Duration;

use jupyter_protocol::KernelId;

use super::{
    Outcome, Subject, check_answers, check_nothing_left, ensure, expect, launch, list, shutdown, step, wait_for_phase,
};
use crate::{AttachError, ExitCause, LaunchError, Phase, Progress, ProviderError};

/// A shutdown ends the kernel, notifies all handles, leaves nothing behind, and can be repeated.
pub async fn a_shutdown_ends_the_kernel(subject: &dyn Subject) -> Outcome {
    let provider = subject.open().await;
    let kernel = launch(subject, &*provider, KernelId::random()).await?;
    let other = expect(subject, "attach", provider.attach(&kernel.record())).await?;
    let exit = shutdown(subject, &*kernel).await?;
    ensure!(
        exit.cause == ExitCause::Requested,
        "a requested shutdown has the cause {}",
        exit.cause
    );
    let reported = step(subject, "the end at another handle", other.wait()).await?;
    ensure!(reported == exit, "another handle reports {reported:?}");
    ensure!(
        shutdown(subject, &*kernel).await? == exit,
        "a second shutdown returns another exit"
    );
    ensure!(
        matches!(kernel.interrupt().await, Err(ProviderError::Gone(_))),
        "an ended kernel can be interrupted"
    );
    ensure!(kernel.connection().await.is_err(), "an ended kernel has a connection");
    let restarted = step(
        subject,
        "restart",
        kernel.restart(Duration::from_secs(5), Progress::ignored()),
    )
    .await?;
    ensure!(
        matches!(restarted, Err(LaunchError::Provider(ProviderError::Gone(_)))),
        "a kernel that was shut down can be restarted: {restarted:?}"
    );
    check_nothing_left(subject, &*provider).await
}

/// A shutdown without grace kills the kernel.
pub async fn a_shutdown_without_grace_kills_the_kernel(subject: &dyn Subject) -> Outcome {
    let provider = subject.open().await;
    let kernel = launch(subject, &*provider, KernelId::random()).await?;
    let exit = expect(subject, "shutdown", kernel.shutdown(Duration::ZERO)).await?;
    ensure!(
        exit.cause == ExitCause::Requested,
        "a requested shutdown has the cause {}",
        exit.cause
    );
    check_nothing_left(subject, &*provider).await
}

/// The end of a killed kernel is reported to its handle, with a cause other than a request.
pub async fn reports_the_death_of_a_kernel(subject: &dyn Subject) -> Outcome {
    let provider = subject.open().await;
    let kernel = launch(subject, &*provider, KernelId::random()).await?;
    let record = kernel.record();
    subject.kill(&record).await;
    let exit = step(subject, "the end of a killed kernel", kernel.wait()).await?;
    ensure!(
        exit.cause != ExitCause::Requested,
        "a killed kernel is reported as shut down"
    );
    wait_for_phase(subject, &*kernel, &Phase::Exited(exit.clone())).await?;
    ensure!(list(subject, &*provider).await?.is_empty(), "a dead kernel is listed");
    let attached = step(subject, "attach", provider.attach(&record)).await?;
    ensure!(
        matches!(attached, Err(AttachError::Gone { .. })),
        "a dead kernel can be attached to: {:?}",
        attached.err()
    );
    ensure!(
        matches!(kernel.interrupt().await, Err(ProviderError::Gone(_))),
        "a dead kernel can be interrupted"
    );
    // The kernel's id can be launched again.
    let again = launch(subject, &*provider, record.id).await?;
    check_answers(subject, &*again).await?;
    shutdown(subject, &*again).await?;
    check_nothing_left(subject, &*provider).await
}

/// A new embedder sees the end of a kernel that another one launched.
pub async fn a_reopened_provider_reports_the_end(subject: &dyn Subject) -> Outcome {
    let provider = subject.open().await;
    let kernel = launch(subject, &*provider, KernelId::random()).await?;
    let record = kernel.record();
    drop(kernel);
    drop(provider);
    let provider = subject.open().await;
    let kernel = expect(subject, "attach", provider.attach(&record)).await?;
    subject.kill(&record).await;
    step(subject, "the end of a killed kernel", kernel.wait()).await?;
    ensure!(list(subject, &*provider).await?.is_empty(), "a dead kernel is listed");
    drop(kernel);
    drop(provider);
    let provider = subject.open().await;
    match step(subject, "attach", provider.attach(&record)).await? {
        Err(AttachError::Gone { .. }) => {}
        // Attaching may still succeed, because the last messages of the kernel may not have been read yet.
        Ok(kernel) => {
            let exit = step(subject, "the end of a dead kernel", kernel.wait()).await?;
            ensure!(
                exit.cause != ExitCause::Requested,
                "a killed kernel is reported as shut down"
            );
            shutdown(subject, &*kernel).await?;
        }
        Err(error) => return Err(super::Failure::new(format!("a dead kernel is reported as {error}"))),
    }
    check_nothing_left(subject, &*provider).await
}

/// A shutdown cancels a restart in progress, and no kernel remains.
pub async fn a_shutdown_cancels_a_restart(subject: &dyn Subject) -> Outcome {
    let provider = subject.open().await;
    let kernel = launch(subject, &*provider, KernelId::random()).await?;
    let mut phase = kernel.phase();
    phase.mark_unchanged();
    let restart = kernel.restart(Duration::ZERO, Progress::ignored());
    let end = async {
        // A fast provider may have finished the restart; the shutdown still comes last.
        let _ = phase.changed().await;
        kernel.shutdown(Duration::ZERO).await
    };
    let (_, ended) = step(subject, "restart and shutdown", async { tokio::join!(restart, end) }).await?;
    ensure!(ended.is_ok(), "the shutdown failed: {:?}", ended.err());
    check_nothing_left(subject, &*provider).await
}

/// After a cancelled shutdown, the next one ends the kernel.
pub async fn a_cancelled_shutdown_can_be_repeated(subject: &dyn Subject) -> Outcome {
    let provider = subject.open().await;
    let kernel = launch(subject, &*provider, KernelId::random()).await?;
    tokio::select! {
        biased;
        _ = kernel.shutdown(Duration::from_secs(5)) => {}
        () = std::future::ready(()) => {}
    }
    shutdown(subject, &*kernel).await?;
    step(subject, "the end", kernel.wait()).await?;
    check_nothing_left(subject, &*provider).await
}
