//! Search for kernelspecs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{InstalledKernelspec, KernelspecError, is_valid_kernel_name};
use crate::paths::PathEnv;

/// Maximum number of entries that are searched in a folder of kernelspecs.
const MAX_ENTRIES: usize = 10_000;

/// Folders of kernelspecs in order of precedence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SearchPath {
    dirs: Vec<PathBuf>,
}

impl SearchPath {
    /// Creates a search path of these folders, each of which contains one folder per kernelspec.
    pub fn new(dirs: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        Self {
            dirs: dirs.into_iter().map(Into::into).collect(),
        }
    }

    /// Returns the folders that `jupyter kernelspec list` searches: `kernels` in each directory of
    /// [`PathEnv::jupyter_path`], then the folder of IPython 2.
    #[must_use]
    pub fn from_env(env: &PathEnv) -> Self {
        let mut dirs = env.jupyter_path();
        dirs.push(env.ipython_dir());
        Self::new(dirs.into_iter().map(|dir| dir.join("kernels")))
    }

    /// Returns the folders in order of precedence.
    #[must_use]
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }
}

/// Result of a search for kernelspecs.
#[derive(Debug, Default)]
pub struct Found {
    /// Usable kernelspecs, by name.
    pub kernelspecs: BTreeMap<String, InstalledKernelspec>,
    /// Errors of kernelspecs whose `kernel.json` is unusable, by name.
    pub broken: BTreeMap<String, KernelspecError>,
    /// Errors of folders that were ignored in whole or in part, to be logged.
    pub warnings: Vec<KernelspecError>,
}

/// Finds all kernelspecs on the search path.
///
/// If two kernelspecs have the same name, the one in the earlier folder takes precedence, even if it is unusable:
/// falling back to a kernel that it was installed to replace would be surprising. Errors of one kernelspec do not
/// affect others. Blocks on the file system.
#[must_use]
pub fn find_kernelspecs(search: &SearchPath) -> Found {
    let mut found = Found::default();
    for (name, resource_dir) in resource_dirs(search, &mut found.warnings) {
        match InstalledKernelspec::read(name.clone(), resource_dir) {
            Ok(installed) => {
                found.kernelspecs.insert(name, installed);
            }
            Err(error) => {
                found.broken.insert(name, error);
            }
        }
    }
    found
}

/// Resolves a kernel name to the name of an installed kernelspec, or `None` if there is none.
///
/// The name is converted to lowercase, as in `jupyter_client`. `python` and `python2` resolve to `python3` unless
/// kernelspecs of these names are installed.
#[must_use]
pub fn canonical_name(name: &str, installed: impl Fn(&str) -> bool) -> Option<String> {
    let wanted = name.to_ascii_lowercase();
    if installed(&wanted) {
        return Some(wanted);
    }
    (matches!(wanted.as_str(), "python" | "python2") && installed("python3")).then(|| "python3".to_owned())
}

/// Finds a kernelspec by name, as [`canonical_name`] resolves it. Blocks on the file system.
///
/// # Errors
/// - [`KernelspecError::NoSuchKernel`] if no kernelspec has this name.
/// - The errors of [`InstalledKernelspec::read`] if its `kernel.json` is unusable.
pub fn get_kernelspec(search: &SearchPath, name: &str) -> Result<InstalledKernelspec, KernelspecError> {
    let mut dirs = resource_dirs(search, &mut Vec::new());
    let found = canonical_name(name, |name| dirs.contains_key(name)).and_then(|name| dirs.remove_entry(&name));
    match found {
        Some((name, resource_dir)) => InstalledKernelspec::read(name, resource_dir),
        None => Err(KernelspecError::NoSuchKernel {
            name: name.chars().take(64).collect(),
            installed: dirs.into_keys().collect(),
        }),
    }
}

fn resource_dirs(search: &SearchPath, warnings: &mut Vec<KernelspecError>) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    for dir in &search.dirs {
        for (name, path) in list_kernels(dir, warnings) {
            found.entry(name).or_insert(path);
        }
    }
    found
}

