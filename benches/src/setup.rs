//! Prepares benchmarks: Python with a kernel and a peer, and kernelspecs. `make bench` makes the release builds.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;

use crate::Result;

/// What is installed, at the versions that the end-to-end tests have too.
const PACKAGES: [&str; 2] = ["ipykernel==7.4.0", "jupyter-kernel-gateway==3.0.1"];

/// The name of the kernelspec of a kernel that floods.
pub const FLOOD: &str = "flood";
/// The same over Unix sockets.
pub const FLOOD_IPC: &str = "flood-ipc";
/// The part of the kernel that floods that is in C.
const LIBRARY: &str = "flood.so";
/// The name of ipykernel's kernelspec.
pub const PYTHON: &str = "python3";

/// The workspace's folder.
#[must_use]
pub fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// The size of a large benchmark, divided by `KERNELMUX_BENCH_DIVIDE` where that is set: to try it, not to measure.
#[must_use]
pub fn scaled(size: usize) -> usize {
    (size / divisor()).max(1)
}

/// Whether sizes are divided, so that figures say nothing.
#[must_use]
pub fn is_scaled() -> bool {
    divisor() > 1
}

fn divisor() -> usize {
    let divide = std::env::var("KERNELMUX_BENCH_DIVIDE").ok();
    divide.and_then(|divide| divide.parse().ok()).unwrap_or(1).max(1)
}

/// A program in the same folder as this one.
///
/// # Errors
/// Where this one's place is not known.
pub fn binary(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    Ok(this.parent().ok_or("a program without a folder")?.join(name))
}

/// What was made ready; its folder goes when it is dropped.
pub struct Setup {
    folder: TempDir,
    python: PathBuf,
    /// The packages' versions, for the results.
    pub versions: String,
}

impl Setup {
    /// Installs and writes what is needed.
    ///
    /// # Errors
    /// Where Python, a package or a C compiler is missing.
    pub fn make() -> Result<Self> {
        let venv = root().join("target/bench-venv");
        let python = venv.join("bin/python");
        let installed = "from importlib.metadata import version as v; \
                         print('ipykernel', v('ipykernel') + ',', 'jupyter_kernel_gateway', \
                         v('jupyter_kernel_gateway') + ',', 'jupyter_server', v('jupyter_server') + ',', 'pyzmq', \
                         v('pyzmq'))";
        if said(&python, &["-c", installed]).is_err() {
            let system = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
            done(Command::new(system).args(["-m", "venv"]).arg(&venv))?;
            let mut install = Command::new(&python);
            install.args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--constraint",
            ]);
            done(install.arg(root().join("tests/e2e/constraints.txt")).args(PACKAGES))?;
        }
        let versions = format!(
            "Python {}",
            said(
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
        done(compile.arg(program("flood.c")))?;
        let setup = Self {
            folder,
            python,
            versions,
        };
        let python = setup.python.display().to_string();
        setup.write_spec(
            FLOOD,
            json!({
                "argv": [python, program("flood_kernel.py"), "{connection_file}"], "display_name": "Flood", "language": "flood",
                "interrupt_mode": "message", "env": {"FLOOD_LIBRARY": library},
            }),
        )?;
        setup.write_spec(
            FLOOD_IPC,
            json!({
                "argv": [python, program("flood_kernel.py"), "{connection_file}"], "display_name": "Flood", "language": "flood",
                "interrupt_mode": "message", "env": {"FLOOD_LIBRARY": library},
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

    fn write_spec(&self, name: &str, spec: serde_json::Value) -> Result<()> {
        let folder = self.jupyter_path().join("kernels").join(name);
        std::fs::create_dir_all(&folder)?;
        Ok(std::fs::write(folder.join("kernel.json"), spec.to_string())?)
    }

    fn jupyter_path(&self) -> PathBuf {
        self.folder.path().join("share/jupyter")
    }

    /// The interpreter that has the packages.
    #[must_use]
    pub fn python(&self) -> &Path {
        &self.python
    }

    /// The kernel that floods; wants its connection file.
    #[must_use]
    pub fn flood_kernel(&self) -> Command {
        self.with_library("flood_kernel.py")
    }

    /// The barest subscriber; wants a connection file.
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

    /// A folder for what a benchmark writes.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The program with an environment in which only these kernelspecs are found, and all is written to the folder.
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

fn done(command: &mut Command) -> Result<()> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}").into()),
        Err(error) => Err(format!("{command:?}: {error}").into()),
    }
}

fn said(program: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
