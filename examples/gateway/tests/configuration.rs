//! The program's settings: their sources, their errors, and their reload.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "common/program.rs"]
mod program;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use program::{Running, error_line, gateway, run};

/// How long a test waits for something that must happen.
const LONG: Duration = Duration::from_secs(60);

/// A file that only this user can read.
fn private(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn printed(mut command: std::process::Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The line of `config show` for a key, without repeated spaces.
#[track_caller]
fn line_of(shown: &str, key: &str) -> String {
    let is_of_key = |line: &&str| {
        let line = line.strip_prefix("# ").unwrap_or(line);
        line.strip_prefix(key).is_some_and(|rest| rest.starts_with(' '))
    };
    let line = shown
        .lines()
        .find(is_of_key)
        .unwrap_or_else(|| panic!("{key} in {shown}"));
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn flags_override_variables_which_override_the_file_and_enterprise_gateway() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("gateway.toml");
    private(
        &file,
        "port = 1001\ncull-interval = 10\ndefault-kernel = \"file\"\nno-list = true\ntoken = \"s3cret\"\n\
         allow-origin = [\"https://a\", \"https://b:1\"]\nlog = \"debug\"\n\n\
         [groups.\"the students\"]\nmax-kernels = 20\nkernelspecs = [\"python3\"]\ncull-busy = true\n",
    );
    let file = file.to_str().unwrap();
    let show = |args: &[&str]| {
        let mut command = gateway(dir.path(), args);
        command.args(["--config", file, "--from-enterprise-gateway", "config", "show"]);
        command
            .env("KERNELMUX_PORT", "1002")
            .env("KERNELMUX_CULL_INTERVAL", "11")
            .env("KERNELMUX_NO_SHARES", "yes")
            .env("EG_PORT", "1000")
            .env("EG_DEFAULT_KERNEL_NAME", "gateway")
            .env("EG_MAX_KERNELS", "5")
            .env("KG_MAX_KERNELS", "4")
            .env("KG_MAX_AGE", "3");
        printed(command)
    };
    let shown = show(&["--port", "1003"]);
    for (key, expected) in [
        ("port", "port = 1003 # command line".to_owned()),
        (
            "cull-interval",
            "cull-interval = 11 # KERNELMUX_CULL_INTERVAL".to_owned(),
        ),
        ("no-shares", "no-shares = true # KERNELMUX_NO_SHARES".to_owned()),
        ("default-kernel", format!("default-kernel = \"file\" # {file}")),
        ("no-list", format!("no-list = true # {file}")),
        (
            "allow-origin",
            format!("allow-origin = [\"https://a\", \"https://b:1\"] # {file}"),
        ),
        ("max-kernels", "max-kernels = 5 # EG_MAX_KERNELS".to_owned()),
        ("cors-max-age", "cors-max-age = 3 # KG_MAX_AGE".to_owned()),
        ("ip", "ip = \"127.0.0.1\" # default".to_owned()),
        ("token-file", "# token-file is not set".to_owned()),
        ("token", format!("# token is not shown # {file}")),
    ] {
        assert_eq!(line_of(&shown, key), expected);
    }
    assert!(!shown.contains("s3cret"), "{shown}");
    let groups = "[groups.\"the students\"]\nmax-kernels = 20\nkernelspecs = [\"python3\"]\ncull-busy = true\n";
    assert!(shown.ends_with(groups), "{shown}");
    assert_eq!(
        line_of(&show(&["--no-list=false"]), "no-list"),
        "no-list = false # command line"
    );

    // The output is a configuration file with the same settings.
    let copy = dir.path().join("copy.toml");
    fs::write(&copy, &shown).unwrap();
    let mut again = gateway(dir.path(), &[]);
    again.args(["--config", copy.to_str().unwrap(), "config", "show"]);
    let again = printed(again);
    let values = |shown: &str| {
        let lines = shown.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| line.split("  # ").next().unwrap().trim_end().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(values(&again), values(&shown));
}

#[test]
fn a_wrong_file_is_one_line_that_says_where() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("gateway.toml");
    for (text, expected) in [
        ("prot = 1", "no setting \"prot\"; the nearest name is \"port\""),
        ("cull_busy = true", "the nearest name is \"cull-busy\""),
        ("config = 'x'", "no setting \"config\""),
        ("zzzz = 1", "\"zzzz\"; there are ip, port"),
        ("port = 'x'", "'--port <PORT>'"),
        ("port = 65536", "65536"),
        ("port = [1]", "port: it must be one value, not a list"),
        ("port = 1.5", "not a number with a point"),
        ("no-list = 1", "no-list: it must be true or false, not a whole number"),
        ("allow-origin = ['a,b']", "contains a comma"),
        ("allow-origin = [1.5]", "allow-origin: the list must contain texts"),
        ("on-terminate = 'burn'", "detach, stop"),
        ("port = 1\nport = 2", "line 2"),
        ("ip = \"127.0.0.1\"\nport = ", "line 2"),
        ("token = 'hidden'", "chmod 600"),
        ("token-file = '/nonexistent/token'", "/nonexistent/token"),
        ("agent-image = 'x'", "--agent-image needs --kubernetes-namespace"),
        ("log-quota = 1\nlog-nats = 'x'", "exclude each other"),
        ("groups = 1", "[groups.students]"),
        ("groups.x = 1", "groups.x must be a table"),
        (
            "[groups.x]\nmax-kernel = 1",
            "groups.x: there is no rule \"max-kernel\"; the nearest name is \"max-kernels\"",
        ),
        ("[groups.x]\nmax-kernels = 0", "groups.x: "),
        ("[groups.x]\nkernelspecs = 'python3'", "groups.x: "),
        ("group-roles = ['x=root']", "is not a role"),
    ] {
        private(&file, text);
        if text.starts_with("token =") {
            fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        }
        for command in [&[][..], &["config", "check"]] {
            let mut args = vec!["--config", file.to_str().unwrap()];
            args.extend(command);
            let line = error_line(&run(dir.path(), &args), 2);
            assert!(line.contains(expected), "{text}: {line}");
            assert!(!line.contains("hidden"), "{line}");
        }
    }
    let line = error_line(&run(dir.path(), &["--config", "/nonexistent.toml"]), 2);
    assert!(
        line.contains("--config /nonexistent.toml: there is no such file"),
        "{line}"
    );
    fs::write(&file, "x".repeat(2 << 20)).unwrap();
    let line = error_line(&run(dir.path(), &["--config", file.to_str().unwrap()]), 2);
    assert!(line.contains("1048576 bytes"), "{line}");
    fs::write(&file, b"\xff").unwrap();
    assert!(error_line(&run(dir.path(), &["--config", file.to_str().unwrap()]), 2).contains("cannot be read"));
}

#[test]
fn files_of_enterprise_gateway_are_used_and_what_has_no_counterpart_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let python = dir.path().join("jupyter_enterprise_gateway_config.py");
    private(
        &python,
        "import os\nc.EnterpriseGatewayApp.port = 1234\nc.EnterpriseGatewayApp.list_kernels = False\n\
         c.EnterpriseGatewayApp.log_level = 10\nc.EnterpriseGatewayApp.client_envs = {'A', 'B'}\n\
         c.MappingKernelManager.cull_idle_timeout = 60\nc.EnterpriseGatewayApp.remote_hosts = ['h']\n\
         c.EnterpriseGatewayApp.port_range = '0..0'\nc.EnterpriseGatewayApp.nothing = 1\n\
         c.EnterpriseGatewayApp.max_kernels_per_user = -1\nc.EnterpriseGatewayApp.auth_token = 't0ken'\n",
    );
    let json = dir.path().join("config.json");
    fs::write(
        &json,
        r#"{"EnterpriseGatewayApp": {"port": 1234, "list_kernels": false, "log_level": "DEBUG",
            "client_envs": ["A", "B"], "remote_hosts": ["h"], "port_range": "0..0", "nothing": 1,
            "max_kernels_per_user": -1, "auth_token": "t0ken"},
            "MappingKernelManager": {"cull_idle_timeout": 60}}"#,
    )
    .unwrap();
    for file in [&python, &json] {
        let flag = format!("--from-enterprise-gateway={}", file.display());
        let command = |subcommand| {
            let mut command = gateway(dir.path(), &[&flag, "config", subcommand]);
            command
                .env("EG_PORT", "1")
                .env("EG_NAMESPACE", "kernels")
                .env("EG_KERNEL_IMAGE", "image");
            command
                .env("EG_MIRROR_WORKING_DIRS", "True")
                .env("EG_YARN_ENDPOINT", "x")
                .env("EG_OTHER", "x");
            printed(command)
        };
        let shown = command("show");
        for (key, expected) in [
            ("port", "port = 1234 # EnterpriseGatewayApp.port"),
            ("no-list", "no-list = true # EnterpriseGatewayApp.list_kernels"),
            ("log", "log = \"debug\" # EnterpriseGatewayApp.log_level"),
            (
                "client-envs",
                "client-envs = [\"A\", \"B\"] # EnterpriseGatewayApp.client_envs",
            ),
            (
                "cull-idle-timeout",
                "cull-idle-timeout = 60 # MappingKernelManager.cull_idle_timeout",
            ),
            ("port-range", "# port-range is not set"),
            ("max-kernels-per-user", "# max-kernels-per-user is not set"),
            ("token", "# token is not shown # EnterpriseGatewayApp.auth_token"),
            (
                "kubernetes-namespace",
                "kubernetes-namespace = \"kernels\" # EG_NAMESPACE",
            ),
            ("kubernetes-image", "kubernetes-image = \"image\" # EG_KERNEL_IMAGE"),
        ] {
            assert_eq!(line_of(&shown, key), expected, "{}", file.display());
        }
        assert!(line_of(&shown, "kubernetes-user-inputs").contains("\"working-dir\"] # EG_MIRROR_WORKING_DIRS"));
        let checked = command("check");
        for warning in [
            "EG_YARN_ENDPOINT has no effect: ",
            "EG_OTHER is no variable of Enterprise Gateway",
            "EnterpriseGatewayApp.remote_hosts has no effect: ",
            "EnterpriseGatewayApp.nothing is no trait of Enterprise Gateway",
        ] {
            assert!(checked.contains(&format!("warning: {warning}")), "{checked}");
        }
        assert_eq!(checked.contains("warning: line 1 of "), *file == python, "{checked}");
        assert_eq!(checked.contains("chmod 600"), *file == json, "{checked}");
        assert!(
            !checked.contains("t0ken") && checked.ends_with("the settings are valid\n"),
            "{checked}"
        );
    }
    fs::write(&json, "[]").unwrap();
    let flag = format!("--from-enterprise-gateway={}", json.display());
    assert!(error_line(&run(dir.path(), &[&flag]), 2).contains("not a JSON object"));
}

