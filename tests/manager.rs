//! The manager over real Python kernels: what happens to kernels, and what clients get to see of it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::VecDeque;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use kernelmux::ManagerBuilderExt as _;
use kernelmux::local::{LocalConfig, LocalProvider};
use kernelmux::log::{Entry, FjallStore, LIFECYCLE, LogOptions, Logs, Seq};
use kernelmux::protocol::content::{Content, ExecuteRequest};
use kernelmux::protocol::kernelspec::SearchPath;
use kernelmux::protocol::message::Message;
use kernelmux::protocol::{Channel, WireMessage};
use kernelmux::{
    AtClose, Attachment, Client, Culling, ExecutionError, ExecutionState, Kernel, KernelEventKind, KernelId, Manager,
    ManagerOptions, StartError, StartRequest,
};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(60);

/// Within the deadline, or the test fails.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("within the deadline")
}

/// The interpreter with ipykernel; `None` where there is none, which only CI does not forgive.
fn python() -> Option<PathBuf> {
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

/// A folder with a kernelspec of the real Python kernel and of some that fail, and the manager's state.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Option<Self> {
        let python = python()?;
        // Shown where a test fails.
        let _ = tracing_subscriber::fmt().with_test_writer().try_init();
        let place = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        place.spec(
            "python3",
            &json!([python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]),
            &json!({}),
        );
        Some(place)
    }

    fn spec(&self, name: &str, argv: &Value, metadata: &Value) {
        let folder = self.folder.path().join("kernels").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let spec = json!({"argv": argv, "display_name": name, "language": "python", "metadata": metadata});
        std::fs::write(folder.join("kernel.json"), spec.to_string()).unwrap();
    }

    /// Opens the store, once tasks of a manager that was dropped hold it no more.
    async fn store(&self) -> FjallStore {
        loop {
            match FjallStore::open(&self.folder.path().join("logs")) {
                Ok(store) => return store,
                Err(error) if error.to_string().contains("has it open") => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    async fn manager(&self, options: ManagerOptions) -> Manager {
        let mut config = LocalConfig::new(self.folder.path().join("state"));
        config.search = SearchPath::new([self.folder.path().join("kernels")]);
        let provider = LocalProvider::open(config).await.unwrap();
        let store = soon(self.store()).await;
        let logs = Logs::new(Arc::new(store), LogOptions::default()).unwrap();
        Manager::new(vec![Arc::new(provider)], logs, options)
    }
}

/// Runs code and returns what it wrote to its standard output.
async fn run(kernel: &Arc<Kernel>, code: &str) -> String {
    let mut execution = kernel.execute(ExecuteRequest::new(code)).await.unwrap();
    let mut text = String::new();
    while let Some(message) = soon(execution.next()).await {
        match message.expect("the execution goes on").content {
            Content::Stream(stream) => text.push_str(&stream.text),
            Content::Error(error) => panic!("{}: {}", error.ename, error.evalue),
            _ => {}
        }
    }
    text
}

/// A client, with what it has been sent and has not looked at yet.
struct Attached {
    attachment: Attachment,
    unread: VecDeque<Entry>,
}

impl Attached {
    fn to(kernel: &Arc<Kernel>, session: &str) -> Self {
        Self {
            attachment: kernel.attach(session),
            unread: VecDeque::new(),
        }
    }

    fn client(&self) -> Client {
        self.attachment.client()
    }

    /// Reads on until an entry that is for this client fits.
    async fn until(&mut self, mut fits: impl FnMut(&Entry) -> bool) -> Vec<Entry> {
        let client = self.client();
        let mut seen = Vec::new();
        loop {
            while let Some(entry) = self.unread.pop_front() {
                seen.push(entry.clone());
                if fits(&entry) {
                    return seen;
                }
            }
            let block = soon(self.attachment.next()).await.unwrap().expect("the log is open");
            self.unread
                .extend(block.entries().filter(|entry| client.delivers(entry)));
        }
    }
}

fn content(entry: &Entry) -> Value {
    serde_json::from_slice(entry.message().content()).unwrap()
}

fn msg_type(entry: &Entry) -> String {
    entry.message().header_ref().unwrap().msg_type.into_owned()
}

fn execute(code: &str, session: &str) -> (String, WireMessage) {
    let message = Message::new(ExecuteRequest::new(code), session);
    (message.header.msg_id.clone(), message.to_wire())
}

fn kill(pid: &str, signal: &str) {
    assert!(Command::new("kill").args([signal, pid]).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_is_started_used_restarted_and_ended() {
    let Some(place) = Place::new() else { return };
    let manager = place.manager(ManagerOptions::default()).await;
    let mut events = manager.events();
    let kernel = soon(manager.start(StartRequest::new("python3"))).await.unwrap();
    assert_eq!(run(&kernel, "x = 6; print(x * 7)").await, "42\n");
    soon(kernel.restart()).await.unwrap();
    assert_eq!(
        run(&kernel, "print('x' in globals())").await,
        "False\n",
        "a new process knows nothing"
    );
    soon(kernel.shutdown()).await.unwrap();
    assert!(manager.get(kernel.id()).is_none());
    let kinds: Vec<_> = std::iter::from_fn(|| events.try_recv().ok())
        .map(|event| event.kind)
        .collect();
    assert_eq!(
        kinds,
        [
            KernelEventKind::Started,
            KernelEventKind::Restarted,
            KernelEventKind::ShutDown
        ]
    );
    // What it said can be read after it is gone.
    let log = manager.logs().open(kernel.id()).await.unwrap();
    assert!(log.head() > Seq(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_that_is_killed_comes_back_and_its_clients_are_told() {
    let Some(place) = Place::new() else { return };
    let manager = place.manager(ManagerOptions::default()).await;
    let kernel = soon(manager.start(StartRequest::new("python3"))).await.unwrap();
    let mut client = Attached::to(&kernel, "client");
    let pid = run(&kernel, "import os; print(os.getpid())").await;
    let mut execution = kernel
        .execute(ExecuteRequest::new("import time; time.sleep(600)"))
        .await
        .unwrap();
    soon(kernel.state().wait_for(|state| *state == ExecutionState::Busy))
        .await
        .unwrap();
    kill(pid.trim(), "-KILL");
    let seen = client
        .until(|entry| content(entry)["execution_state"] == "restarting")
        .await;
    let told = content(seen.last().unwrap());
    assert!(told["reason"].as_str().unwrap().contains("SIGKILL"), "{told}");
    // Nobody asked anything of the new one, and still all are told that it can be.
    let seen = client
        .until(|entry| {
            let message = entry.message();
            content(entry)["execution_state"] == "idle"
                && message
                    .parent_ref()
                    .is_ok_and(|parent| parent.msg_type == "kernelmux_lifecycle")
        })
        .await;
    let sessions: Vec<_> = seen[seen.len() - 2..]
        .iter()
        .map(|entry| entry.message().header_ref().unwrap().session.into_owned())
        .collect();
    assert_eq!(
        sessions[0], sessions[1],
        "the kernel's own word, then the one told in its name"
    );
    let error = loop {
        match soon(execution.next()).await {
            Some(Ok(_)) => {}
            other => break other,
        }
    };
    assert!(matches!(error, Some(Err(ExecutionError::KernelEnded { .. }))));
    assert_eq!(run(&kernel, "print('again')").await, "again\n");
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_that_keeps_dying_is_dead_and_says_why() {
    let Some(place) = Place::new() else { return };
    let mut options = ManagerOptions::default();
    options.restart_limit = 1;
    // However long it takes from one end to the next.
    options.stable_after = Duration::MAX;
    let manager = place.manager(options).await;
    let kernel = soon(manager.start(StartRequest::new("python3"))).await.unwrap();
    let mut client = Attached::to(&kernel, "client");
    for state in ["restarting", "dead"] {
        let dying = kernel
            .execute(ExecuteRequest::new("import os; os._exit(7)"))
            .await
            .unwrap();
        let seen = client.until(|entry| content(entry)["execution_state"] == state).await;
        assert_eq!(content(seen.last().unwrap())["reason"], "exited with code 7");
        drop(dying);
        if state == "restarting" {
            soon(kernel.state().wait_for(|state| *state == ExecutionState::Idle))
                .await
                .unwrap();
        }
    }
    soon(kernel.state().wait_for(|state| *state == ExecutionState::Dead))
        .await
        .unwrap();
    assert!(
        kernel.execute(ExecuteRequest::new("1")).await.is_err(),
        "the dead do not answer"
    );
    soon(kernel.restart()).await.unwrap();
    assert_eq!(run(&kernel, "print('risen')").await, "risen\n");

    // It is watched over as before, and to be restarted by somebody is no accident.
    soon(kernel.restart()).await.unwrap();
    let dying = kernel
        .execute(ExecuteRequest::new("import os; os._exit(7)"))
        .await
        .unwrap();
    client
        .until(|entry| content(entry)["execution_state"] == "restarting" && content(entry)["reason"].is_string())
        .await;
    drop(dying);
    soon(kernel.state().wait_for(|state| *state == ExecutionState::Idle))
        .await
        .unwrap();
    assert_eq!(run(&kernel, "print('again')").await, "again\n");
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_that_dies_at_each_start_is_tried_up_to_the_limit_and_late_clients_are_told() {
    let Some(place) = Place::new() else { return };
    let python = python().unwrap();
    // A kernel that ends once its sockets are open, as long as this file is there.
    let fatal = place.folder.path().join("fatal");
    let code = "import os, sys; os.path.exists(sys.argv[2]) and os._exit(3)";
    let script = format!(
        "{code}\nfrom ipykernel.kernelapp import launch_new_instance; launch_new_instance(['-f', sys.argv[1]])"
    );
    place.spec(
        "frail",
        &json!([python, "-c", script, "{connection_file}", fatal]),
        &json!({}),
    );
    let mut options = ManagerOptions::default();
    options.restart_limit = 3;
    let manager = place.manager(options).await;
    let kernel = soon(manager.start(StartRequest::new("frail"))).await.unwrap();
    let mut client = Attached::to(&kernel, "client");
    std::fs::write(&fatal, "").unwrap();
    drop(
        kernel
            .execute(ExecuteRequest::new("import os; os._exit(4)"))
            .await
            .unwrap(),
    );
    let seen = client.until(|entry| content(entry)["execution_state"] == "dead").await;
    let tries = seen
        .iter()
        .filter(|entry| content(entry)["execution_state"] == "restarting");
    assert_eq!(tries.count(), 3);
    assert_eq!(content(seen.last().unwrap())["reason"], "exited with code 3");
    client.client().acknowledge(seen.last().unwrap().seq());
    drop(client);
    for session in ["client", "another"] {
        let mut late = Attached::to(&kernel, session);
        late.until(|entry| content(entry)["execution_state"] == "dead").await;
    }
    std::fs::remove_file(&fatal).unwrap();
    soon(kernel.restart()).await.unwrap();
    assert_eq!(run(&kernel, "print('risen')").await, "risen\n");
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_ends_the_cell_and_not_the_kernel() {
    let Some(place) = Place::new() else { return };
    let manager = place.manager(ManagerOptions::default()).await;
    let kernel = soon(manager.start(StartRequest::new("python3"))).await.unwrap();
    run(&kernel, "kept = 1").await;
    let mut execution = kernel
        .execute(ExecuteRequest::new(
            // Said by another thread while the first one sleeps: Python drops a KeyboardInterrupt that it raises in the
            // middle of a destructor. One piece, so that it is one message.
            "import threading, time\n\
             threading.Timer(0.5, lambda: print('now', end='', flush=True)).start()\n\
             time.sleep(600)",
        ))
        .await
        .unwrap();
    let mut error = None;
    while let Some(message) = soon(execution.next()).await {
        match message.unwrap().content {
            Content::Stream(_) => soon(kernel.interrupt()).await.unwrap(),
            Content::Error(content) => error = Some(content.ename),
            _ => {}
        }
    }
    assert_eq!(error.as_deref(), Some("KeyboardInterrupt"));
    assert_eq!(run(&kernel, "print(kept)").await, "1\n");
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_go_to_who_asked_and_output_goes_to_all() {
    let Some(place) = Place::new() else { return };
    let manager = place.manager(ManagerOptions::default()).await;
    let kernel = soon(manager.start(StartRequest::new("python3"))).await.unwrap();
    let (mut alice, mut bob) = (Attached::to(&kernel, "alice"), Attached::to(&kernel, "bob"));
    assert_eq!(*kernel.connections().borrow(), 2);
    let (id, request) = execute("input('name? ')", "a");
    alice.client().send(Channel::Shell, request).await.unwrap();
    let seen = alice.until(|entry| msg_type(entry) == "input_request").await;
    assert_eq!(content(seen.last().unwrap())["prompt"], "name? ");
    let answer = WireMessage::from_parts(
        [
            r#"{"msg_id":"answer","msg_type":"input_reply"}"#,
            "{}",
            "{}",
            r#"{"value":"Ann"}"#,
        ]
        .map(bytes::Bytes::from),
        [],
    );
    alice.client().send(Channel::Stdin, answer).await.unwrap();
    alice.until(|entry| msg_type(entry) == "execute_reply").await;
    // Bob sees the same output, and neither Alice's question nor her reply.
    let (mine, request) = execute("'done'", "b");
    bob.client().send(Channel::Shell, request).await.unwrap();
    // What Alice's cell published is surely there once Bob's is over on iopub too: replies come over another socket.
    let (mut replied, mut idle) = (false, false);
    let seen = bob
        .until(|entry| {
            if entry.message().parent_ref().unwrap().msg_id == mine {
                replied |= msg_type(entry) == "execute_reply";
                idle |= content(entry)["execution_state"] == "idle";
            }
            replied && idle
        })
        .await;
    let of_alice: Vec<_> = seen
        .iter()
        .filter(|entry| entry.message().parent_ref().unwrap().msg_id == id)
        .map(msg_type)
        .collect();
    assert!(of_alice.contains(&"execute_result".to_owned()), "{of_alice:?}");
    assert!(!of_alice.contains(&"input_request".to_owned()) && !of_alice.contains(&"execute_reply".to_owned()));
    drop(alice);
    soon(kernel.connections().wait_for(|connections| *connections == 1))
        .await
        .unwrap();
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_comes_back_reads_on_after_what_it_acknowledged() {
    let Some(place) = Place::new() else { return };
    let manager = place.manager(ManagerOptions::default()).await;
    let kernel = soon(manager.start(StartRequest::new("python3"))).await.unwrap();
    let mut first = Attached::to(&kernel, "laptop");
    let (id, request) = execute("for i in range(1000): print(i, flush=True)", "laptop");
    first.client().send(Channel::Shell, request).await.unwrap();
    let seen = first.until(|entry| msg_type(entry) == "stream").await;
    let acknowledged = seen.last().unwrap().seq();
    first.client().acknowledge(acknowledged);
    let second = kernel.attach("laptop");
    soon(first.attachment.superseded()).await;
    drop(first);
    assert_eq!(
        *kernel.connections().borrow(),
        1,
        "the older attachment does not count any more"
    );
    drop(second);
    soon(kernel.state().wait_for(|state| *state == ExecutionState::Idle))
        .await
        .unwrap();
    let mut again = Attached::to(&kernel, "laptop");
    // The idle is the last on iopub; the reply comes over another socket, and may be before it.
    let missed = again
        .until(|entry| {
            content(entry)["execution_state"] == "idle" && entry.message().parent_ref().unwrap().msg_id == id
        })
        .await;
    assert!(missed[0].seq() > acknowledged);
    let text: String = seen
        .iter()
        .chain(&missed)
        .filter(|entry| msg_type(entry) == "stream")
        .map(|entry| content(entry)["text"].as_str().unwrap().to_owned())
        .collect();
    let expected: String = (0..1000).map(|i| format!("{i}\n")).collect();
    assert!(text == expected, "nothing lost, nothing twice: {text}");
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_ten_times_the_kernels_own_queue_loses_nothing() {
    let Some(place) = Place::new() else { return };
    let manager = place.manager(ManagerOptions::default()).await;
    let kernel = soon(manager.start(StartRequest::new("python3"))).await.unwrap();
    let text = run(&kernel, "for i in range(10_000): print(i, flush=True)").await;
    let expected: String = (0..10_000).map(|i| format!("{i}\n")).collect();
    assert!(text == expected, "{} of {} bytes arrived", text.len(), expected.len());
    // How that is done leaves nothing in the user's way.
    assert_eq!(
        run(&kernel, "print([name for name in dir() if name[0] != '_'], In)").await,
        "['In', 'Out', 'exit', 'get_ipython', 'i', 'open', 'quit'] ['', 'for i in range(10_000): print(i, flush=True)', \"print([name for name in dir() if name[0] != '_'], In)\"]\n"
    );
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn kernels_outlive_the_manager_and_their_logs_go_on() {
    let Some(place) = Place::new() else { return };
    let manager = place.manager(ManagerOptions::default()).await;
    let kernel = soon(manager.start(StartRequest::new("python3"))).await.unwrap();
    let id = kernel.id();
    run(&kernel, "kept = 'kept'").await;
    let (epoch, head) = (kernel.log().epoch(), kernel.log().head());
    soon(manager.close(AtClose::LeaveKernels)).await.unwrap();
    drop((kernel, manager));

    let manager = reopened(&place).await;
    assert_eq!(soon(manager.restore()).await, 1);
    let kernel = manager.get(id).unwrap();
    assert_eq!(kernel.log().epoch(), epoch);
    assert_eq!(run(&kernel, "print(kept)").await, "kept\n");
    let mut reader = kernel.log().reader(head);
    // The time that nobody recorded is told.
    let gap = loop {
        let block = soon(reader.next()).await.unwrap().unwrap();
        if let Some(entry) = block.entries().find(|entry| msg_type(entry) == LIFECYCLE) {
            break content(&entry);
        }
    };
    assert_eq!(gap["event"], "attached");
    assert!(gap["unrecorded_ms"].is_i64());
    soon(kernel.state().wait_for(|state| *state == ExecutionState::Idle))
        .await
        .unwrap();
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

/// A manager on the same folder, once the last one's hold on it is gone.
async fn reopened(place: &Place) -> Manager {
    let lock = place.folder.path().to_owned();
    soon(async move {
        while !is_free(&lock) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    place.manager(ManagerOptions::default()).await
}

/// Whether the database of the logs can be opened: its last user lets go of it on a thread of its own.
fn is_free(folder: &Path) -> bool {
    FjallStore::open(&folder.join("logs")).is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_and_ids_are_kept_to_also_while_kernels_start() {
    let Some(place) = Place::new() else { return };
    let mut options = ManagerOptions::default();
    options.max_kernels = Some(3);
    options.max_kernels_per_owner = Some(1);
    let manager = place.manager(options).await;
    let request = |owner: &str| {
        let mut request = StartRequest::new("python3");
        request.owner = Some(owner.to_owned());
        request
    };
    let id = KernelId::random();
    let (mut named, mut twin) = (request("ann"), request("bob"));
    (named.id, twin.id) = (Some(id), Some(id));
    let (first, second) = soon(async { tokio::join!(manager.start(named), manager.start(twin)) }).await;
    let (kernel, refused) = if first.is_ok() {
        (first, second)
    } else {
        (second, first)
    };
    let kernel = kernel.unwrap();
    assert!(matches!(refused.map(|_| ()), Err(StartError::Duplicate(twice)) if twice == id));
    let owner = kernel.owner().unwrap().to_owned();
    let error = soon(manager.start(request(&owner))).await.map(|_| ()).unwrap_err();
    assert!(
        matches!(
            error,
            StartError::LimitReached {
                limit: 1,
                owner: Some(_)
            }
        ),
        "{error}"
    );
    soon(manager.start(request("cid"))).await.unwrap();
    soon(manager.start(StartRequest::new("python3"))).await.unwrap();
    let error = soon(manager.start(StartRequest::new("python3")))
        .await
        .map(|_| ())
        .unwrap_err();
    assert!(
        matches!(error, StartError::LimitReached { limit: 3, owner: None }),
        "{error}"
    );
    soon(kernel.shutdown()).await.unwrap();
    soon(manager.start(request(&owner))).await.unwrap();
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
    let error = soon(manager.start(request("dan"))).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, StartError::ShuttingDown), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_says_why_and_leaves_nothing() {
    let Some(place) = Place::new() else { return };
    place.spec(
        "broken",
        &json!(["sh", "-c", "echo no licence found >&2; exit 3"]),
        &json!({}),
    );
    place.spec("missing", &json!(["/no/such/interpreter"]), &json!({}));
    let manager = place.manager(ManagerOptions::default()).await;
    for (spec, expected) in [
        ("broken", &["exited with code 3", "no licence found"][..]),
        ("missing", &["/no/such/interpreter"]),
        ("unheard-of", &["unheard-of", "python3"]),
    ] {
        let error = soon(manager.start(StartRequest::new(spec)))
            .await
            .map(|_| ())
            .unwrap_err()
            .to_string();
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
        assert!(manager.list().is_empty());
    }
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_ends_gives_up_what_is_being_started() {
    let Some(place) = Place::new() else { return };
    let pid_file = place.folder.path().join("pid");
    let script = format!("echo $$ >{0}.new; mv {0}.new {0}; exec sleep 600", pid_file.display());
    place.spec("mute", &json!(["sh", "-c", script]), &json!({}));
    let manager = place.manager(ManagerOptions::default()).await;
    let starting = tokio::spawn({
        let manager = manager.clone();
        async move { manager.start(StartRequest::new("mute")).await.map(drop) }
    });
    let pid = soon(async {
        loop {
            match std::fs::read_to_string(&pid_file) {
                Ok(pid) => return pid.trim().to_owned(),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    })
    .await;
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
    let error = soon(starting).await.unwrap().unwrap_err();
    assert!(matches!(error, StartError::ShuttingDown), "{error}");
    let left = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    assert!(!left.contains("sleep"), "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn kernels_that_nobody_uses_are_ended_and_others_are_not() {
    let Some(place) = Place::new() else { return };
    let python = python().unwrap();
    let argv = json!([python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]);
    place.spec("kept", &argv, &json!({"cull_idle_timeout": 0}));
    let mut options = ManagerOptions::default();
    options.culling = Culling::default();
    // Longer than a client takes to be there.
    options.culling.idle_timeout = Duration::from_secs(5);
    options.culling.interval = Duration::from_millis(100);
    let manager = place.manager(options).await;
    let mut events = manager.events();
    let idle = soon(manager.start(StartRequest::new("python3"))).await.unwrap();
    let watched = soon(manager.start(StartRequest::new("python3"))).await.unwrap();
    let _client = watched.attach("client");
    let busy = soon(manager.start(StartRequest::new("python3"))).await.unwrap();
    let mut running = busy
        .execute(ExecuteRequest::new("import time; time.sleep(600)"))
        .await
        .unwrap();
    // It is attached until the kernel is known to be busy.
    soon(running.next()).await.unwrap().unwrap();
    soon(busy.state().wait_for(|state| *state == ExecutionState::Busy))
        .await
        .unwrap();
    drop(running);
    let kept = soon(manager.start(StartRequest::new("kept"))).await.unwrap();
    let culled = soon(async {
        loop {
            let event = events.recv().await.unwrap();
            if event.kind == KernelEventKind::Culled {
                return event.id;
            }
        }
    })
    .await;
    assert_eq!(culled, idle.id());
    let mut reader = idle.log().reader(Seq::START);
    let told = soon(async {
        loop {
            let block = reader.next().await.unwrap().expect("its end is told");
            let mut said = block.entries().map(|entry| content(&entry));
            if let Some(told) = said.find(|said| said["execution_state"] == "dead") {
                return told;
            }
        }
    })
    .await;
    let reason = told["reason"].as_str().unwrap();
    assert!(reason.starts_with("culled: idle for "), "{reason}");
    let mut left: Vec<_> = manager.list().iter().map(|kernel| kernel.id()).collect();
    let mut expected = vec![watched.id(), busy.id(), kept.id()];
    left.sort();
    expected.sort();
    assert_eq!(left, expected);
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_that_is_stopped_at_a_restore_holds_up_no_other_and_can_be_used_later_or_ended() {
    let Some(place) = Place::new() else { return };
    let manager = place.manager(ManagerOptions::default()).await;
    let mut pids = Vec::new();
    for _ in 0..3 {
        let kernel = soon(manager.start(StartRequest::new("python3"))).await.unwrap();
        let pid = run(&kernel, "import os; print(os.getpid())").await.trim().to_owned();
        pids.push((kernel.id(), pid));
    }
    soon(manager.close(AtClose::LeaveKernels)).await.unwrap();
    drop(manager);
    let [(one, _), (two, second), (three, third)] = &pids[..] else {
        panic!("three kernels")
    };
    kill(second, "-STOP");
    kill(third, "-STOP");

    let manager = place.manager(ManagerOptions::default()).await;
    assert_eq!(
        soon(manager.restore()).await,
        3,
        "those that do not answer are listed too"
    );
    let kernel = |id: &KernelId| manager.get(*id).unwrap();
    assert_eq!(run(&kernel(one), "print('served')").await, "served\n");
    assert_eq!(*kernel(two).state().borrow(), ExecutionState::Busy);
    // One goes on, the other is ended while it is not reached.
    soon(kernel(three).shutdown()).await.unwrap();
    assert!(manager.get(*three).is_none());
    kill(second, "-CONT");
    assert_eq!(run(&kernel(two), "print('back')").await, "back\n");
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

/// Writes a line for each number, each in a message of its own.
const FLOOD: &str = "for i in range(60_000):\n    print(i, flush=True)";

#[tokio::test(flavor = "multi_thread")]
async fn a_python_kernel_has_the_arguments_of_its_kernelspec_and_no_others() {
    let Some(place) = Place::new() else { return };
    let manager = place.manager(ManagerOptions::default()).await;
    let kernel = soon(manager.start(StartRequest::new("python3"))).await.unwrap();
    let argv = run(&kernel, "import sys; print(len(sys.argv), sys.argv[1:2])").await;
    assert_eq!(argv, "3 ['-f']\n");
    // What countless notebooks do.
    let parse = "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('-f')\n\
                 print(parser.parse_args().f == sys.argv[2])";
    assert_eq!(run(&kernel, parse).await, "True\n");
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_kernel_knows_that_it_runs_in_jupyter_and_does_not_watch_its_parent() {
    let Some(place) = Place::new() else { return };
    let manager = place.manager(ManagerOptions::default()).await;
    let kernel = soon(manager.start(StartRequest::new("python3"))).await.unwrap();
    let look = "import os, threading\nprint('JPY_PARENT_PID' in os.environ, \
                [thread for thread in threading.enumerate() if 'Poller' in type(thread).__name__])";
    assert_eq!(run(&kernel, look).await, "True []\n");
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn code_and_files_of_profiles_and_kernelspecs_run_at_the_start() {
    let Some(place) = Place::new() else { return };
    let python = python().unwrap();
    let file = place.folder.path().join("start.py");
    std::fs::write(&file, "from_file = 'file'\n").unwrap();
    let profile = place.folder.path().join("ipython").join("profile_default");
    std::fs::create_dir_all(&profile).unwrap();
    std::fs::write(
        profile.join("ipython_kernel_config.py"),
        "c.IPKernelApp.code_to_run = \"from_profile = 'profile'\"\n",
    )
    .unwrap();
    let plain = json!([python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]);
    let with = |argument: &str| {
        let mut argv = plain.clone();
        argv.as_array_mut().unwrap().push(json!(argument));
        argv
    };
    place.spec(
        "code",
        &with("--IPKernelApp.code_to_run=from_argv = 'argv'"),
        &json!({}),
    );
    place.spec(
        "file",
        &with(&format!("--IPKernelApp.file_to_run={}", file.display())),
        &json!({}),
    );
    let manager = place.manager(ManagerOptions::default()).await;
    for (spec, expected) in [
        ("python3", "from_profile"),
        ("code", "from_argv"),
        ("file", "from_file"),
    ] {
        let mut request = StartRequest::new(spec);
        if spec == "python3" {
            let ipython = place.folder.path().join("ipython");
            request
                .env
                .insert("IPYTHONDIR".to_owned(), ipython.to_str().unwrap().to_owned());
        }
        let kernel = soon(manager.start(request)).await.unwrap();
        let printed = run(&kernel, &format!("print({expected})")).await;
        assert_eq!(printed.trim(), expected.trim_start_matches("from_"));
    }
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_kernel_behind_a_wrapper_starts_and_loses_no_output() {
    use std::os::unix::fs::PermissionsExt as _;

    let Some(place) = Place::new() else { return };
    let wrapper = place.folder.path().join("wrapper.sh");
    // Unquoted, as written on many clusters.
    std::fs::write(
        &wrapper,
        format!("#!/bin/sh\nexec {} $@\n", python().unwrap().display()),
    )
    .unwrap();
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).unwrap();
    place.spec(
        "wrapped",
        &json!([wrapper, "-m", "ipykernel_launcher", "-f", "{connection_file}"]),
        &json!({}),
    );
    let manager = place.manager(ManagerOptions::default()).await;
    let kernel = soon(manager.start(StartRequest::new("wrapped"))).await.unwrap();
    let output = kernel.handle().output().await.unwrap();
    assert!(!output.contains("Error"), "{output}");
    for _ in 0..2 {
        let printed = run(&kernel, FLOOD).await;
        assert!(printed.lines().eq((0..60_000).map(|i| i.to_string())));
        // The option belongs to the process.
        soon(kernel.restart()).await.unwrap();
    }
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_kernel_does_not_show_that_it_waits_for_its_subscriber() {
    let Some(place) = Place::new() else { return };
    let python = python().unwrap();
    place.spec(
        "untouched",
        &json!([python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]),
        &json!({"kernelmux": {"wait_for_subscriber": false}}),
    );
    let manager = place.manager(ManagerOptions::default()).await;
    let look = "import sys\nshell = get_ipython()\n\
                print(shell.execution_count, In, Out, repr(_), repr(__), repr(_i), shell.history_manager.input_hist_raw)\n\
                print(sorted(globals()))\nprint(sorted(sys.modules))";
    let mut seen = Vec::new();
    for spec in ["untouched", "python3"] {
        let kernel = soon(manager.start(StartRequest::new(spec))).await.unwrap();
        seen.push(run(&kernel, look).await);
        kernel.log().flushed().await;
        // What clients are sent names no request but theirs and those that ask what the kernel is.
        let mut reader = kernel.log().reader(Seq(0));
        let mut last = Seq(0);
        while last < kernel.log().head() {
            for entry in soon(reader.next()).await.unwrap().unwrap().entries() {
                last = entry.seq();
                let message = entry.message();
                let text = String::from_utf8_lossy(&message.parts_and_buffers().concat()).into_owned();
                assert!(!text.contains("XPUB_NODROP") && !text.contains("setup"), "{text}");
            }
        }
    }
    assert_eq!(seen[0], seen[1]);
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn kernelspecs_are_found_as_jupyter_client_finds_them_and_broken_ones_say_what_is_wrong() {
    let Some(place) = Place::new() else { return };
    place.spec(
        "ROOT",
        &json!([python().unwrap(), "-m", "ipykernel_launcher", "-f", "{connection_file}"]),
        &json!({}),
    );
    place.spec("broken", &json!("python"), &json!({}));
    let manager = place.manager(ManagerOptions::default()).await;
    for (name, expected) in [
        ("ROOT", "root"),
        ("Root", "root"),
        ("root", "root"),
        ("python", "python3"),
    ] {
        let kernel = soon(manager.start(StartRequest::new(name))).await.unwrap();
        assert_eq!(kernel.spec_name(), expected);
        soon(kernel.shutdown()).await.unwrap();
    }
    let file = place.folder.path().join("kernels/broken/kernel.json");
    let reason = &manager.broken_specs()["broken"];
    assert!(
        reason.contains(file.to_str().unwrap()) && reason.contains("argv"),
        "{reason}"
    );
    let error = soon(manager.start(StartRequest::new("Broken"))).await.err().unwrap();
    assert!(
        matches!(&error, StartError::BrokenSpec { reason: said, .. } if said == reason),
        "{error}"
    );
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_releases_the_folders_and_the_next_manager_finds_the_kernel() {
    let Some(place) = Place::new() else { return };
    let state = place.folder.path().join("state");
    let open = async || {
        let mut config = LocalConfig::new(&state);
        config.search = SearchPath::new([place.folder.path().join("kernels")]);
        let builder = Manager::builder().local_with(config);
        soon(builder.on_disk(place.folder.path().join("logs")).open())
            .await
            .unwrap()
    };
    let manager = open().await;
    let held = soon(manager.start("python3")).await.unwrap();
    assert_eq!(run(&held, "n = 6").await, "");
    soon(manager.close(AtClose::LeaveKernels)).await.unwrap();

    // The first manager and its kernel are still here.
    let next = open().await;
    let kernel = next.get(held.id()).expect("the kernel is found again");
    assert_eq!(soon(kernel.run("print(n * 7)")).await.unwrap().text(), "42\n");
    let refused = held.handle().interrupt().await.unwrap_err();
    assert!(matches!(refused, kernelmux::ProviderError::Closed), "{refused}");
    soon(next.close(AtClose::EndKernels)).await.unwrap();
    drop(manager);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_manager_kills_its_kernels_only_if_asked_to() {
    for end in [false, true] {
        let Some(place) = Place::new() else { return };
        let options = ManagerOptions::default().with_end_kernels_on_drop(end);
        let manager = place.manager(options).await;
        let kernel = soon(manager.start(StartRequest::new("python3"))).await.unwrap();
        let pid: u32 = run(&kernel, "import os; print(os.getpid())")
            .await
            .trim()
            .parse()
            .unwrap();
        let is_alive = || Path::new(&format!("/proc/{pid}/cwd")).exists();
        assert!(is_alive());
        drop((kernel, manager));
        if end {
            let gone = async {
                while std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            soon(gone).await;
        } else {
            assert!(is_alive());
            let manager = place.manager(ManagerOptions::default()).await;
            assert_eq!(soon(manager.restore()).await, 1);
            soon(manager.close(AtClose::EndKernels)).await.unwrap();
        }
    }
}
