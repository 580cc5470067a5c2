//! Shared test setup: a provider with its own directory and test kernelspecs.

#![allow(dead_code, reason = "each test program uses only a part")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use jupyter_protocol::KernelId;
use jupyter_protocol::kernelspec::SearchPath;
use kernel_provider::conformance::LAST_WORDS;
use kernel_provider::{KernelHandle, KernelProvider as _, KernelRecord, LaunchError, LaunchRequest, Progress};
use provider_local::{LocalOptions, LocalProvider, TransportChoice};
use rustix::process::{Pid, Signal, kill_process};

/// Deadline of every wait. No wait should take nearly as long.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Returns a Python interpreter with ipykernel: `KERNELMUX_TEST_PYTHON`, or else `python3`.
///
/// Returns `None` if the interpreter has no ipykernel, so that the caller can skip the test. In continuous integration,
/// this panics instead.
pub(crate) fn python() -> Option<PathBuf> {
    let python = std::env::var_os("KERNELMUX_TEST_PYTHON").unwrap_or_else(|| "python3".into());
    let found = Command::new(&python)
        .args(["-c", "import ipykernel, sys; print(sys.executable)"])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim())));
    if found.is_none() {
        let missing = format!(
            "{} has no ipykernel; set KERNELMUX_TEST_PYTHON to an interpreter that has",
            python.display()
        );
        assert!(std::env::var_os("CI").is_none(), "{missing}");
        println!("skipped: {missing}");
    }
    found
}

/// Opens a provider. Retries while a dropped provider's last task still keeps the directory locked.
pub(crate) async fn open(config: LocalOptions) -> LocalProvider {
    let opened = tokio::time::timeout(LONG, async {
        loop {
            match LocalProvider::open(config.clone()).await {
                Err(error) if error.to_string().contains("another process uses it") => {
                    tokio::task::yield_now().await;
                }
                opened => return opened.unwrap(),
            }
        }
    });
    opened.await.unwrap()
}

/// A state directory and a kernelspec directory. Dropping it removes both.
pub(crate) struct Fixture {
    pub(crate) root: tempfile::TempDir,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self {
            root: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.root.path().join("state")
    }

    pub(crate) fn config(&self) -> LocalOptions {
        let mut config = LocalOptions::new(self.state());
        config.search = SearchPath::new([self.root.path().join("kernels")]);
        config
    }

    pub(crate) async fn open(&self) -> LocalProvider {
        open(self.config()).await
    }

    pub(crate) async fn open_with(&self, transport: TransportChoice) -> LocalProvider {
        let mut config = self.config();
        config.transport = transport;
        open(config).await
    }

    /// Installs a kernelspec.
    pub(crate) fn install(&self, name: &str, kernel_json: &serde_json::Value) {
        let dir = self.root.path().join("kernels").join(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("kernel.json"), kernel_json.to_string()).unwrap();
    }

    /// Installs ipykernel as `python3`.
    pub(crate) fn install_ipykernel(&self, python: &Path) {
        self.install(
            "python3",
            &serde_json::json!({
                "argv": [python, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                "display_name": "Python 3",
                "language": "python",
                // ipykernel declares this version, but does not support the handshake.
                "kernel_protocol_version": "5.5",
            }),
        );
    }

    /// Installs the kernelspecs of the conformance suite: `python3`, `dying`, `silent` and `missing`.
    pub(crate) fn install_for_conformance(&self, python: &Path) {
        self.install_ipykernel(python);
        self.install_script("dying", &format!("echo {LAST_WORDS} >&2; exit 3"));
        self.install_script("silent", &format!("echo {LAST_WORDS}; while :; do sleep 1000; done"));
        self.install(
            "missing",
            &serde_json::json!({"argv": ["/no/such/program"], "display_name": "", "language": ""}),
        );
    }

    /// Installs a shell script as a kernel; `$1` is the connection file.
    pub(crate) fn install_script(&self, name: &str, script: &str) {
        self.install(
            name,
            &serde_json::json!({
                "argv": ["sh", "-c", script, name, "{connection_file}"],
                "display_name": name,
                "language": "sh",
            }),
        );
    }

    /// Lists the existing kernel directories.
    pub(crate) fn kernel_dirs(&self) -> Vec<PathBuf> {
        let dirs = std::fs::read_dir(self.state().join("kernels")).unwrap();
        dirs.map(|entry| entry.unwrap().path()).collect()
    }

    /// Lists the existing folders of agents.
    pub(crate) fn agents(&self) -> Vec<PathBuf> {
        let dirs = std::fs::read_dir(self.state().join("agents")).unwrap();
        dirs.map(|entry| entry.unwrap().path()).collect()
    }

    /// Lists the processes whose command line contains this fixture's path.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let marker = self.root.path().as_os_str().as_encoded_bytes().to_owned();
        pids()
            .into_iter()
            .filter(|pid| {
                std::fs::read(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|line| line.windows(marker.len()).any(|window| window == marker))
            })
            .collect()
    }

    /// Waits until no process and no file of a kernel is left.
    pub(crate) async fn wait_until_clear(&self) {
        eventually("no leftovers", || {
            self.processes().is_empty()
                && self.kernel_dirs().is_empty()
                && std::fs::read_dir(self.state().join("s")).is_ok_and(|mut dir| dir.next().is_none())
        })
        .await;
    }
}

pub(crate) fn pids() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap();
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// Polls a condition that has no event.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + LONG;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "{what}: not within {LONG:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) async fn launch(provider: &LocalProvider, spec: &str) -> Result<Arc<dyn KernelHandle>, LaunchError> {
    let request = LaunchRequest::new(KernelId::random(), spec);
    provider.launch(request, Progress::ignored()).await
}

pub(crate) fn pid(kernel: &dyn KernelHandle) -> i32 {
    kernel.record().data["pid"].as_i64().unwrap().try_into().unwrap()
}

/// Kills a kernel's process directly, not through the provider.
pub(crate) fn kill(record: &KernelRecord) {
    let pid = Pid::from_raw(record.data["pid"].as_i64().unwrap().try_into().unwrap());
    kill_process(pid.unwrap(), Signal::KILL).unwrap();
}
