//! Prepares benchmarks: Python with ipykernel and Kernel Gateway, and kernelspecs. `make bench` makes the release
//! builds.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;

use crate::Result;

/// Python packages, at the versions of the end-to-end tests.
const PACKAGES: [&str; 2] = ["ipykernel==7.4.0", "jupyter-kernel-gateway==3.0.1"];

/// Name of the flood kernel's kernelspec.
pub const FLOOD: &str = "flood";
/// Name of the flood kernel's kernelspec with Unix sockets.
pub const FLOOD_IPC: &str = "flood-ipc";
/// File name of the flood kernel's C library.
const LIBRARY: &str = "flood.so";
/// Name of ipykernel's kernelspec.
pub const PYTHON: &str = "python3";

/// The workspace's folder.
#[must_use]
pub fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// Divides the size of a large benchmark by `KERNELMUX_BENCH_DIVIDE`, if set, for a functional test.
#[must_use]
pub fn scaled(size: usize) -> usize {
    (size / divisor()).max(1)
}

/// Whether sizes are divided. Then the results are not meaningful.
#[must_use]
pub fn is_scaled() -> bool {
    divisor() > 1
}

fn divisor() -> usize {
    let divide = std::env::var("KERNELMUX_BENCH_DIVIDE").ok();
    divide.and_then(|divide| divide.parse().ok()).unwrap_or(1).max(1)
}

/// The path of a program in the same folder as this one.
///
/// # Errors
/// If the path of this program is unknown.
pub fn binary(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    Ok(this.parent().ok_or("this program has no folder")?.join(name))
}

/// Prepared programs and kernelspecs. Dropping it removes its folder.
pub struct Setup {
    folder: TempDir,
    python: PathBuf,
    /// Versions of the packages, for the results.
    pub versions: String,
}

impl Setup {
    /// Installs the packages, compiles the library and writes the kernelspecs.
    ///
    /// # Errors
    /// If Python, a package or a C compiler is missing.
    pub fn make() -> Result<Self> {
        let venv = root().join("target/bench-venv");
        let python = venv.join("bin/python");
        let installed = "from importlib.metadata import version as v; \
                         print('ipykernel', v('ipykernel') + ',', 'jupyter_kernel_gateway', \
                         v('jupyter_kernel_gateway') + ',', 'jupyter_server', v('jupyter_server') + ',', 'pyzmq', \
                         v('pyzmq'))";
        if output_of(&python, &["-c", installed]).is_err() {
            let system = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
            run_command(Command::new(system).args(["-m", "venv"]).arg(&venv))?;
            let mut install = Command::new(&python);
            install.args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--constraint",
            ]);
            run_command(install.arg(root().join("tests/e2e/constraints.txt")).args(PACKAGES))?;
        }
        let versions = format!(
            "Python {}",
            output_of(
                &python,
                &[
                    "-c",
                    &format!("import sys; print(sys.version.split()[0] + ',', end=' '); {installed}")
                ]
            )?
        );

        let folder = tempfile::tempdir()?;
        let library = folder.path().join(LIBRARY);
        let mut compile = Command::new("cc");
        compile.args(["-O2", "-shared", "-fPIC", "-o"]).arg(&library);
        run_command(compile.arg(program("flood.c")))?;
        let setup = Self {
            folder,
            python,
            versions,
        };
        let python = setup.python.display().to_string();
        setup.write_spec(
            FLOOD,
            json!({
                "argv": [python, program("flood_kernel.py"), "{connection_file}"], "display_name": "Flood",
                "language": "flood", "interrupt_mode": "message", "env": {"FLOOD_LIBRARY": library},
            }),
        )?;
        setup.write_spec(
            FLOOD_IPC,
            json!({
                "argv": [python, program("flood_kernel.py"), "{connection_file}"], "display_name": "Flood",
                "language": "flood", "interrupt_mode": "message", "env": {"FLOOD_LIBRARY": library},
                "metadata": {"kernelmux": {"transport": "ipc"}},
            }),
        )?;
        setup.write_spec(
            PYTHON,
            json!({
                "argv": [python, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                "display_name": "Python 3", "language": "python",
            }),
        )?;
        Ok(setup)
    }

    pub(crate) fn write_spec(&self, name: &str, spec: serde_json::Value) -> Result<()> {
        let folder = self.jupyter_path().join("kernels").join(name);
        std::fs::create_dir_all(&folder)?;
        Ok(std::fs::write(folder.join("kernel.json"), spec.to_string())?)
    }

    fn jupyter_path(&self) -> PathBuf {
        self.folder.path().join("share/jupyter")
    }

    /// The Python interpreter with the packages.
    #[must_use]
    pub fn python(&self) -> &Path {
        &self.python
    }

    /// The command of the flood kernel, without the connection file.
    #[must_use]
    pub fn flood_kernel(&self) -> Command {
        self.with_library("flood_kernel.py")
    }

    /// The command of the minimal subscriber, without the connection file.
    #[must_use]
    pub fn drain(&self) -> Command {
        self.with_library("drain.py")
    }

    fn with_library(&self, name: &str) -> Command {
        let mut command = self.command(&self.python);
        command
            .arg(program(name))
            .env("FLOOD_LIBRARY", self.folder().join(LIBRARY));
        command
    }

    /// The folder for files of the benchmarks.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A command with an environment in which Jupyter finds these kernelspecs and writes to this folder.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("JUPYTER_PATH", self.jupyter_path())
            .env("JUPYTER_RUNTIME_DIR", self.folder.path().join("runtime"))
            .env("JUPYTER_DATA_DIR", self.folder.path().join("data"))
            .env("JUPYTER_CONFIG_DIR", self.folder.path().join("config"))
            .env("IPYTHONDIR", self.folder.path().join("ipython"))
            .current_dir(self.folder.path());
        command
    }
}

fn program(name: &str) -> PathBuf {
    root().join("benches/kernel").join(name)
}

fn run_command(command: &mut Command) -> Result<()> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}").into()),
        Err(error) => Err(format!("{command:?}: {error}").into()),
    }
}

fn output_of(program: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
