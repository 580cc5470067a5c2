//! Kernels as processes: exits, cleanup and failures.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/standin.rs"]
mod standin;

use std::time::{Duration, Instant};

use common::{Fixture, LONG, eventually, launch, open, pid};
use jupyter_protocol::KernelId;
use kernel_provider::{ExitCause, KernelProvider as _, LaunchError, Phase, Progress, Selector};
use provider_local::LocalProvider;
use rustix::process::{Pid, Signal, kill_process};
use standin::fixture;

#[tokio::test]
#[ignore = "run by other tests as a kernel"]
async fn serve_as_kernel() {
    standin::serve_if_requested().await;
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
    exits_are_reported(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_and_signals_are_reported_with_output_through_pipes() {
    exits_are_reported(true).await;
}

async fn exits_are_reported(output_pipes: bool) {
    let fixture = fixture();
    let config = || fixture.config().with_output_pipes(output_pipes);
    fixture.install_script("fails", "echo out; echo err >&2; exit 7");
    let provider = open(config()).await;
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
    let provider = open(config()).await;
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
    endless_output_is_bounded(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_output_through_a_pipe_does_not_fill_the_disk() {
    endless_output_is_bounded(true).await;
}

async fn endless_output_is_bounded(output_pipes: bool) {
    use std::os::unix::fs::MetadataExt as _;
    let fixture = fixture();
    let root = fixture.root.path().display().to_string();
    // The last line waits until the kernel has started, so that it comes after the stand-in's own output.
    let command = format!(
        "(yes 'a line of no interest' | head -c 50000000; while [ ! -e {root}/go ]; do sleep 0.01; done; \
         echo the end; touch {root}/done) &"
    );
    fixture.install("flood", &standin::kernelspec_after(&command));
    let provider = open(fixture.config().with_output_pipes(output_pipes)).await;
    let kernel = launch(&provider, "flood").await.unwrap();
    let log = format!("{}/output.log", kernel.record().data["dir"].as_str().unwrap());
    let blocks = || std::fs::metadata(&log).unwrap().blocks() * 512;
    let written = || std::fs::metadata(&log).unwrap().len();
    std::fs::write(fixture.root.path().join("go"), "").unwrap();
    eventually("the kernel has written everything", || {
        fixture.root.path().join("done").exists()
    })
    .await;
    // The end may still be in the pipe.
    eventually("everything is in the file", || written() > 50_000_000).await;
    eventually("the file is cut", || blocks() < 3_000_000).await;
    assert!(kernel.output().await.unwrap().ends_with("the end\n"));
    signal(pid(&*kernel), Signal::KILL);
    assert!(kernel.wait().await.output.ends_with("the end\n"));
    assert!(written() < 3_000_000);
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
    // A kernel whose record is damaged or missing keeps running, is listed, and can be restarted and shut down.
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
    // A shell makes its background jobs ignore SIGINT, and a script cannot undo that with `trap`.
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
