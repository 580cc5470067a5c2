//! A folder with kernelspecs, and helpers for clients.

use std::collections::VecDeque;
use std::future::Future;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use kernelmux::local::{LocalOptions, LocalProvider};
use kernelmux::log::{DiskStore, Entry, LogOptions, Logs};
use kernelmux::protocol::WireMessage;
use kernelmux::protocol::content::{Content, ExecuteRequest};
use kernelmux::protocol::kernelspec::SearchPath;
use kernelmux::protocol::message::Message;
use kernelmux::{Attachment, Client, Kernel, Manager, ManagerOptions};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(60);

/// Awaits a future, and fails the test at the deadline.
pub(crate) async fn within_deadline<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("the deadline passed")
}

/// A Python interpreter with ipykernel. Without one, returns `None` to skip the test, or fails it in CI.
pub(crate) fn python() -> Option<PathBuf> {
    let python = std::env::var_os("KERNELMUX_TEST_PYTHON").map_or_else(|| "python3".into(), PathBuf::from);
    let found = Command::new(&python)
        .args(["-c", "import ipykernel"])
        .output()
        .is_ok_and(|output| output.status.success());
    if found {
        return Some(python);
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "{} has no ipykernel",
        python.display()
    );
    println!(
        "skipped: {} has no ipykernel; set KERNELMUX_TEST_PYTHON",
        python.display()
    );
    None
}

/// A folder with kernelspecs, among them `python3`, and with the manager's state and logs.
pub(crate) struct TestFolder {
    pub(crate) folder: tempfile::TempDir,
}

impl TestFolder {
    pub(crate) fn new() -> Option<Self> {
        let python = python()?;
        // The test harness shows the log of a failed test.
        let _ = tracing_subscriber::fmt().with_test_writer().try_init();
        let test_folder = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        test_folder.spec(
            "python3",
            &json!([python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]),
            &json!({}),
        );
        Some(test_folder)
    }

    /// Writes a kernelspec.
    pub(crate) fn spec(&self, name: &str, argv: &Value, metadata: &Value) {
        let folder = self.folder.path().join("kernels").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let spec = json!({"argv": argv, "display_name": name, "language": "python", "metadata": metadata});
        std::fs::write(folder.join("kernel.json"), spec.to_string()).unwrap();
    }

    /// Opens the store, after waiting until the tasks of a dropped manager have released it.
    async fn store(&self) -> DiskStore {
        loop {
            match DiskStore::open(&self.folder.path().join("logs")) {
                Ok(store) => return store,
                Err(error) if error.to_string().contains("has it open") => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Opens a manager on the folder.
    pub(crate) async fn manager(&self, options: ManagerOptions) -> Manager {
        let mut config = LocalOptions::new(self.folder.path().join("state"));
        config.search = SearchPath::new([self.folder.path().join("kernels")]);
        let provider = within_deadline(async {
            loop {
                match LocalProvider::open(config.clone()).await {
                    Ok(provider) => return provider,
                    // A task of a manager that was dropped may still use it.
                    Err(error) if error.to_string().contains("another process uses it") => {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        });
        let provider = provider.await;
        let store = within_deadline(self.store()).await;
        let logs = Logs::new(Arc::new(store), LogOptions::default()).unwrap();
        Manager::new(vec![Arc::new(provider)], logs, options)
    }
}

/// Runs code and returns what it wrote to its standard output.
pub(crate) async fn run(kernel: &Arc<Kernel>, code: &str) -> String {
    let mut execution = kernel.execute(ExecuteRequest::new(code)).await.unwrap();
    let mut text = String::new();
    while let Some(message) = within_deadline(execution.next()).await {
        match message.expect("the execution failed").content {
            Content::Stream(stream) => text.push_str(&stream.text),
            Content::Error(error) => panic!("{}: {}", error.ename, error.evalue),
            _ => {}
        }
    }
    text
}

/// An attached client, with the entries it has received and not yet examined.
pub(crate) struct Attached {
    pub(crate) attachment: Attachment,
    unread: VecDeque<Entry>,
}

impl Attached {
    pub(crate) fn to(kernel: &Arc<Kernel>, session: &str) -> Self {
        Self {
            attachment: kernel.attach(session),
            unread: VecDeque::new(),
        }
    }

    pub(crate) fn client(&self) -> Client {
        self.attachment.client()
    }

    /// Reads the entries for this client up to the first that fits, and returns them.
    pub(crate) async fn until(&mut self, mut fits: impl FnMut(&Entry) -> bool) -> Vec<Entry> {
        let client = self.client();
        let mut seen = Vec::new();
        loop {
            while let Some(entry) = self.unread.pop_front() {
                seen.push(entry.clone());
                if fits(&entry) {
                    return seen;
                }
            }
            let block = within_deadline(self.attachment.next())
                .await
                .unwrap()
                .expect("the log has ended");
            self.unread
                .extend(block.entries().filter(|entry| client.delivers(entry)));
        }
    }
}

pub(crate) fn content(entry: &Entry) -> Value {
    serde_json::from_slice(entry.message().content()).unwrap()
}

pub(crate) fn msg_type(entry: &Entry) -> String {
    entry.message().header_ref().unwrap().msg_type.into_owned()
}

/// An execute request and its `msg_id`.
pub(crate) fn execute(code: &str, session: &str) -> (String, WireMessage) {
    let message = Message::new(ExecuteRequest::new(code), session);
    (message.header.msg_id.clone(), message.to_wire())
}

pub(crate) fn kill(pid: &str, signal: &str) {
    assert!(Command::new("kill").args([signal, pid]).status().unwrap().success());
}
