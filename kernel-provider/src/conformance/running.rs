//! Tests of running kernels.

use std::collections::BTreeMap;
use std::time::Duration;

use jupyter_protocol::KernelId;

use super::{
    Failure, Outcome, Subject, check_answers, check_nothing_left, ensure, expect, launch, launch_request, list,
    shutdown, step, wait_for_phase,
};
use crate::{AttachError, KernelRecord, Phase, Progress, Selector};

/// Only running kernels that match the selector are listed.
pub async fn list_applies_the_selector(subject: &dyn Subject) -> Outcome {
    let provider = subject.open().await;
    let mut kernels = Vec::new();
    for owner in ["ann", "bob"] {
        let mut request = launch_request(subject, KernelId::random());
        request.owner = Some(owner.to_owned());
        kernels.push(expect(subject, "launch", provider.launch(request, Progress::ignored())).await?);
    }
    ensure!(
        list(subject, &*provider).await?.len() == 2,
        "not both kernels are listed"
    );
    let mut of_bob = Selector::all();
    of_bob.owner = Some("bob".to_owned());
    let listed = expect(subject, "list", provider.list(&of_bob)).await?;
    ensure!(listed == [kernels[1].record()], "bob's kernels are {listed:?}");
    let mut of_other_spec = Selector::all();
    of_other_spec.spec = Some(subject.silent_spec());
    let listed = expect(subject, "list", provider.list(&of_other_spec)).await?;
    ensure!(
        listed.is_empty(),
        "kernels of another kernelspec are listed: {listed:?}"
    );
    for kernel in &kernels {
        shutdown(subject, &**kernel).await?;
    }
    check_nothing_left(subject, &*provider).await
}

/// A record can be stored as text and attached to. Neither the text nor the debug output of the record contains the key
/// or the value of an environment variable.
pub async fn a_record_is_serializable_without_secrets(subject: &dyn Subject) -> Outcome {
    let provider = subject.open().await;
    let id = KernelId::random();
    let mut request = launch_request(subject, id);
    request
        .env
        .insert("MY_PASSWORD".to_owned(), "a-secret-value".to_owned());
    let kernel = expect(subject, "launch", provider.launch(request, Progress::ignored())).await?;
    let connection = expect(subject, "connection", kernel.connection()).await?;
    let record = kernel.record();
    let text = serde_json::to_string(&record)
        .map_err(|error| Failure::new(format!("the record cannot be written as JSON: {error}")))?;
    for secret in [connection.key.expose(), "a-secret-value"] {
        ensure!(
            !text.contains(secret) && !format!("{record:?}").contains(secret),
            "a secret is in the record: {text}"
        );
    }
    let read: KernelRecord =
        serde_json::from_str(&text).map_err(|error| Failure::new(format!("the record cannot be read: {error}")))?;
    ensure!(
        read == record,
        "the record changes when it is written and read: {read:?}"
    );
    let attached = expect(subject, "attach", provider.attach(&read)).await?;
    ensure!(
        expect(subject, "connection", attached.connection()).await? == connection,
        "attach returned another kernel"
    );
    shutdown(subject, &*attached).await?;
    step(subject, "the end at the first handle", kernel.wait()).await?;
    Ok(())
}

/// Attaching fails with different errors for a record of another provider and for a kernel that is gone.
pub async fn refuses_foreign_and_gone_records(subject: &dyn Subject) -> Outcome {
    let provider = subject.open().await;
    let kernel = launch(subject, &*provider, KernelId::random()).await?;
    let mut foreign = kernel.record();
    foreign.provider = "another".to_owned();
    let attached = step(subject, "attach", provider.attach(&foreign)).await?;
    ensure!(
        matches!(attached, Err(AttachError::Foreign { .. })),
        "another provider's record is not refused as foreign: {:?}",
        attached.err()
    );
    let mut unknown = kernel.record();
    unknown.id = KernelId::random();
    let attached = step(subject, "attach", provider.attach(&unknown)).await?;
    ensure!(
        matches!(attached, Err(AttachError::Gone { id, .. }) if id == unknown.id),
        "an unknown kernel is not reported as gone: {:?}",
        attached.err()
    );
    shutdown(subject, &*kernel).await?;
    let attached = step(subject, "attach", provider.attach(&kernel.record())).await?;
    ensure!(
        matches!(attached, Err(AttachError::Gone { .. })),
        "an ended kernel is not reported as gone: {:?}",
        attached.err()
    );
    Ok(())
}

