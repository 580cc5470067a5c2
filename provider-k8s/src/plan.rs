//! Plans a launch: the manifest of its pod, and the warm pool that matches it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jupyter_protocol::{InstalledKernelspec, KernelId};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Pod;
use kernel_provider::{LaunchError, LaunchRequest};

use crate::manifest::{Manifest, ManifestParams};
use crate::settings::Settings;
use crate::{K8sOptions, names, specs, user_overrides};

/// The plan for a launch.
pub(crate) struct Plan {
    /// The manifest for a new pod.
    pub(crate) manifest: Manifest,
    /// The matching warm pool, or the reason why its pods do not match. `None` if the kernelspec has no pool.
    pub(crate) pool: Option<Result<String, String>>,
}

/// Plans a launch. Blocks on the file system.
///
/// # Errors
/// [`LaunchError`] if the kernelspec or the request is invalid.
pub(crate) fn plan(options: &K8sOptions, request: &LaunchRequest) -> Result<Plan, LaunchError> {
    let (installed, mut own) = specs::get(options, &request.spec)?;
    options.add_volumes(&mut own);
    let wrong = |reason| LaunchError::CannotStart {
        what: format!("a kernel of {}", installed.name),
        reason,
    };
    let mut request = request.clone();
    request.env.retain(|name, dir| {
        name != user_overrides::WORKING_DIR || user_overrides::allows_working_dir(dir, &options.policy)
    });
    request.working_dir = request
        .working_dir
        .filter(|dir| user_overrides::allows_working_dir(&dir.to_string_lossy(), &options.policy));
    let request = &request;
    let settings = requested_settings(options, &own, &request.env, request).map_err(LaunchError::BadRequest)?;
    let pool = (own.warm_pool.size > 0).then(|| matching_pool(options, &installed, &own, request));
    let without_request = warm_manifest(options, request.id, &installed, own.clone());
    let params = params(options, request.id, &installed, settings);
    let manifest = Manifest::new(ManifestParams {
        owner: request.owner.as_deref(),
        env: &request.env,
        ..params
    });
    let mut manifest = manifest.map_err(wrong)?;
    manifest.annotate(names::SETTINGS, without_request.map_err(wrong)?.fingerprint());
    if let Some(annotations) = names::requested_value(&request.annotations) {
        manifest.annotate(names::REQUESTED, annotations);
    }
    if let Some(dir) = &request.working_dir {
        manifest.annotate(names::WORKING_DIR, dir.to_string_lossy().into_owned());
    }
    Ok(Plan { manifest, pool })
}

/// Returns a manifest for a restart if the kernelspec has changed since the pod was created. Blocks on the file system.
///
/// Returns `None` if the kernelspec is unchanged, or is now missing or invalid.
pub(crate) fn updated_manifest(
    options: &K8sOptions,
    id: KernelId,
    pod: &Pod,
    secret: &BTreeMap<String, ByteString>,
) -> Option<Manifest> {
    let old_fingerprint = names::annotation(pod, names::SETTINGS)?;
    let spec = names::annotation(pod, names::SPEC)?;
    let (installed, mut own) = specs::get(options, spec).ok()?;
    options.add_volumes(&mut own);
    if warm_manifest(options, id, &installed, own).ok()?.fingerprint() == old_fingerprint {
        return None;
    }
    let mut request = LaunchRequest::new(id, spec);
    request.owner = names::annotation(pod, names::OWNER).map(str::to_owned);
    request.annotations = names::requested_annotations(pod);
    request.working_dir = names::annotation(pod, names::WORKING_DIR).map(PathBuf::from);
    request.env = secret
        .iter()
        .filter_map(|(name, value)| {
            let value = String::from_utf8(value.0.clone()).ok()?;
            Some((name.strip_prefix(names::ENV_PREFIX)?.to_owned(), value))
        })
        .collect();
    match plan(options, &request) {
        Ok(Plan { mut manifest, .. }) => {
            if let Some(launched) = names::annotation(pod, names::LAUNCHED) {
                manifest.annotate(names::LAUNCHED, launched.to_owned());
            }
            Some(manifest)
        }
        Err(error) => {
            tracing::warn!(kernel = %id, %error, "the changed kernelspec is invalid; restarting with the old one");
            None
        }
    }
}

/// Parameters of a kernel without owner and variables.
fn params<'a>(
    options: &'a K8sOptions,
    id: KernelId,
    installed: &'a InstalledKernelspec,
    settings: Settings,
) -> ManifestParams<'a> {
    const NONE: &BTreeMap<String, String> = &BTreeMap::new();
    ManifestParams {
        id,
        provider: &options.name,
        namespace: &options.namespace,
        owner: None,
        installed,
        settings,
        env: NONE,
        launched: chrono::Utc::now(),
        is_warm: false,
        agent: options.agent(),
    }
}

/// Creates the manifest of a pod for a warm pool.
///
/// # Errors
/// The reason why the kernelspec is invalid.
pub(crate) fn warm_manifest(
    options: &K8sOptions,
    id: KernelId,
    installed: &InstalledKernelspec,
    settings: Settings,
) -> Result<Manifest, String> {
    let mut manifest = Manifest::new(ManifestParams {
        is_warm: true,
        ..params(options, id, installed, settings)
    })?;
    manifest.annotate(names::SETTINGS, manifest.fingerprint());
    Ok(manifest)
}

/// Returns the kernelspec's settings with the launch's own settings applied.
fn requested_settings(
    options: &K8sOptions,
    own: &Settings,
    env: &BTreeMap<String, String>,
    request: &LaunchRequest,
) -> Result<Settings, String> {
    let mut settings = own.clone();
    user_overrides::apply(&mut settings, env, &options.policy)?;
    let ignores_dir =
        own.warm_pool.without.contains(user_overrides::WORKING_DIR) && !env.contains_key(user_overrides::WORKING_DIR);
    if let Some(dir) = request.working_dir.as_ref().filter(|_| !ignores_dir) {
        settings.working_dir = Some(dir.to_string_lossy().into_owned());
    }
    Ok(settings)
}

/// Returns the kernelspec's pool if its pods match the launch.
///
/// # Errors
/// The reason why the pods do not match.
fn matching_pool(
    options: &K8sOptions,
    installed: &InstalledKernelspec,
    own: &Settings,
    request: &LaunchRequest,
) -> Result<String, String> {
    let mut env = request.env.clone();
    env.retain(|name, _| !own.warm_pool.ignores(name));
    let settings = requested_settings(options, own, &env, request)?;
    let differences = own.differences(&settings);
    if !differences.is_empty() {
        return Err(format!("the launch sets {}", differences.join(", ")));
    }
    if !env.is_empty() {
        let names: Vec<&str> = env.keys().map(String::as_str).collect();
        return Err(format!("the launch sets {}", names.join(", ")));
    }
    warm_manifest(options, request.id, installed, settings).map(|manifest| manifest.fingerprint())
}
