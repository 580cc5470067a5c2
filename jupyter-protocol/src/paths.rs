//! Jupyter's directories, the same and in the same order as in `jupyter_core`.
//!
//! Only [`PathEnv::from_process`] reads the environment of the process. Everything else works with explicit values, so
//! that a server can search on behalf of another user, and tests need no globals.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Platform whose directory conventions apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Platform {
    /// Linux and every other Unix except macOS.
    Unix,
    /// macOS.
    MacOs,
    /// Windows.
    Windows,
}

impl Platform {
    /// Returns the platform that this program was built for.
    #[must_use]
    pub const fn current() -> Self {
        if cfg!(windows) {
            Self::Windows
        } else if cfg!(target_os = "macos") {
            Self::MacOs
        } else {
            Self::Unix
        }
    }

    const fn path_separator(self) -> char {
        match self {
            Self::Windows => ';',
            Self::Unix | Self::MacOs => ':',
        }
    }
}

/// Environment that determines Jupyter's directories: environment variables, home directory, platform, Python prefix.
///
/// The `Debug` output contains the names of the variables but not their values, which may be secret.
#[derive(Clone)]
pub struct PathEnv {
    vars: HashMap<OsString, OsString>,
    home: PathBuf,
    platform: Platform,
    python_prefix: Option<PathBuf>,
}

impl std::fmt::Debug for PathEnv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PathEnv")
            .field("vars", &self.vars.keys())
            .field("home", &self.home)
            .field("platform", &self.platform)
            .field("python_prefix", &self.python_prefix)
            .finish()
    }
}

impl PathEnv {
    /// Creates an environment with these variables and this home directory, for the current platform.
    ///
    /// The Python prefix (`sys.prefix`) defaults to `VIRTUAL_ENV`, else `CONDA_PREFIX`, else none.
    /// [`with_python_prefix`](Self::with_python_prefix) sets another.
    pub fn new<K, V>(vars: impl IntoIterator<Item = (K, V)>, home: impl Into<PathBuf>) -> Self
    where
        K: Into<OsString>,
        V: Into<OsString>,
    {
        let vars: HashMap<OsString, OsString> = vars
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        let python_prefix = ["VIRTUAL_ENV", "CONDA_PREFIX"]
            .iter()
            .filter_map(|name| vars.get(std::ffi::OsStr::new(name)))
            .find(|value| !value.is_empty())
            .map(PathBuf::from);
        Self {
            vars,
            home: home.into(),
            platform: Platform::current(),
            python_prefix,
        }
    }

    /// Returns the environment of this process. Without a home directory, uses `/`.
    #[must_use]
    pub fn from_process() -> Self {
        let home = std::env::home_dir().unwrap_or_else(|| PathBuf::from("/"));
        // Resolves symbolic links as jupyter_core does: on some systems /home is one.
        let home = home.canonicalize().unwrap_or(home);
        Self::new(std::env::vars_os(), home)
    }

    /// Sets the Python prefix (`sys.prefix`) whose `share/jupyter` is searched.
    #[must_use]
    pub fn with_python_prefix(mut self, prefix: impl Into<PathBuf>) -> Self {
        self.python_prefix = Some(prefix.into());
        self
    }

    /// Sets the platform.
    #[must_use]
    pub const fn with_platform(mut self, platform: Platform) -> Self {
        self.platform = platform;
        self
    }

    /// Returns the Python prefix (`sys.prefix`) whose `share/jupyter` is searched, if any.
    #[must_use]
    pub fn python_prefix(&self) -> Option<&Path> {
        self.python_prefix.as_deref()
    }

    /// Returns the value of a variable, if it is set and not empty.
    #[must_use]
    pub fn var(&self, name: &str) -> Option<&OsString> {
        self.vars
            .get(std::ffi::OsStr::new(name))
            .filter(|value| !value.is_empty())
    }

