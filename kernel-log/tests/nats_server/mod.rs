//! A NATS server for one test.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kernel_log::conformance::Subject;
use kernel_log::{LogStore, NatsOptions, NatsStore};

pub(crate) struct Server {
    program: &'static str,
    port: u16,
    folder: tempfile::TempDir,
    process: Mutex<Child>,
}

impl Server {
    /// Starts a server. Returns `None` and prints a note if `nats-server` is not installed.
    ///
    /// # Panics
    ///
    /// If `nats-server` does not start, or is not installed on CI.
    pub(crate) fn start() -> Option<Self> {
        // Debian installs it in `/usr/sbin`, which is not in every `PATH`.
        let found = ["nats-server", "/usr/sbin/nats-server"].into_iter().find(|program| {
            let version = Command::new(program).arg("--version").stdout(Stdio::null()).status();
            version.is_ok_and(|status| status.success())
        });
        let Some(program) = found else {
            assert!(std::env::var_os("CI").is_none(), "nats-server is not installed");
            eprintln!("skipped: nats-server is not installed (install the package nats-server)");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        // Tries another port if another process takes this one first.
        for _ in 0..20 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut process = spawn(program, port, &folder);
            if answers(port, &mut process) {
                let process = Mutex::new(process);
                return Some(Self {
                    program,
                    port,
                    folder,
                    process,
                });
            }
        }
        panic!("nats-server does not start");
    }

    pub(crate) fn connect(&self) -> Arc<NatsStore> {
        let options = NatsOptions::new(format!("nats://127.0.0.1:{}", self.port));
        Arc::new(NatsStore::connect(options).unwrap())
    }

    /// Kills the server with SIGKILL.
    pub(crate) fn kill(&self) {
        let mut process = self.process.lock().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Stops the server's process, which keeps its connections.
    pub(crate) fn pause(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let id = self.process.lock().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    pub(crate) fn restart(&self) {
        let mut process = self.process.lock().unwrap();
        *process = spawn(self.program, self.port, &self.folder);
        assert!(answers(self.port, &mut process), "the server does not restart");
    }

    /// Copies the data of a stopped server.
    pub(crate) fn backup(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        copy_all(self.folder.path(), copy.path());
        copy
    }

    /// Restores the data of a stopped server from a copy, as if later writes had not reached the disk.
    pub(crate) fn restore(&self, copy: &tempfile::TempDir) {
        for entry in std::fs::read_dir(self.folder.path()).unwrap() {
            std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
        }
        copy_all(copy.path(), self.folder.path());
    }
}

fn copy_all(from: &Path, to: &Path) {
    let copied = Command::new("cp")
        .arg("-a")
        .arg(from.join("."))
        .arg(to)
        .status()
        .unwrap();
    assert!(copied.success());
}

fn spawn(program: &str, port: u16, folder: &tempfile::TempDir) -> Child {
    Command::new(program)
        .args(["-js", "-a", "127.0.0.1", "-p", &port.to_string(), "-sd"])
        .arg(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn answers(port: u16, process: &mut Child) -> bool {
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end && process.try_wait().unwrap().is_none() {
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = process.kill();
    let _ = process.wait();
    false
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Subject for Server {
    fn open(&self) -> Arc<dyn LogStore> {
        self.connect()
    }
}