/// Lists the kernelspecs in one folder, sorted by name: names that differ only in case are the same kernel, and the
/// order of the file system must not decide between them.
fn list_kernels(dir: &Path, warnings: &mut Vec<KernelspecError>) -> Vec<(String, PathBuf)> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            return Vec::new();
        }
        Err(source) => {
            let path = dir.to_owned();
            warnings.push(KernelspecError::Read { path, source });
            return Vec::new();
        }
    };
    let mut kernels = Vec::new();
    for (count, entry) in entries.flatten().enumerate() {
        if count == MAX_ENTRIES {
            warnings.push(KernelspecError::TooMany {
                path: dir.to_owned(),
                limit: MAX_ENTRIES,
            });
            break;
        }
        let path = entry.path();
        if !path.join("kernel.json").is_file() {
            continue;
        }
        match entry.file_name().to_str() {
            Some(name) if is_valid_kernel_name(name) => kernels.push((name.to_ascii_lowercase(), path)),
            _ => warnings.push(KernelspecError::InvalidName { path }),
        }
    }
    kernels.sort();
    kernels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernelspec::{InterruptMode, MAX_KERNEL_JSON};
    use crate::paths::Platform;

    fn install(dir: &Path, name: &str, kernel_json: &str) {
        let dir = dir.join("kernels").join(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("kernel.json"), kernel_json).unwrap();
    }

    fn named(display_name: &str) -> String {
        format!(r#"{{"argv": ["x"], "display_name": "{display_name}", "language": "l"}}"#)
    }

    fn dirs(env: &PathEnv) -> Vec<String> {
        SearchPath::from_env(env)
            .dirs()
            .iter()
            .map(|dir| dir.to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn earlier_folders_take_precedence_and_errors_affect_no_others() {
        let root = tempfile::tempdir().unwrap();
        let (first, second) = (root.path().join("1"), root.path().join("2"));
        install(&first, "Python3", &named("first"));
        install(&second, "python3", &named("second"));
        install(
            &second,
            "r",
            r#"{"argv": ["R"], "interrupt_mode": "MESSAGE", "env": null, "mine": [1]}"#,
        );
        install(&first, "broken", "{");
        install(&second, "broken", &named("hidden by the first"));
        install(&second, "wrong", r#"{"argv": "x"}"#);
        install(&second, "mode", r#"{"interrupt_mode": "shout"}"#);
        install(&second, "b-o.m_1", &format!("\u{feff}{}", named("bom")));
        install(&second, "huge", &" ".repeat(MAX_KERNEL_JSON as usize + 1));
        install(&second, "a name", &named("bad name"));
        std::fs::create_dir_all(second.join("kernels/empty")).unwrap();
        std::fs::create_dir_all(second.join("kernels/dir/kernel.json")).unwrap();
        let search = SearchPath::new([first.join("kernels"), second.join("kernels"), root.path().join("none")]);
        let found = find_kernelspecs(&search);
        assert_eq!(
            found.kernelspecs.keys().collect::<Vec<_>>(),
            ["b-o.m_1", "python3", "r"]
        );
        assert_eq!(found.kernelspecs["python3"].spec.display_name, "first");
        assert_eq!(found.kernelspecs["r"].spec.interrupt_mode, InterruptMode::Message);
        assert_eq!(found.kernelspecs["r"].spec.extra["mine"], serde_json::json!([1]));
        let warnings: Vec<String> = found.warnings.iter().map(ToString::to_string).collect();
        assert!(warnings.len() == 1 && warnings[0].contains("a name"), "{warnings:#?}");
        assert_eq!(
            found.broken.keys().collect::<Vec<_>>(),
            ["broken", "huge", "mode", "wrong"]
        );
        for (name, error) in &found.broken {
            assert!(error.to_string().contains(&format!("{name}/kernel.json")), "{error}");
        }

        for name in ["PYTHON3", "python", "Python2"] {
            assert_eq!(get_kernelspec(&search, name).unwrap().name, "python3");
        }
        install(&second, "Python", &named("a kernelspec of that name"));
        assert_eq!(get_kernelspec(&search, "python").unwrap().name, "python");
        assert!(matches!(
            get_kernelspec(&search, "broken"),
            Err(KernelspecError::Malformed { .. })
        ));
        let error = get_kernelspec(&search, "../python3").unwrap_err().to_string();
        assert!(error.contains("python3, r"), "{error}");
    }

    #[test]
    fn folders_are_in_jupyters_order_on_unix() {
        let env = PathEnv::new([("HOME", "/h")], "/h").with_platform(Platform::Unix);
        assert_eq!(
            dirs(&env),
            [
                "/h/.local/share/jupyter/kernels",
                "/usr/local/share/jupyter/kernels",
                "/usr/share/jupyter/kernels",
                "/h/.ipython/kernels"
            ]
        );
        let env = PathEnv::new(
            [
                ("JUPYTER_PATH", "/a/::/b"),
                ("XDG_DATA_HOME", "/x"),
                ("IPYTHONDIR", "/i"),
            ],
            "/h",
        )
        .with_platform(Platform::Unix)
        .with_python_prefix("/usr");
        assert_eq!(
            dirs(&env),
            [
                "/a/kernels",
                "/b/kernels",
                "/x/jupyter/kernels",
                "/h/.local/share/jupyter/kernels",
                "/usr/local/share/jupyter/kernels",
                "/usr/share/jupyter/kernels",
                "/i/kernels"
            ]
        );
    }

    #[test]
    fn the_environment_comes_first_if_it_is_virtual_or_preferred() {
        let order = |vars: &[(&str, &str)], prefix: &Path| {
            let env = PathEnv::new(vars.iter().copied(), "/h")
                .with_platform(Platform::Unix)
                .with_python_prefix(prefix);
            let own = prefix.join("share/jupyter");
            env.jupyter_path().iter().position(|dir| *dir == own).unwrap()
        };
        let prefix = tempfile::tempdir().unwrap();
        let path = prefix.path().to_str().unwrap();
        assert_eq!(order(&[], prefix.path()), 1);
        assert_eq!(order(&[("JUPYTER_PREFER_ENV_PATH", "1")], prefix.path()), 0);
        assert_eq!(order(&[("CONDA_PREFIX", path)], prefix.path()), 1);
        let conda = [("CONDA_PREFIX", path), ("CONDA_DEFAULT_ENV", "base")];
        assert_eq!(order(&conda, prefix.path()), 1);
        let conda = [("CONDA_PREFIX", path), ("CONDA_DEFAULT_ENV", "mine")];
        assert_eq!(order(&conda, prefix.path()), 0);
        std::fs::write(prefix.path().join("pyvenv.cfg"), "home = /usr/bin\n").unwrap();
        assert_eq!(order(&[], prefix.path()), 0);
        assert_eq!(order(&[("JUPYTER_PREFER_ENV_PATH", "False")], prefix.path()), 1);
        // The prefix defaults to VIRTUAL_ENV.
        let env = PathEnv::new([("VIRTUAL_ENV", path), ("CONDA_PREFIX", "/conda")], "/h");
        assert_eq!(env.python_prefix(), Some(prefix.path()));
    }

    #[test]
    fn a_virtual_environment_hides_the_users_python_packages() {
        let prefix = tempfile::tempdir().unwrap();
        let has_user_base = || {
            let env = PathEnv::new([("XDG_DATA_HOME", "/x")], "/h")
                .with_platform(Platform::Unix)
                .with_python_prefix(prefix.path());
            env.jupyter_path().contains(&"/h/.local/share/jupyter".into())
        };
        assert!(has_user_base());
        let config = prefix.path().join("pyvenv.cfg");
        std::fs::write(&config, "include-system-site-packages = false\n").unwrap();
        assert!(!has_user_base());
        std::fs::write(&config, "include-system-site-packages = true\n").unwrap();
        assert!(has_user_base());
    }

    #[test]
    fn directories_follow_the_conventions_of_macos_and_windows() {
        let env = PathEnv::new([("x", "y")], "/Users/u").with_platform(Platform::MacOs);
        assert_eq!(env.data_dir(), Path::new("/Users/u/Library/Jupyter"));
        assert_eq!(env.runtime_dir(), Path::new("/Users/u/Library/Jupyter/runtime"));
        let env = PathEnv::new([("JUPYTER_PLATFORM_DIRS", "1")], "/Users/u").with_platform(Platform::MacOs);
        assert_eq!(
            env.data_dir(),
            Path::new("/Users/u/Library/Application Support/Jupyter")
        );
        let vars = [("APPDATA", "/roaming"), ("PROGRAMDATA", "/all")];
        let env = PathEnv::new(vars, "/u")
            .with_platform(Platform::Windows)
            .with_python_prefix("/python");
        assert_eq!(
            env.jupyter_path(),
            [
                Path::new("/roaming/jupyter"),
                Path::new("/roaming/Python/share/jupyter"),
                Path::new("/python/share/jupyter")
            ]
        );
        let vars = [("PROGRAMDATA", "/all"), ("JUPYTER_USE_PROGRAMDATA", "1")];
        let env = PathEnv::new(vars, "/u").with_platform(Platform::Windows);
        assert_eq!(
            env.jupyter_path(),
            [Path::new("/u/.jupyter/data"), Path::new("/all/jupyter")]
        );
    }
}