/// A running gateway whose settings change.
struct Reloading {
    running: Running,
    log: Receiver<String>,
    address: String,
}

impl Reloading {
    fn start(dir: &Path, args: &[&str]) -> Self {
        let mut running = Running::of(gateway(dir, args));
        let address = running.lines[1].split("http://").nth(1).unwrap();
        let address = address.split(['/', ' ']).next().unwrap().to_owned();
        let lines = BufReader::new(running.child.stderr.take().unwrap()).lines();
        let (sender, log) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                // The test may be over.
                let _ = sender.send(line);
            }
        });
        Self { running, log, address }
    }

    /// The status of a GET request.
    fn get(&self, path: &str, token: &str) -> u16 {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let head =
            format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: token {token}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap().parse().unwrap()
    }

    #[track_caller]
    fn until(&self, path: &str, token: &str, status: u16) {
        let end = Instant::now() + LONG;
        while self.get(path, token) != status {
            assert!(
                Instant::now() < end,
                "{path} is never answered with {status}: {:?}",
                self.log.try_iter().collect::<Vec<_>>()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for a line of the log.
    #[track_caller]
    fn logs(&self, text: &str) -> String {
        let end = Instant::now() + LONG;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = self
                .log
                .recv_timeout(left)
                .unwrap_or_else(|_| panic!("never logged: {text}"));
            if line.contains(text) {
                return line;
            }
        }
    }
}

fn write_over(path: &Path, text: &str) {
    let new = path.with_extension("new");
    private(&new, text);
    fs::rename(new, path).unwrap();
}

fn paths(dir: &Path) -> (PathBuf, PathBuf) {
    (dir.join("gateway.toml"), dir.join("token"))
}

#[test]
fn changes_of_the_files_take_effect_and_wrong_files_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (file, token) = paths(dir.path());
    private(&token, "first\n");
    let with = |rest: &str| format!("port = 0\ntoken-file = {token:?}\n{rest}");
    private(&file, &with(""));
    let gateway = Reloading::start(dir.path(), &["--config", file.to_str().unwrap()]);
    assert_eq!(gateway.get("/api/kernels", "first"), 200);

    write_over(&file, &with("no-list = true\nlog = 'debug'\n"));
    gateway.until("/api/kernels", "first", 403);
    assert!(gateway.logs("the settings were reloaded").contains("log, no-list"));
    // The level of the log changed too: requests that succeed are logged with `debug`.
    assert_eq!(gateway.get("/api", "first"), 200);
    gateway.logs("path=\"/api\" status=200");

    write_over(&file, "no-lst = true\n");
    assert!(gateway.logs("the settings stay as they were").contains("no-list"));
    assert_eq!(gateway.get("/api/kernels", "first"), 403);
    fs::remove_file(&file).unwrap();
    gateway.logs("there is no such file");
    assert_eq!(gateway.get("/api/kernels", "first"), 403);

    // Written in place, not replaced.
    private(&file, &with("no-list = false\nlog-max-mib = 5\nagent = 'off2'\n"));
    gateway.until("/api/kernels", "first", 200);
    assert!(
        gateway
            .logs("after a restart of the gateway")
            .contains("agent, log-max-mib")
    );

    private(&token, "second\n");
    gateway.until("/api", "second", 200);
    assert_eq!(gateway.get("/api", "first"), 401);
    private(&token, "");
    gateway.logs("wrong token");
    assert_eq!(gateway.get("/api", "second"), 200);
}

