//! The program: its flags, its output and its exit status. `tests/e2e` tests signals and kernels that outlive it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "common/program.rs"]
mod program;

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use program::{Running, error_line, gateway, run};

#[test]
fn invalid_flags_print_one_line_and_exit_with_status_2() {
    let dir = tempfile::tempdir().unwrap();
    for (args, expected) in [
        (&["--port", "x"][..], "--port"),
        (&["--prot", "1"], "--prot"),
        (&["--no-auth", "--ip", "0.0.0.0"], "--insecure"),
        (&["--on-terminate", "burn"], "detach"),
        (&["--log", "a=b=c"], "--log"),
    ] {
        let line = error_line(&run(dir.path(), args), 2);
        assert!(
            line.starts_with("kernelmux-gateway: ") && line.contains(expected),
            "{line}"
        );
    }
    let wrong = gateway(dir.path(), &[]).env("KERNELMUX_PORT", "x").output().unwrap();
    assert!(error_line(&wrong, 2).contains("--port"));
    assert!(!dir.path().join("data").exists());
}

#[test]
fn an_occupied_port_prints_one_line_and_exits_with_status_1() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let line = error_line(&run(dir.path(), &["--port", &port]), 1);
    assert!(line.contains(&format!("127.0.0.1:{port}")), "{line}");
}

#[test]
fn a_wrong_file_of_users_is_refused_before_kernels_are_attached() {
    let dir = tempfile::tempdir().unwrap();
    let users = dir.path().join("users.json");
    std::fs::write(&users, "{").unwrap();
    let line = error_line(
        &run(dir.path(), &["--port", "0", "--users-file", users.to_str().unwrap()]),
        1,
    );
    assert!(line.contains("users.json"), "{line}");
    // The logs are opened before kernels are attached.
    assert!(!dir.path().join("data/logs").exists());
}

#[test]
fn two_gateways_cannot_share_a_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = Running::start(dir.path(), &["--port", "0"]);
    let line = error_line(&run(dir.path(), &["--port", "0"]), 1);
    assert!(
        line.contains("data directory") && line.contains(&first.child.id().to_string()),
        "{line}"
    );
    first.interrupt();
    Running::start(dir.path(), &["--port", "0"]).interrupt();
}

#[test]
fn the_first_lines_give_the_url_and_the_command_for_jupyterlab() {
    let dir = tempfile::tempdir().unwrap();
    let mut running = Running::start(dir.path(), &["--port", "0", "--base-url", "/b", "--log", "trace"]);
    let url = running.lines[0]
        .strip_prefix("kernelmux-gateway is at ")
        .unwrap()
        .to_owned();
    let (base, token) = url.split_once("?token=").unwrap();
    assert!(base.starts_with("http://127.0.0.1:") && base.ends_with("/b/"), "{base}");
    assert_eq!(token.len(), 32);
    let lab = format!("JUPYTER_GATEWAY_URL={base} JUPYTER_GATEWAY_AUTH_TOKEN={token} jupyter lab");
    assert_eq!(running.lines[1], lab);

    let address = base.strip_prefix("http://").unwrap().strip_suffix("/b/").unwrap();
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let request = format!("GET /b/api?token={token} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let log = running.interrupt();
    assert!(log.contains("path=\"/b/api\""), "{log}");
    assert!(!log.contains(token), "the token is in the log");
}

#[test]
fn without_access_control_no_token_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path(), &["--port", "0", "--no-auth"]);
    assert!(running.lines[0].ends_with('/'), "{:?}", running.lines);
    assert!(!running.lines[1].contains("TOKEN"), "{:?}", running.lines);
}

/// The gateway is not dumpable, so `/proc/PID` belongs to root, and other processes of its user cannot read its memory
/// and environment.
#[cfg(target_os = "linux")]
#[test]
fn kernels_of_the_same_user_cannot_read_the_token() {
    use std::os::unix::fs::{MetadataExt, chown};
    use std::os::unix::process::CommandExt;

    let dir = tempfile::tempdir().unwrap();
    // A copy that the user can read. Otherwise Linux would make the process not dumpable by itself.
    let program = dir.path().join("kernelmux-gateway");
    std::fs::copy(env!("CARGO_BIN_EXE_kernelmux-gateway"), &program).unwrap();
    let mut command = Command::new(&program);
    command
        .env_clear()
        .env("HOME", dir.path())
        .env("KERNELMUX_TOKEN", "s3cret");
    command
        .args(["--port", "0", "--data-dir"])
        .arg(dir.path().join("data"))
        .current_dir(dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut user = rustix::process::getuid().as_raw();
    if user == 0 {
        user = 65_534;
        chown(dir.path(), Some(user), None).unwrap();
        command.uid(user);
    }
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let process = format!("/proc/{}", child.id());
    let status = std::fs::read_to_string(format!("{process}/status")).unwrap();
    let owner = std::fs::metadata(format!("{process}/environ")).unwrap().uid();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(line.starts_with("kernelmux-gateway is at"), "{line:?}");
    assert!(status.contains(&format!("Uid:\t{user}\t")), "{status}");
    assert_eq!(owner, 0);
}

#[test]
fn it_keeps_serving_when_its_log_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut running = Running::start(dir.path(), &["--port", "0", "--no-auth", "--log", "trace"]);
    drop(running.child.stderr.take());
    let address = running.lines[0].split("http://").nth(1).unwrap().trim_end_matches('/');
    for _ in 0..2 {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let request = format!("GET /api HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&running.child),
        rustix::process::Signal::INT,
    )
    .unwrap();
    assert!(running.child.wait().unwrap().success());
}