/// Creating and dropping handles does not affect the kernel.
pub async fn a_dropped_handle_does_not_end_the_kernel(subject: &dyn Subject) -> Outcome {
    let provider = subject.open().await;
    let kernel = launch(subject, &*provider, KernelId::random()).await?;
    let record = kernel.record();
    drop(kernel);
    let kernel = expect(subject, "attach", provider.attach(&record)).await?;
    check_answers(subject, &*kernel).await?;
    shutdown(subject, &*kernel).await?;
    check_nothing_left(subject, &*provider).await
}

/// An interrupt uses the kernelspec's interrupt mode and does not end an idle kernel.
pub async fn interrupts_as_the_kernelspec_says(subject: &dyn Subject) -> Outcome {
    let provider = subject.open().await;
    let kernel = launch(subject, &*provider, KernelId::random()).await?;
    // A kernel that answers has installed its signal handlers.
    check_answers(subject, &*kernel).await?;
    let how = expect(subject, "interrupt", kernel.interrupt()).await?;
    ensure!(how == subject.interrupt(), "the interrupt was carried out as {how:?}");
    check_answers(subject, &*kernel).await?;
    shutdown(subject, &*kernel).await.map(drop)
}

/// A restart keeps the id, and the new kernel answers.
pub async fn restarts_under_the_same_id(subject: &dyn Subject) -> Outcome {
    let provider = subject.open().await;
    let kernel = launch(subject, &*provider, KernelId::random()).await?;
    check_answers(subject, &*kernel).await?;
    let record = kernel.record();
    let mut phase = kernel.phase();
    phase.mark_unchanged();
    expect(
        subject,
        "restart",
        kernel.restart(Duration::from_secs(5), Progress::ignored()),
    )
    .await?;
    ensure!(
        phase.has_changed().unwrap_or(false),
        "the phase's watch did not change on a restart"
    );
    ensure!(
        *kernel.phase().borrow() == Phase::Running,
        "a restarted kernel is not running"
    );
    ensure!(kernel.record().id == record.id, "a restart changed the id");
    check_answers(subject, &*kernel).await?;
    ensure!(
        list(subject, &*provider).await?.len() == 1,
        "a restarted kernel is listed twice or not at all"
    );
    // The old record remains valid.
    let attached = expect(subject, "attach", provider.attach(&record)).await?;
    check_answers(subject, &*attached).await?;
    shutdown(subject, &*kernel).await?;
    check_nothing_left(subject, &*provider).await
}

/// A dead kernel can be restarted through its handle.
pub async fn restarts_a_dead_kernel(subject: &dyn Subject) -> Outcome {
    let provider = subject.open().await;
    let kernel = launch(subject, &*provider, KernelId::random()).await?;
    subject.kill(&kernel.record()).await;
    step(subject, "the end of a killed kernel", kernel.wait()).await?;
    expect(
        subject,
        "restart",
        kernel.restart(Duration::from_secs(5), Progress::ignored()),
    )
    .await?;
    check_answers(subject, &*kernel).await?;
    shutdown(subject, &*kernel).await?;
    check_nothing_left(subject, &*provider).await
}

/// Kernels outlive their embedder, and another embedder finds them with their annotations.
pub async fn kernels_outlive_the_embedder(subject: &dyn Subject) -> Outcome {
    let provider = subject.open().await;
    let id = KernelId::random();
    let mut request = launch_request(subject, id);
    let annotations = BTreeMap::from([("a/b \"c\"".to_owned(), "d: ö".to_owned())]);
    request.annotations.clone_from(&annotations);
    let kernel = expect(subject, "launch", provider.launch(request, Progress::ignored())).await?;
    check_answers(subject, &*kernel).await?;
    let connection = expect(subject, "connection", kernel.connection()).await?;
    drop(kernel);
    drop(provider);
    let provider = subject.open().await;
    let listed = list(subject, &*provider).await?;
    ensure!(
        listed.len() == 1 && listed[0].id == id,
        "a new embedder lists {listed:?}"
    );
    ensure!(
        listed[0].annotations == annotations,
        "a new embedder finds other annotations: {listed:?}"
    );
    let kernel = expect(subject, "attach", provider.attach(&listed[0])).await?;
    wait_for_phase(subject, &*kernel, &Phase::Running).await?;
    ensure!(
        expect(subject, "connection", kernel.connection()).await?.key == connection.key,
        "a new embedder has another key"
    );
    check_answers(subject, &*kernel).await?;
    // The new embedder has full control of the kernel.
    expect(
        subject,
        "restart",
        kernel.restart(Duration::from_secs(5), Progress::ignored()),
    )
    .await?;
    check_answers(subject, &*kernel).await?;
    ensure!(
        kernel.record().annotations == annotations,
        "a restart changed the annotations"
    );
    shutdown(subject, &*kernel).await?;
    check_nothing_left(subject, &*provider).await
}