#[test]
fn sighup_reads_the_settings_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = Reloading::start(dir.path(), &["--port", "0", "--token", "x"]);
    let pid = rustix::process::Pid::from_child(&gateway.running.child);
    for _ in 0..3 {
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
        gateway.logs("SIGHUP");
        assert_eq!(gateway.get("/api", "x"), 200);
    }
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert!(gateway.running.child.wait().unwrap().success());
}

#[test]
fn a_token_from_a_pipe_survives_a_reload() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("token");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    let (file, writing) = (dir.path().join("gateway.toml"), pipe.clone());
    private(&file, "port = 0\n");
    std::thread::spawn(move || fs::write(writing, "piped").unwrap());
    let args = [
        "--config",
        file.to_str().unwrap(),
        "--token-file",
        pipe.to_str().unwrap(),
    ];
    let gateway = Reloading::start(dir.path(), &args);
    write_over(&file, "port = 0\nno-list = true\n");
    gateway.until("/api/kernels", "piped", 403);
}

/// Serves an issuer of tokens whose clock is wrong, and returns its address.
fn issuer_with_a_wrong_clock() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let issuer = format!("http://{}", listener.local_addr().unwrap());
    let body = format!(r#"{{"issuer": "{issuer}", "jwks_uri": "{issuer}/keys", "keys": []}}"#);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            let length = body.len();
            let head = format!(
                "HTTP/1.1 200 OK\r\nDate: Tue, 15 Nov 1994 08:12:31 GMT\r\nContent-Length: {length}\r\n\
                 Connection: close\r\n\r\n"
            );
            stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        }
    });
    issuer
}