    /// Returns the data directory of the user: `JUPYTER_DATA_DIR`, or the default of the platform.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        if let Some(dir) = self.var("JUPYTER_DATA_DIR") {
            return dir.into();
        }
        if self.flag("JUPYTER_PLATFORM_DIRS") == Some(true) {
            return self.platform_data_dir();
        }
        match self.platform {
            Platform::MacOs => self.home.join("Library").join("Jupyter"),
            Platform::Windows => match self.var("APPDATA") {
                Some(dir) => Path::new(dir).join("jupyter"),
                None => self.config_dir().join("data"),
            },
            Platform::Unix => self
                .var("XDG_DATA_HOME")
                .map_or_else(|| self.home.join(".local").join("share"), PathBuf::from)
                .join("jupyter"),
        }
    }

    /// Returns the directory of connection files: `JUPYTER_RUNTIME_DIR`, or `runtime` in [`data_dir`](Self::data_dir).
    #[must_use]
    pub fn runtime_dir(&self) -> PathBuf {
        match self.var("JUPYTER_RUNTIME_DIR") {
            Some(dir) => dir.into(),
            None => self.data_dir().join("runtime"),
        }
    }

    /// Returns the directories of Jupyter's data in order of precedence.
    ///
    /// These are the entries of `JUPYTER_PATH`, then the directories of the user and of the Python environment, whose
    /// order depends on `JUPYTER_PREFER_ENV_PATH` or the kind of environment, then the directories of the system.
    #[must_use]
    pub fn jupyter_path(&self) -> Vec<PathBuf> {
        let mut dirs = self.split_paths("JUPYTER_PATH");
        let system = self.system_dirs();
        let user = self.user_dirs();
        let env = self.env_dir().filter(|dir| {
            // On Windows the system directory is often the one of the environment, which may have to come first.
            system == [dir.clone()] || !system.contains(dir)
        });
        if self.prefers_env_over_user() {
            dirs.extend(env);
            dirs.extend(user);
        } else {
            dirs.extend(user);
            dirs.extend(env);
        }
        for dir in system {
            if !dirs.contains(&dir) {
                dirs.push(dir);
            }
        }
        dirs
    }

    /// Returns the directory of IPython 2 with its kernelspecs, which `jupyter_client` still searches last.
    pub(crate) fn ipython_dir(&self) -> PathBuf {
        self.var("IPYTHONDIR")
            .map_or_else(|| self.home.join(".ipython"), PathBuf::from)
    }

    fn config_dir(&self) -> PathBuf {
        self.var("JUPYTER_CONFIG_DIR")
            .map_or_else(|| self.home.join(".jupyter"), PathBuf::from)
    }

    /// Returns a variable as a boolean, `true` unless it is a word for "no", or `None` if it is not set.
    fn flag(&self, name: &str) -> Option<bool> {
        let value = self.vars.get(std::ffi::OsStr::new(name))?;
        let value = value.to_string_lossy().to_lowercase();
        Some(!matches!(value.as_str(), "no" | "n" | "false" | "off" | "0" | "0.0"))
    }

    fn split_paths(&self, name: &str) -> Vec<PathBuf> {
        let Some(value) = self.var(name) else {
            return Vec::new();
        };
        value
            .to_string_lossy()
            .split(self.platform.path_separator())
            .map(|dir| dir.trim_end_matches(std::path::MAIN_SEPARATOR))
            // An empty entry would mean the working directory, which is hardly ever intended.
            .filter(|dir| !dir.is_empty())
            .map(PathBuf::from)
            .collect()
    }

    fn env_dir(&self) -> Option<PathBuf> {
        let prefix = self.python_prefix.as_ref()?;
        Some(prefix.join("share").join("jupyter"))
    }

    fn user_dirs(&self) -> Vec<PathBuf> {
        let mut dirs = vec![self.data_dir()];
        if let Some(base) = self.python_user_base() {
            let dir = base.join("share").join("jupyter");
            if !dirs.contains(&dir) {
                dirs.push(dir);
            }
        }
        dirs
    }

    /// Returns Python's `site.USER_BASE`, if Python would use it (`site.ENABLE_USER_SITE`).
    fn python_user_base(&self) -> Option<PathBuf> {
        if self.var("PYTHONNOUSERSITE").is_some() {
            return None;
        }
        if let Some(config) = self.virtualenv_config()
            && !includes_system_packages(&config)
        {
            return None;
        }
        if let Some(base) = self.var("PYTHONUSERBASE") {
            return Some(base.into());
        }
        match self.platform {
            Platform::Windows => Some(Path::new(self.var("APPDATA")?).join("Python")),
            Platform::Unix | Platform::MacOs => Some(self.home.join(".local")),
        }
    }

    fn platform_data_dir(&self) -> PathBuf {
        if self.platform != Platform::Windows
            && let Some(dir) = self.var("XDG_DATA_HOME")
        {
            return Path::new(dir).join(self.app_name());
        }
        match self.platform {
            Platform::Unix => self.home.join(".local").join("share"),
            Platform::MacOs => self.home.join("Library").join("Application Support"),
            Platform::Windows => self
                .var("LOCALAPPDATA")
                .map_or_else(|| self.home.join("AppData").join("Local"), PathBuf::from),
        }
        .join(self.app_name())
    }

    fn system_dirs(&self) -> Vec<PathBuf> {
        if self.platform == Platform::Windows {
            // Any user may write to %PROGRAMDATA%, so it is used only if requested.
            let program_data = match self.flag("JUPYTER_USE_PROGRAMDATA") {
                Some(true) => self.var("PROGRAMDATA"),
                _ => None,
            };
            return match program_data {
                Some(dir) => vec![Path::new(dir).join("jupyter")],
                None => self.env_dir().into_iter().collect(),
            };
        }
        if self.flag("JUPYTER_PLATFORM_DIRS") == Some(true) {
            return self.platform_system_dirs();
        }
        ["/usr/local/share/jupyter", "/usr/share/jupyter"]
            .iter()
            .map(PathBuf::from)
            .collect()
    }

    fn platform_system_dirs(&self) -> Vec<PathBuf> {
        let mut bases = self.split_paths("XDG_DATA_DIRS");
        if bases.is_empty() {
            if self.platform == Platform::MacOs {
                if self.is_homebrew() {
                    bases.push("/opt/homebrew/share".into());
                }
                bases.push("/Library/Application Support".into());
            } else {
                bases.push("/usr/local/share".into());
                bases.push("/usr/share".into());
            }
        }
        bases.into_iter().map(|base| base.join(self.app_name())).collect()
    }

    fn app_name(&self) -> &'static str {
        match self.platform {
            Platform::Windows => "Jupyter",
            Platform::MacOs if !self.is_homebrew() => "Jupyter",
            Platform::Unix | Platform::MacOs => "jupyter",
        }
    }

    fn is_homebrew(&self) -> bool {
        self.python_prefix
            .as_ref()
            .is_some_and(|prefix| prefix.starts_with("/opt/homebrew"))
    }

    fn prefers_env_over_user(&self) -> bool {
        if let Some(preferred) = self.flag("JUPYTER_PREFER_ENV_PATH") {
            return preferred;
        }
        let Some(prefix) = &self.python_prefix else {
            return false;
        };
        let is_virtualenv = self.virtualenv_config().is_some();
        let is_named_conda = self
            .var("CONDA_PREFIX")
            .is_some_and(|conda| prefix.to_string_lossy().starts_with(&*conda.to_string_lossy()))
            && self.var("CONDA_DEFAULT_ENV").is_some_and(|name| name != "base");
        (is_virtualenv || is_named_conda) && owned_by_this_user(prefix)
    }

    /// Returns the text of `pyvenv.cfg`, which exists only in virtual environments.
    fn virtualenv_config(&self) -> Option<String> {
        let path = self.python_prefix.as_ref()?.join("pyvenv.cfg");
        let text = crate::bounded_read::read_limited(&path, MAX_PYVENV_CFG).ok()?;
        Some(String::from_utf8_lossy(&text).into_owned())
    }
}

/// Maximum size of a `pyvenv.cfg` in bytes, far more than Python writes.
const MAX_PYVENV_CFG: u64 = 64 * 1024;

fn includes_system_packages(pyvenv_cfg: &str) -> bool {
    pyvenv_cfg.lines().any(|line| {
        line.split_once('=').is_some_and(|(name, value)| {
            name.trim().eq_ignore_ascii_case("include-system-site-packages")
                && value.trim().eq_ignore_ascii_case("true")
        })
    })
}

#[cfg(unix)]
fn owned_by_this_user(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let user = rustix::process::geteuid().as_raw();
    path.ancestors()
        .find_map(|dir| std::fs::metadata(dir).ok())
        .is_some_and(|metadata| metadata.uid() == user)
}

#[cfg(not(unix))]
fn owned_by_this_user(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| !metadata.permissions().readonly())
}
