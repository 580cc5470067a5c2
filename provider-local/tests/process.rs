//! Kernels as processes: exits, cleanup and failures.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/standin.rs"]
mod standin;

use std::time::{Duration, Instant};

use common::{Fixture, LONG, eventually, launch, open, pid};
use jupyter_protocol::KernelId;
use kernel_provider::{ExitCause, KernelProvider as _, LaunchError, LaunchRequest, Phase, Progress, Selector};
use provider_local::{InheritEnv, LocalOptions, LocalProvider, TransportChoice};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

#[tokio::test]
#[ignore = "run by other tests as a kernel"]
async fn serve_as_kernel() {
    standin::serve_if_requested().await;
}

fn fixture() -> Fixture {
    let fixture = Fixture::new();
    fixture.install("stand-in", &standin::kernelspec());
    fixture
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Returns the session id of a process.
fn session(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    after_name.split_whitespace().nth(3).unwrap().parse().unwrap()
}

fn is_running(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.trim_start().starts_with('Z'))
}

/// Reads a process id that a kernelspec's command writes to this file.
async fn read_pid(fixture: &Fixture, file: &str) -> i32 {
    let path = fixture.root.path().join(file);
    let read = || std::fs::read_to_string(&path).ok()?.trim().parse().ok();
    eventually("a process id is written", || read().is_some()).await;
    read().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_leads_its_own_session() {
    let fixture = fixture();
    let provider = fixture.open().await;
    let kernel = launch(&provider, "stand-in").await.unwrap();
    assert_eq!(session(pid(&*kernel)), pid(&*kernel));
    kernel.shutdown(LONG).await.unwrap();
    assert!(fixture.processes().is_empty() && fixture.kernel_dirs().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_of_a_kernel_end_with_it_except_daemons() {
    let fixture = fixture();
    let root = fixture.root.path().display().to_string();
    // A process in the kernel's group, one in its own group, one that ignores SIGTERM and SIGINT, and a daemon.
    let command = format!(
        "sleep 1001 & echo $! > {root}/member; \
         set -m; sleep 1002 & echo $! > {root}/group; set +m; \
         (trap '' TERM INT; sleep 1003; sleep 1003) & echo $! > {root}/ignores_term; \
         setsid sh -c 'echo $$ > {root}/daemon; exec sleep 1004' &"
    );
    fixture.install("parent", &standin::kernelspec_after(&command));
    let provider = fixture.open().await;
    for is_killed in [false, true] {
        for file in ["member", "group", "ignores_term", "daemon"] {
            let _ = std::fs::remove_file(fixture.root.path().join(file));
        }
        let kernel = launch(&provider, "parent").await.unwrap();
        let mut pids = Vec::new();
        for file in ["member", "group", "ignores_term", "daemon"] {
            pids.push(read_pid(&fixture, file).await);
        }
        let daemon = pids.pop().unwrap();
        assert!(pids.iter().all(|pid| is_running(*pid)));
        if is_killed {
            signal(pid(&*kernel), Signal::KILL);
            assert_eq!(kernel.wait().await.cause, ExitCause::Signal(9));
        } else {
            kernel.shutdown(LONG).await.unwrap();
        }
        assert!(!pids.iter().any(|pid| is_running(*pid)), "{pids:?}");
        assert!(is_running(daemon));
        signal(daemon, Signal::KILL);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_that_ignores_sigterm_is_killed_after_its_grace() {
    let fixture = fixture();
    // Ignored signals stay ignored in the program that the shell executes.
    fixture.install("ignores-term", &standin::kernelspec_after("trap '' TERM"));
    let provider = fixture.open().await;
    let kernel = launch(&provider, "ignores-term").await.unwrap();
    let grace = Duration::from_millis(300);
    let begun = Instant::now();
    let exit = kernel.shutdown(grace).await.unwrap();
    assert!(begun.elapsed() >= grace);
    assert_eq!(exit.cause, ExitCause::Requested);
    assert!(fixture.processes().is_empty() && fixture.kernel_dirs().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_kernel_ends_on_sigterm() {
    let fixture = fixture();
    let provider = fixture.open().await;
    let kernel = launch(&provider, "stand-in").await.unwrap();
    signal(pid(&*kernel), Signal::STOP);
    let begun = Instant::now();
    kernel.shutdown(LONG).await.unwrap();
    assert!(begun.elapsed() < LONG);
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_and_signals_are_reported_with_the_output() {
    let fixture = fixture();
    fixture.install_script("fails", "echo out; echo err >&2; exit 7");
    let provider = fixture.open().await;
    match launch(&provider, "fails").await.err() {
        Some(LaunchError::Died { exit }) => {
            assert_eq!(exit.cause, ExitCause::Code(7));
            assert_eq!(exit.output, "out\nerr\n");
        }
        other => panic!("{other:?}"),
    }
    fixture.install("chatty", &standin::kernelspec_after("echo I am about to crash"));
    let kernel = launch(&provider, "chatty").await.unwrap();
    assert!(kernel.output().await.unwrap().contains("about to crash"));
    signal(pid(&*kernel), Signal::ABORT);
    let exit = kernel.wait().await;
    assert_eq!(exit.cause, ExitCause::Signal(6));
    assert!(exit.output.contains("about to crash"));
    // The output file remains readable, for this provider and the next.
    let dir = kernel.record().data["dir"].as_str().unwrap().to_owned();
    let log = || std::fs::read_to_string(format!("{dir}/output.log"));
    assert!(log().unwrap().contains("about to crash"));
    let record = kernel.record();
    drop(kernel);
    drop(provider);
    let provider = fixture.open().await;
    assert!(log().unwrap().contains("about to crash"));
    let attached = provider.attach(&record).await.err().unwrap();
    assert!(attached.to_string().contains("SIGABRT"), "{attached}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_newest_ended_kernels_are_remembered() {
    let fixture = fixture();
    let mut config = fixture.config();
    config.keep_ended = 2;
    let provider = LocalProvider::open(config).await.unwrap();
    for _ in 0..4 {
        let kernel = launch(&provider, "stand-in").await.unwrap();
        signal(pid(&*kernel), Signal::KILL);
        kernel.wait().await;
    }
    eventually("two kernels are kept", || fixture.kernel_dirs().len() == 2).await;
    drop(provider);
    let mut config = fixture.config();
    config.keep_ended = 1;
    open(config).await;
    assert_eq!(fixture.kernel_dirs().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_output_does_not_fill_the_disk() {
    use std::os::unix::fs::MetadataExt as _;
    let fixture = fixture();
    let root = fixture.root.path().display().to_string();
    // The last line waits until the kernel has started, so that it comes after the stand-in's own output.
    let command = format!(
        "(yes 'a line of no interest' | head -c 50000000; while [ ! -e {root}/go ]; do sleep 0.01; done; \
         echo the end; touch {root}/done) &"
    );
    fixture.install("flood", &standin::kernelspec_after(&command));
    let provider = fixture.open().await;
    let kernel = launch(&provider, "flood").await.unwrap();
    let log = format!("{}/output.log", kernel.record().data["dir"].as_str().unwrap());
    let blocks = || std::fs::metadata(&log).unwrap().blocks() * 512;
    let written = || std::fs::metadata(&log).unwrap().len();
    std::fs::write(fixture.root.path().join("go"), "").unwrap();
    eventually("all output is written", || fixture.root.path().join("done").exists()).await;
    assert!(written() > 50_000_000);
    eventually("the file is cut", || blocks() < 3_000_000).await;
    assert!(kernel.output().await.unwrap().ends_with("the end\n"));
    signal(pid(&*kernel), Signal::KILL);
    assert!(kernel.wait().await.output.ends_with("the end\n"));
    assert!(written() < 3_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn launch_errors_name_the_cause() {
    let fixture = fixture();
    fixture.install_script("plain", "exit 0");
    fixture.install("empty", &json!({"argv": [], "display_name": "", "language": ""}));
    fixture.install(
        "gone",
        &json!({"argv": ["no-such-program"], "display_name": "", "language": ""}),
    );
    let provider = fixture.open().await;
    let refusal = async |change: &dyn Fn(&mut LaunchRequest)| {
        let mut request = LaunchRequest::new(KernelId::random(), "plain");
        change(&mut request);
        let refused = provider.launch(request, Progress::ignored()).await.err().unwrap();
        assert!(fixture.kernel_dirs().is_empty());
        refused.to_string()
    };
    let missing = fixture.root.path().join("nowhere");
    let text = refusal(&|request| request.working_dir = Some(missing.clone())).await;
    assert!(text.contains("nowhere") && text.contains("create it"), "{text}");
    let file = fixture.root.path().join("a-file");
    std::fs::write(&file, "").unwrap();
    let text = refusal(&|request| request.working_dir = Some(file.clone())).await;
    assert!(text.contains("not a directory"), "{text}");
    let text = refusal(&|request| drop(request.env.insert("A=B".into(), String::new()))).await;
    assert!(text.contains("A=B"), "{text}");
    let text = refusal(&|request| request.spec = "empty".into()).await;
    assert!(text.contains("no argv"), "{text}");
    let text = refusal(&|request| request.spec = "gone".into()).await;
    assert!(
        text.contains("no-such-program") && text.contains("no such program"),
        "{text}"
    );
    let text = refusal(&|request| request.spec = "other".into()).await;
    assert!(text.contains("empty, gone, plain"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_and_working_directory_are_applied() {
    let fixture = fixture();
    let out = fixture.root.path().join("out");
    let mut spec = standin::kernelspec_after(&format!("(pwd; env) > {}", out.display()));
    spec["env"] = json!({"FROM_SPEC": "${KERNEL_USERNAME}:$FROM_SPEC"});
    fixture.install("env", &spec);
    let mut config = fixture.config();
    config.inherit_env = InheritEnv::Only(["PATH".to_owned()].into());
    let provider = LocalProvider::open(config).await.unwrap();
    let mut request = LaunchRequest::new(KernelId::random(), "env");
    request.working_dir = Some(fixture.root.path().to_owned());
    request.env.insert("KERNEL_USERNAME".to_owned(), "ann".to_owned());
    request.env.insert("JPY_PARENT_PID".to_owned(), "7".to_owned());
    let kernel = provider.launch(request, Progress::ignored()).await.unwrap();
    let check = || {
        let text = std::fs::read_to_string(&out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], fixture.root.path().canonicalize().unwrap().to_str().unwrap());
        assert!(
            lines.contains(&"FROM_SPEC=ann:$FROM_SPEC") && lines.contains(&"KERNEL_USERNAME=ann"),
            "{text}"
        );
        assert!(!text.contains("HOME=") && lines.contains(&"JPY_PARENT_PID=1"), "{text}");
    };
    check();
    std::fs::remove_file(&out).unwrap();
    // The launch's environment and working directory are kept for restarts.
    kernel.restart(LONG, Progress::ignored()).await.unwrap();
    check();
    kernel.shutdown(LONG).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let fixture = fixture();
    let provider = fixture.open_with(TransportChoice::Ipc).await;
    let kernel = launch(&provider, "stand-in").await.unwrap();
    let mut dirs = vec![fixture.state()];
    let mut files = 0;
    while let Some(dir) = dirs.pop() {
        assert_eq!(
            std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777,
            0o700,
            "{dir:?}"
        );
        for entry in std::fs::read_dir(&dir).unwrap().flatten() {
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                dirs.push(entry.path());
            } else if metadata.is_file() {
                files += 1;
                assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{entry:?}");
            }
        }
    }
    assert_eq!(files, 4);
    kernel.shutdown(LONG).await.unwrap();
    drop((provider, kernel));
    std::fs::set_permissions(fixture.state(), PermissionsExt::from_mode(0o755)).unwrap();
    let refused = LocalProvider::open(fixture.config()).await.err().unwrap().to_string();
    assert!(refused.contains("others have access"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_are_created_elsewhere_if_the_state_directory_path_is_too_long() {
    let fixture = fixture();
    let mut config = LocalOptions::new(fixture.root.path().join("d".repeat(100)));
    config.search = fixture.config().search;
    config.transport = TransportChoice::Ipc;
    let provider = LocalProvider::open(config).await.unwrap();
    let kernel = launch(&provider, "stand-in").await.unwrap();
    kernel.shutdown(LONG).await.unwrap();
    let mut config = fixture.config();
    config.socket_dir = Some(fixture.root.path().join("s".repeat(100)));
    let refused = LocalProvider::open(config).await.err().unwrap().to_string();
    assert!(refused.contains("107 bytes"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_providers_cannot_share_a_state_directory() {
    let fixture = fixture();
    let first = fixture.open().await;
    let refused = LocalProvider::open(fixture.config()).await.err().unwrap().to_string();
    assert!(
        refused.contains("another process uses it") && refused.contains("state"),
        "{refused}"
    );
    drop(first);
    fixture.open().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_replaced() {
    let fixture = fixture();
    let root = fixture.root.path().display().to_string();
    // The first start fails as if a port were in use. Reserved ports cannot be taken by chance.
    let command = format!(
        "if [ ! -e {root}/second ]; then cp \"$1\" {root}/first.json; touch {root}/second; \
         echo 'zmq.error.ZMQError: Address already in use'; exit 1; fi; cp \"$1\" {root}/second.json"
    );
    fixture.install("unlucky", &standin::kernelspec_after(&command));
    let provider = fixture.open_with(TransportChoice::Tcp).await;
    let kernel = launch(&provider, "unlucky").await.unwrap();
    let read = |name: &str| jupyter_protocol::ConnectionInfo::read(fixture.root.path().join(name)).unwrap();
    let (first, second) = (read("first.json"), read("second.json"));
    assert_ne!(first.shell_port, second.shell_port);
    assert_eq!(first.key, second.key);
    assert_eq!(kernel.connection().await.unwrap(), second);
    assert_eq!(fixture.kernel_dirs().len(), 1);
    kernel.shutdown(LONG).await.unwrap();
    // A kernel that always fails this way is not retried forever.
    fixture.install_script(
        "never",
        &format!("echo >> {root}/tries; echo address already in use; exit 1"),
    );
    let failed = launch(&provider, "never").await.err().unwrap();
    assert!(matches!(failed, LaunchError::Died { .. }), "{failed}");
    assert_eq!(
        std::fs::read_to_string(fixture.root.path().join("tries"))
            .unwrap()
            .len(),
        4
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_that_announces_its_ports_is_given_none() {
    let fixture = fixture();
    let root = fixture.root.path().display().to_string();
    let mut spec = standin::kernelspec_after(&format!("cp \"$1\" {root}/given.json"));
    let metadata = json!({"kernelmux": {"handshake": true}});
    spec["metadata"] = metadata.clone();
    fixture.install("announcer", &spec);
    let mute = json!({"argv": ["sh", "-c", "exit 4"], "display_name": "", "language": "", "metadata": metadata});
    fixture.install("mute", &mute);
    let provider = fixture.open().await;
    let kernel = launch(&provider, "announcer").await.unwrap();
    let given = jupyter_protocol::ConnectionInfo::read(fixture.root.path().join("given.json")).unwrap();
    assert!(given.registration_port.is_some() && given.shell_port == 0);
    let connection = kernel.connection().await.unwrap();
    assert!(connection.shell_port != 0 && connection.registration_port.is_none());
    kernel.restart(LONG, Progress::ignored()).await.unwrap();
    let connection = kernel.connection().await.unwrap();
    let record = kernel.record();
    drop((kernel, provider));
    // The next provider also knows the ports.
    let provider = fixture.open().await;
    let kernel = provider.attach(&record).await.unwrap();
    assert_eq!(kernel.connection().await.unwrap(), connection);
    kernel.shutdown(LONG).await.unwrap();
    let died = launch(&provider, "mute").await.err().unwrap();
    assert!(died.to_string().contains("code 4"), "{died}");
}

#[tokio::test(flavor = "multi_thread")]
async fn launches_cancelled_at_any_time_leave_nothing_behind() {
    let fixture = fixture();
    let provider = fixture.open().await;
    let begun = Instant::now();
    let kernel = launch(&provider, "stand-in").await.unwrap();
    let full_launch = begun.elapsed();
    kernel.shutdown(Duration::ZERO).await.unwrap();
    drop(kernel);
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    for moment in 0..40 {
        let limit = full_launch * moment / 30;
        let launched = tokio::time::timeout(limit, launch(&provider, "stand-in")).await;
        if let Ok(kernel) = launched {
            kernel.unwrap().shutdown(Duration::ZERO).await.unwrap();
        }
    }
    fixture.wait_until_clear().await;
    assert!(provider.list(&Selector::all()).await.unwrap().is_empty());
    // The limit is loose because other tests of this program open files too.
    eventually("descriptors are closed", || descriptors() <= before + 64).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kernels_with_damaged_records_are_recovered() {
    let fixture = fixture();
    let provider = fixture.open().await;
    let kernel = launch(&provider, "stand-in").await.unwrap();
    let dir = std::path::PathBuf::from(kernel.record().data["dir"].as_str().unwrap());
    let id = kernel.record().id;
    drop((kernel, provider));
    let record = std::fs::read(dir.join("record.json")).unwrap();
    for length in (0..record.len()).step_by(record.len() / 20) {
        let cut = fixture
            .state()
            .join("kernels")
            .join(format!("{}-{length:08}", KernelId::random()));
        std::fs::create_dir(&cut).unwrap();
        std::fs::write(cut.join("record.json"), &record[..length]).unwrap();
    }
    std::fs::create_dir(fixture.state().join("kernels/unrelated")).unwrap();
    let provider = fixture.open().await;
    let listed = provider.list(&Selector::all()).await.unwrap();
    assert_eq!(listed.iter().map(|record| record.id).collect::<Vec<_>>(), [id]);
    assert_eq!(fixture.kernel_dirs().len(), 2);
    drop(provider);
    // The kernel keeps running, is listed, and can be restarted and shut down.
    let damaged: [&dyn Fn() -> std::io::Result<()>; 3] = [
        &|| std::fs::write(dir.join("record.json"), &record[..10]),
        &|| std::fs::write(dir.join("record.json"), [0; 500]),
        &|| std::fs::remove_file(dir.join("record.json")),
    ];
    let mut running = fixture.processes();
    for damage in damaged {
        damage().unwrap();
        let provider = fixture.open().await;
        assert_eq!(fixture.processes(), running);
        let listed = provider.list(&Selector::all()).await.unwrap();
        assert_eq!(listed.iter().map(|record| record.id).collect::<Vec<_>>(), [id]);
        assert_eq!(listed[0].spec, "stand-in");
        let kernel = provider.attach(&listed[0]).await.unwrap();
        kernel.restart(LONG, Progress::ignored()).await.unwrap();
        assert_ne!(fixture.processes(), running);
        running = fixture.processes();
    }
    let provider = fixture.open().await;
    let listed = provider.list(&Selector::all()).await.unwrap();
    let kernel = provider.attach(&listed[0]).await.unwrap();
    kernel.shutdown(LONG).await.unwrap();
    assert!(fixture.processes().is_empty());
    assert_eq!(fixture.kernel_dirs().len(), 1);
}

/// Whether a test can create a PID namespace on this machine.
fn can_create_pid_namespace() -> bool {
    let unshare = std::process::Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "true"])
        .stderr(std::process::Stdio::null())
        .status();
    let can = unshare.is_ok_and(|status| status.success());
    if !can {
        println!("skipped: cannot create a PID namespace; root can create one");
    }
    can
}

#[test]
fn orphans_are_reaped_and_kernel_exits_are_reported() {
    if !can_create_pid_namespace() {
        return;
    }
    let status = std::process::Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc"])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "run_as_process_1"])
        .status();
    assert!(status.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "another test runs this as process 1"]
async fn run_as_process_1() {
    assert_eq!(std::process::id(), 1, "must run as process 1");
    let fixture = Fixture::new();
    // The script leaves a process with its own session, like a daemon.
    let orphaning = "setsid sh -c '> \"$1.up\"; exec sleep 1000' daemon \"$1\" &\n\
                     until [ -e \"$1.up\" ]; do sleep 0.01; done\nexit 7";
    fixture.install_script("orphaning", orphaning);
    let mut config = fixture.config();
    config.reap_orphans = true;
    let provider = open(config).await;
    for _ in 0..10 {
        // The kernel's exit status is only read by its own supervisor.
        match launch(&provider, "orphaning").await {
            Err(LaunchError::Died { exit }) => assert_eq!(exit.cause, ExitCause::Code(7)),
            other => panic!("{:?}", other.map(|kernel| kernel.record())),
        }
    }
    let children = || -> Vec<i32> {
        let is_child = |pid: &i32| {
            std::fs::read_to_string(format!("/proc/{pid}/stat"))
                .is_ok_and(|stat| stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1) == Some("1"))
        };
        common::pids().into_iter().filter(is_child).collect()
    };
    eventually("this process is the parent of all orphans", || children().len() == 10).await;
    children().into_iter().for_each(|orphan| signal(orphan, Signal::KILL));
    eventually("all orphans are reaped", || children().is_empty()).await;
    drop(provider);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_reaches_the_process_group() {
    let fixture = fixture();
    let root = fixture.root.path().display().to_string();
    // A shell makes its background jobs ignore interrupts, and a script cannot undo that with `trap`.
    let command = format!(
        "env --default-signal=INT sh -c 'trap \"echo got it > {root}/interrupted\" INT; echo $$ > {root}/member; \
         while :; do sleep 0.01; done' &"
    );
    fixture.install("group", &standin::kernelspec_after(&command));
    let provider = fixture.open().await;
    let kernel = launch(&provider, "group").await.unwrap();
    read_pid(&fixture, "member").await;
    kernel.interrupt().await.unwrap();
    let interrupted = fixture.root.path().join("interrupted");
    eventually("the group member is interrupted", || interrupted.exists()).await;
    assert_eq!(*kernel.phase().borrow(), Phase::Running);
    kernel.shutdown(LONG).await.unwrap();
}