#[test]
fn the_doctor_asks_the_issuer_and_looks_for_users() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = issuer_with_a_wrong_clock();
    for (issuer, expected) in [
        (
            &*issuer,
            [
                "ok       issuer: its keys were fetched",
                "warning  clock: the clock differs from that of the issuer by",
            ],
        ),
        (
            "http://127.0.0.1:1",
            [
                "problem  issuer: the issuer's keys cannot be fetched",
                "warning  users: there are no users yet",
            ],
        ),
    ] {
        let args = [
            "--oidc-issuer",
            issuer,
            "--oidc-audience",
            "x",
            "--users-file",
            "users.json",
        ];
        let output = gateway(dir.path(), &args).arg("doctor").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        for line in expected {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}

#[test]
fn the_doctor_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let report = |args: &[&str]| {
        let output = gateway(dir.path(), args).arg("doctor").output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (status, text) = report(&[]);
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("problem  kernelspecs: there are none"), "{text}");
    assert!(
        text.contains("ok       data directory: ") && text.contains("does not exist yet"),
        "{text}"
    );

    let kernels = dir.path().join("kernels");
    for (name, program) in [("shell", "/bin/sh"), ("gone", "/nonexistent/kernel")] {
        fs::create_dir_all(kernels.join(name)).unwrap();
        let spec = format!(r#"{{"argv": ["{program}"], "display_name": "x", "language": "x"}}"#);
        fs::write(kernels.join(name).join("kernel.json"), spec).unwrap();
    }
    fs::create_dir_all(kernels.join("broken")).unwrap();
    fs::write(kernels.join("broken/kernel.json"), "{").unwrap();
    let running = Running::start(dir.path(), &["--port", "0"]);
    let (status, text) = report(&[
        "--tls-cert",
        "/nonexistent/tls.crt",
        "--tls-key",
        "k",
        "--users-file",
        "/nonexistent/users.json",
    ]);
    assert_eq!(status, Some(1), "{text}");
    for line in [
        "ok       logs: not checked, because a gateway is using them",
        "ok       clock: it agrees",
        "ok       kernelspec shell: /bin/sh",
        "problem  kernelspec gone: its program /nonexistent/kernel does not exist",
        "problem  certificate: --tls-cert: /nonexistent/tls.crt",
        "problem  access: /nonexistent/users.json does not exist",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(
        text.lines()
            .any(|line| line.starts_with("problem  kernelspec: ") && line.contains("broken")),
        "{text}"
    );
    drop(running);
    fs::remove_dir_all(kernels.join("gone")).unwrap();
    fs::remove_dir_all(kernels.join("broken")).unwrap();
    let (status, text) = report(&[]);
    assert_eq!(status, Some(0), "{text}");
    assert!(
        text.contains("ok       logs: 0 logs with 0 MiB") && text.contains(" MiB of free space"),
        "{text}"
    );
    let (status, text) = report(&["--kubernetes-namespace", "x"]);
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("problem  cluster: "), "{text}");
}
