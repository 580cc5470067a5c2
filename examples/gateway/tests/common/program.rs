//! Runs the program.
#![allow(dead_code, reason = "not every test uses all of it")]

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// The program with an empty environment, except for a home and kernelspecs in `data_dir`.
pub(crate) fn gateway(data_dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kernelmux-gateway"));
    command.env_clear().env("HOME", data_dir).env("JUPYTER_PATH", data_dir);
    command
        .args(["--data-dir", data_dir.join("data").to_str().unwrap()])
        .args(args);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

pub(crate) fn run(data_dir: &Path, args: &[&str]) -> Output {
    gateway(data_dir, args).output().unwrap()
}

/// Checks the exit status of a failed start, and returns its one line on standard error.
#[track_caller]
pub(crate) fn error_line(output: &Output, status: i32) -> String {
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(status), "{error}");
    assert!(output.stdout.is_empty());
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

/// A running gateway with the first two lines of its output, killed on drop.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) lines: Vec<String>,
}

impl Running {
    pub(crate) fn start(data_dir: &Path, args: &[&str]) -> Self {
        Self::of(gateway(data_dir, args))
    }

    pub(crate) fn of(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let lines = (0..2).map(|_| {
            let mut line = String::new();
            out.read_line(&mut line).unwrap();
            line.trim_end().to_owned()
        });
        let lines = lines.collect();
        Self { child, lines }
    }

    /// Ends the gateway with SIGINT and returns its log.
    pub(crate) fn interrupt(&mut self) -> String {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        assert!(self.child.wait().unwrap().success());
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        log
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
