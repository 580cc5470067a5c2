//! Launches of processes: their files, sockets, ports and environment, and failures.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/standin.rs"]
mod standin;

use std::time::{Duration, Instant};

use common::{LONG, eventually, launch};
use jupyter_protocol::KernelId;
use kernel_provider::{KernelProvider as _, LaunchError, LaunchRequest, Progress, Selector};
use provider_local::{InheritEnv, LocalOptions, LocalProvider, TransportChoice};
use serde_json::json;
use standin::fixture;

#[tokio::test]
#[ignore = "run by other tests as a kernel"]
async fn serve_as_kernel() {
    standin::serve_if_requested().await;
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
    // The first start only claims that a port is in use. A real conflict is unlikely, because the ports are reserved.
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
async fn no_ports_are_chosen_for_a_kernel_that_announces_its_own() {
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
