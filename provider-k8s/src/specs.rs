//! Finds the kernelspecs that run in pods.

use jupyter_protocol::InstalledKernelspec;
use jupyter_protocol::kernelspec::{KernelspecError, get_kernelspec};
use kernel_provider::{LaunchError, Specs};

use crate::K8sOptions;
use crate::settings::Settings;

/// Searches for kernelspecs. Blocks on the file system.
pub(crate) fn find(options: &K8sOptions) -> Specs {
    let mut specs = Specs::find(&options.search);
    let Specs { by_name, broken } = &mut specs;
    by_name.retain(
        |name, installed| match Settings::from_spec(&installed.spec, options.default_image.as_deref()) {
            Ok(settings) => settings.is_some(),
            Err(error) => {
                let file = installed.resource_dir.join("kernel.json");
                broken.insert(name.clone(), format!("{}: {error}", file.display()));
                false
            }
        },
    );
    specs
}

/// Reads one kernelspec and its settings. Blocks on the file system.
///
/// # Errors
/// [`LaunchError::NoSuchSpec`] if no kernelspec with this name runs in pods, [`LaunchError::CannotStart`] if the
/// kernelspec is invalid.
pub(crate) fn get(options: &K8sOptions, name: &str) -> Result<(InstalledKernelspec, Settings), LaunchError> {
    let cannot_start = |reason: String| LaunchError::CannotStart {
        what: format!("a kernel of {name}"),
        reason,
    };
    let no_such_spec = || LaunchError::NoSuchSpec {
        spec: name.to_owned(),
        known: find(options).by_name.into_keys().collect::<Vec<_>>().join(", "),
    };
    let installed = get_kernelspec(&options.search, name).map_err(|error| match error {
        KernelspecError::NoSuchKernel { .. } => no_such_spec(),
        other => cannot_start(other.to_string()),
    })?;
    match Settings::from_spec(&installed.spec, options.default_image.as_deref()) {
        Ok(Some(settings)) => Ok((installed, settings)),
        Ok(None) => Err(no_such_spec()),
        Err(error) => {
            let file = installed.resource_dir.join("kernel.json");
            Err(cannot_start(format!("{}: {error}", file.display())))
        }
    }
}
