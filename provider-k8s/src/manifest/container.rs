//! The container in which a kernel runs: its command, environment, resources and mounts.

use jupyter_protocol::kernelspec::{LaunchArgs, expand_env};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, EnvVar, EnvVarSource, SecretKeySelector, SecurityContext, VolumeMount,
};

use super::{ManifestParams, agent};
use crate::{names, settings};

/// Copies the connection file, replacing a previous kernel's copy, then executes the kernel.
const COPY_SCRIPT: &str = r#"umask 077; cp -f "$1" "$2" && shift 2 && exec "$@""#;
/// Runs the kernel, and runs it again on a restart in place.
pub(super) const KEEP_SCRIPT: &str = include_str!("../shell/keep.sh");

/// Whether a Python interpreter starts the kernel. The image of such a kernel can be expected to contain a shell.
fn is_python(program: &str) -> bool {
    program.rsplit('/').next().unwrap_or_default().starts_with("python")
}

pub(super) fn restarts_in_place(kernel: &ManifestParams<'_>) -> Result<bool, String> {
    let argv = settings::argv(&kernel.installed.spec)?;
    let program = argv.first().map(String::as_str).unwrap_or_default();
    let can_restart = || kernel.agent.is_some() || is_python(program);
    Ok(kernel.settings.restart_in_place.unwrap_or_else(can_restart))
}

pub(super) fn container(
    kernel: &ManifestParams<'_>,
    mut base: Container,
    secret_name: &str,
) -> Result<Container, String> {
    let settings = &kernel.settings;
    let (mut command, writable_mount) = match &kernel.agent {
        Some(_) => (agent::command(), Some(agent::mount())),
        None => kernel_command(kernel)?,
    };
    command.iter_mut().for_each(|word| *word = literal(word));
    names::CONTAINER.clone_into(&mut base.name);
    base.image.clone_from(&settings.image);
    if settings.image_pull_policy.is_some() {
        base.image_pull_policy.clone_from(&settings.image_pull_policy);
    }
    base.command = Some(command);
    if settings.working_dir.is_some() {
        base.working_dir.clone_from(&settings.working_dir);
    }
    let environment = environment(kernel, base.env.take().unwrap_or_default(), secret_name);
    base.env = Some(environment);
    let resources = base.resources.get_or_insert_default();
    for (ours, theirs) in [
        (&settings.resources.requests, &mut resources.requests),
        (&settings.resources.limits, &mut resources.limits),
    ] {
        if let Some(ours) = ours {
            theirs.get_or_insert_default().extend(ours.clone());
        }
    }
    let mounts = base.volume_mounts.get_or_insert_default();
    mounts.extend(settings.volume_mounts.clone());
    mounts.push(VolumeMount {
        name: names::VOLUME.to_owned(),
        mount_path: names::CONNECTION_DIR.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    });
    mounts.extend(writable_mount);
    let security: &mut SecurityContext = base.security_context.get_or_insert_default();
    security.allow_privilege_escalation.get_or_insert(false);
    security.capabilities.get_or_insert_with(|| Capabilities {
        drop: Some(vec!["ALL".to_owned()]),
        add: None,
    });
    Ok(base)
}

/// The command of a kernel without an agent, and the mount of the writable volume if the command needs one.
fn kernel_command(kernel: &ManifestParams<'_>) -> Result<(Vec<String>, Option<VolumeMount>), String> {
    let settings = &kernel.settings;
    let spec = &kernel.installed.spec;
    let mut argv = kernel.installed.clone();
    argv.spec.argv = settings::argv(spec)?;
    // Use the image's interpreter, not this machine's.
    let program = argv.spec.argv.first().cloned().unwrap_or_default();
    let copies = settings.writable_connection_file.unwrap_or_else(|| is_python(&program));
    let keeps = restarts_in_place(kernel)?;
    let mut command = argv.argv(&LaunchArgs {
        connection_file: if copies {
            names::COPY_FILE
        } else {
            names::CONNECTION_FILE
        },
        python: Some(&program),
        ..LaunchArgs::default()
    });
    if copies {
        let copy = ["sh", "-c", COPY_SCRIPT, "sh", names::CONNECTION_FILE, names::COPY_FILE].map(str::to_owned);
        command.splice(0..0, copy);
    }
    if keeps {
        command.splice(
            0..0,
            ["sh", "-c", KEEP_SCRIPT, "sh", names::COPY_DIR].map(str::to_owned),
        );
    }
    let mount = (copies || keeps).then(|| VolumeMount {
        name: names::COPY_VOLUME.to_owned(),
        mount_path: names::COPY_DIR.to_owned(),
        ..VolumeMount::default()
    });
    Ok((command, mount))
}

/// Escapes text that Kubernetes would otherwise expand: `$(NAME)` is a variable, and `$$` stands for `$`.
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

/// The environment: the kernelspec's variables, then the launch's. The latter can contain tokens, so they come from the
/// Secret.
fn environment(kernel: &ManifestParams<'_>, mut env: Vec<EnvVar>, secret_name: &str) -> Vec<EnvVar> {
    let own = kernel
        .installed
        .spec
        .env
        .iter()
        .filter(|(name, _)| !kernel.env.contains_key(*name));
    env.extend(own.map(|(name, template)| EnvVar {
        name: name.clone(),
        value: Some(literal(&expand_env(template, |name| kernel.env.get(name).cloned()))),
        value_from: None,
    }));
    env.extend(kernel.env.keys().map(|name| EnvVar {
        name: name.clone(),
        value: None,
        value_from: Some(EnvVarSource {
            secret_key_ref: Some(SecretKeySelector {
                key: format!("{}{name}", names::ENV_PREFIX),
                name: secret_name.to_owned(),
                optional: None,
            }),
            ..EnvVarSource::default()
        }),
    }));
    let mut set = |name: &str, value: String| {
        env.push(EnvVar {
            name: name.to_owned(),
            value: Some(value),
            value_from: None,
        });
    };
    // Libraries take this variable as a sign that they run in Jupyter. ipykernel exits when the process with this id
    // ends, but ignores the id 1.
    set("JPY_PARENT_PID", "1".to_owned());
    if !kernel.is_warm {
        set("KERNELMUX_KERNEL_ID", kernel.id.to_string());
    }
    env
}
