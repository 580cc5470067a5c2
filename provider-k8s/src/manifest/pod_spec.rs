//! A kernel's pod: the template of its kernelspec, with the fields that the provider controls.

use k8s_openapi::api::core::v1::{
    EmptyDirVolumeSource, KeyToPath, LocalObjectReference, PodSecurityContext, PodSpec, SeccompProfile,
    SecretVolumeSource, Volume,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::container::container;
use super::{ManifestParams, agent};
use crate::names;
use crate::settings::Settings;

pub(super) fn pod_spec(kernel: &ManifestParams<'_>, secret_name: &str) -> Result<PodSpec, String> {
    let settings = &kernel.settings;
    let mut spec = settings.pod_template.spec.clone().unwrap_or_default();
    refuse_controlled_fields(&spec)?;
    let given = spec
        .containers
        .iter()
        .position(|container| container.name == names::CONTAINER);
    let base = given.map(|index| spec.containers.remove(index)).unwrap_or_default();
    let container = container(kernel, base, secret_name)?;
    let init = kernel.agent.map(|agent| agent::init_container(&agent, &container));
    spec.init_containers.get_or_insert_default().extend(init);
    spec.containers.insert(0, container);
    // Restarting the container would not restore the kernel's state.
    spec.restart_policy = Some("Never".to_owned());
    // With a shared process namespace, the kernel is not process 1. So signals without a handler have their default
    // effect, and orphaned processes are reaped. An agent is made to be process 1.
    spec.share_process_namespace.get_or_insert(kernel.agent.is_none());
    spec.automount_service_account_token.get_or_insert(false);
    spec.enable_service_links.get_or_insert(false);
    if settings.service_account.is_some() {
        spec.service_account_name.clone_from(&settings.service_account);
    }
    let context = spec.security_context.get_or_insert_default();
    apply_restricted_defaults(context, settings);
    let secrets = settings
        .image_pull_secrets
        .iter()
        .map(|name| LocalObjectReference { name: name.clone() });
    spec.image_pull_secrets.get_or_insert_default().extend(secrets);
    if !settings.node_selector.is_empty() {
        spec.node_selector
            .get_or_insert_default()
            .extend(settings.node_selector.clone());
    }
    if !settings.tolerations.is_empty() {
        spec.tolerations
            .get_or_insert_default()
            .extend(settings.tolerations.clone());
    }
    let volumes = spec.volumes.get_or_insert_default();
    volumes.extend(settings.volumes.clone());
    volumes.extend(kernel.agent.map(|agent| agent::volume(&agent)));
    let file = match kernel.agent {
        Some(_) => names::LAUNCH_KEY,
        None => names::CONNECTION_KEY,
    };
    volumes.push(Volume {
        name: names::VOLUME.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret_name.to_owned()),
            default_mode: Some(0o400),
            items: Some(vec![KeyToPath {
                key: file.to_owned(),
                path: file.to_owned(),
                ..KeyToPath::default()
            }]),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    });
    if kernel.agent.is_some() {
        return Ok(spec);
    }
    // In memory, like Secret volumes, so that no key is written to a node's disk.
    #[allow(clippy::needless_update, reason = "newer versions of Kubernetes have more fields")]
    volumes.push(Volume {
        name: names::COPY_VOLUME.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: Some("Memory".to_owned()),
            size_limit: Some(Quantity("1Mi".to_owned())),
            ..EmptyDirVolumeSource::default()
        }),
        ..Volume::default()
    });
    Ok(spec)
}

/// Refuses templates that set fields which the provider controls.
///
/// # Errors
/// The first such field.
fn refuse_controlled_fields(spec: &PodSpec) -> Result<(), String> {
    let kernel = spec
        .containers
        .iter()
        .find(|container| container.name == names::CONTAINER);
    let mounts_ours = kernel
        .and_then(|kernel| kernel.volume_mounts.as_ref())
        .is_some_and(|mounts| {
            mounts
                .iter()
                .any(|mount| mount.mount_path.starts_with(names::CONNECTION_DIR))
        });
    let owned = [
        ("spec.restartPolicy", spec.restart_policy.is_some()),
        ("spec.nodeName", spec.node_name.is_some()),
        ("spec.hostNetwork", spec.host_network.is_some()),
        ("spec.activeDeadlineSeconds", spec.active_deadline_seconds.is_some()),
        (
            "the kernel container's command",
            kernel.is_some_and(|kernel| kernel.command.is_some()),
        ),
        (
            "the kernel container's args",
            kernel.is_some_and(|kernel| kernel.args.is_some()),
        ),
        (
            "the kernel container's image",
            kernel.is_some_and(|kernel| kernel.image.is_some()),
        ),
        ("a mount at /run/kernelmux or /run/kernelmux-rw", mounts_ours),
        (
            "a volume named kernelmux-connection",
            spec.volumes.iter().flatten().any(|volume| volume.name == names::VOLUME),
        ),
        (
            "a volume or an init container named kernelmux-agent",
            spec.volumes.iter().flatten().any(|volume| volume.name == names::AGENT)
                || spec
                    .init_containers
                    .iter()
                    .flatten()
                    .any(|container| container.name == names::AGENT),
        ),
        (
            "a volume named kernelmux-connection-copy",
            spec.volumes
                .iter()
                .flatten()
                .any(|volume| volume.name == names::COPY_VOLUME),
        ),
    ];
    match owned.iter().find(|(_, is_set)| *is_set) {
        Some((what, _)) => Err(format!("the pod template sets {what}, which the provider controls")),
        None => Ok(()),
    }
}

/// Adds what the `restricted` Pod Security level requires, unless the template sets it.
fn apply_restricted_defaults(context: &mut PodSecurityContext, settings: &Settings) {
    context.run_as_non_root.get_or_insert(true);
    context.seccomp_profile.get_or_insert_with(|| SeccompProfile {
        type_: "RuntimeDefault".to_owned(),
        localhost_profile: None,
    });
    if context.run_as_user.is_none() {
        context.run_as_user = settings.run_as_user;
    }
    if context.run_as_group.is_none() {
        context.run_as_group = settings.run_as_group;
    }
    // Kubernetes lets this group read the connection file, which otherwise only root can read.
    if context.fs_group.is_none() {
        context.fs_group = context.run_as_group;
    }
}
