//! The manager with real Python kernels: their lifecycle, and what clients observe of it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::VecDeque;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use kernelmux::ManagerBuilderExt as _;
use kernelmux::local::{LocalOptions, LocalProvider};
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

/// Awaits a future, and fails the test at the deadline.
async fn within_deadline<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("the deadline passed")
}

/// A Python interpreter with ipykernel. Without one, returns `None` to skip the test, and fails it in CI.
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

/// A folder with kernelspecs, among them `python3`, and with the manager's state and logs.
struct TestFolder {
    folder: tempfile::TempDir,
}

impl TestFolder {
    fn new() -> Option<Self> {
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
    fn spec(&self, name: &str, argv: &Value, metadata: &Value) {
        let folder = self.folder.path().join("kernels").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let spec = json!({"argv": argv, "display_name": name, "language": "python", "metadata": metadata});
        std::fs::write(folder.join("kernel.json"), spec.to_string()).unwrap();
    }

    /// Opens the store, after waiting until the tasks of a dropped manager have released it.
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

    /// Opens a manager on the folder.
    async fn manager(&self, options: ManagerOptions) -> Manager {
        let mut config = LocalOptions::new(self.folder.path().join("state"));
        config.search = SearchPath::new([self.folder.path().join("kernels")]);
        let provider = LocalProvider::open(config).await.unwrap();
        let store = within_deadline(self.store()).await;
        let logs = Logs::new(Arc::new(store), LogOptions::default()).unwrap();
        Manager::new(vec![Arc::new(provider)], logs, options)
    }
}

/// Runs code and returns what it wrote to its standard output.
async fn run(kernel: &Arc<Kernel>, code: &str) -> String {
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

    /// Reads the entries for this client up to the first that fits, and returns them.
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
            let block = within_deadline(self.attachment.next())
                .await
                .unwrap()
                .expect("the log has ended");
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

/// An execute request and its `msg_id`.
fn execute(code: &str, session: &str) -> (String, WireMessage) {
    let message = Message::new(ExecuteRequest::new(code), session);
    (message.header.msg_id.clone(), message.to_wire())
}

fn kill(pid: &str, signal: &str) {
    assert!(Command::new("kill").args([signal, pid]).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_can_be_started_used_restarted_and_shut_down() {
    let Some(test_folder) = TestFolder::new() else { return };
    let manager = test_folder.manager(ManagerOptions::default()).await;
    let mut events = manager.events();
    let kernel = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
    assert_eq!(run(&kernel, "x = 6; print(x * 7)").await, "42\n");
    within_deadline(kernel.restart()).await.unwrap();
    assert_eq!(
        run(&kernel, "print('x' in globals())").await,
        "False\n",
        "the restarted process has kept a variable"
    );
    within_deadline(kernel.shutdown()).await.unwrap();
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
    // The log remains readable after the kernel has ended.
    let log = manager.logs().open(kernel.id()).await.unwrap();
    assert!(log.head() > Seq(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_kernel_is_restarted_and_its_clients_are_notified() {
    let Some(test_folder) = TestFolder::new() else { return };
    let manager = test_folder.manager(ManagerOptions::default()).await;
    let kernel = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
    let mut client = Attached::to(&kernel, "client");
    let pid = run(&kernel, "import os; print(os.getpid())").await;
    let mut execution = kernel
        .execute(ExecuteRequest::new("import time; time.sleep(600)"))
        .await
        .unwrap();
    within_deadline(kernel.state().wait_for(|state| *state == ExecutionState::Busy))
        .await
        .unwrap();
    kill(pid.trim(), "-KILL");
    let seen = client
        .until(|entry| content(entry)["execution_state"] == "restarting")
        .await;
    let status = content(seen.last().unwrap());
    assert!(status["reason"].as_str().unwrap().contains("SIGKILL"), "{status}");
    // Clients receive an idle status for the new process although no request was sent to it.
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
        "the synthetic status must have the session of the kernel's own status before it"
    );
    let error = loop {
        match within_deadline(execution.next()).await {
            Some(Ok(_)) => {}
            other => break other,
        }
    };
    assert!(matches!(error, Some(Err(ExecutionError::KernelEnded { .. }))));
    assert_eq!(run(&kernel, "print('again')").await, "again\n");
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_that_keeps_dying_is_dead_with_a_reason() {
    let Some(test_folder) = TestFolder::new() else { return };
    let mut options = ManagerOptions::default();
    options.restart_limit = 1;
    // Counts both deaths towards the limit, regardless of the time between them.
    options.stable_after = Duration::MAX;
    let manager = test_folder.manager(options).await;
    let kernel = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
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
            within_deadline(kernel.state().wait_for(|state| *state == ExecutionState::Idle))
                .await
                .unwrap();
        }
    }
    within_deadline(kernel.state().wait_for(|state| *state == ExecutionState::Dead))
        .await
        .unwrap();
    assert!(
        kernel.execute(ExecuteRequest::new("1")).await.is_err(),
        "a dead kernel must refuse executions"
    );
    within_deadline(kernel.restart()).await.unwrap();
    assert_eq!(run(&kernel, "print('restarted')").await, "restarted\n");

    // The kernel is supervised again, and a requested restart does not count towards the limit.
    within_deadline(kernel.restart()).await.unwrap();
    let dying = kernel
        .execute(ExecuteRequest::new("import os; os._exit(7)"))
        .await
        .unwrap();
    client
        .until(|entry| content(entry)["execution_state"] == "restarting" && content(entry)["reason"].is_string())
        .await;
    drop(dying);
    within_deadline(kernel.state().wait_for(|state| *state == ExecutionState::Idle))
        .await
        .unwrap();
    assert_eq!(run(&kernel, "print('again')").await, "again\n");
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_that_dies_at_each_start_is_restarted_up_to_the_limit() {
    let Some(test_folder) = TestFolder::new() else { return };
    let python = python().unwrap();
    // A kernel that exits at its start while this file exists.
    let fatal = test_folder.folder.path().join("fatal");
    let code = "import os, sys; os.path.exists(sys.argv[2]) and os._exit(3)";
    let script = format!(
        "{code}\nfrom ipykernel.kernelapp import launch_new_instance; launch_new_instance(['-f', sys.argv[1]])"
    );
    test_folder.spec(
        "frail",
        &json!([python, "-c", script, "{connection_file}", fatal]),
        &json!({}),
    );
    let mut options = ManagerOptions::default();
    options.restart_limit = 3;
    let manager = test_folder.manager(options).await;
    let kernel = within_deadline(manager.start(StartRequest::new("frail")))
        .await
        .unwrap();
    let mut client = Attached::to(&kernel, "client");
    std::fs::write(&fatal, "").unwrap();
    drop(
        kernel
            .execute(ExecuteRequest::new("import os; os._exit(4)"))
            .await
            .unwrap(),
    );
    let seen = client.until(|entry| content(entry)["execution_state"] == "dead").await;
    let restarts = seen
        .iter()
        .filter(|entry| content(entry)["execution_state"] == "restarting");
    assert_eq!(restarts.count(), 3);
    assert_eq!(content(seen.last().unwrap())["reason"], "exited with code 3");
    client.client().acknowledge(seen.last().unwrap().seq());
    drop(client);
    // Clients that connect later receive the state too, even after they have acknowledged it.
    for session in ["client", "another"] {
        let mut late = Attached::to(&kernel, session);
        late.until(|entry| content(entry)["execution_state"] == "dead").await;
    }
    std::fs::remove_file(&fatal).unwrap();
    within_deadline(kernel.restart()).await.unwrap();
    assert_eq!(run(&kernel, "print('restarted')").await, "restarted\n");
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_ends_the_cell_and_not_the_kernel() {
    let Some(test_folder) = TestFolder::new() else { return };
    let manager = test_folder.manager(ManagerOptions::default()).await;
    let kernel = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
    run(&kernel, "kept = 1").await;
    let mut execution = kernel
        .execute(ExecuteRequest::new(
            // Another thread prints while the main thread sleeps, because Python drops a KeyboardInterrupt that is
            // raised in a destructor. Without a line end, the output is a single message.
            "import threading, time\n\
             threading.Timer(0.5, lambda: print('now', end='', flush=True)).start()\n\
             time.sleep(600)",
        ))
        .await
        .unwrap();
    let mut error = None;
    while let Some(message) = within_deadline(execution.next()).await {
        match message.unwrap().content {
            Content::Stream(_) => within_deadline(kernel.interrupt()).await.unwrap(),
            Content::Error(content) => error = Some(content.ename),
            _ => {}
        }
    }
    assert_eq!(error.as_deref(), Some("KeyboardInterrupt"));
    assert_eq!(run(&kernel, "print(kept)").await, "1\n");
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_go_to_the_requesting_session_and_output_to_all() {
    let Some(test_folder) = TestFolder::new() else { return };
    let manager = test_folder.manager(ManagerOptions::default()).await;
    let kernel = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
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
    // Bob receives the same output, but neither Alice's input request nor her reply.
    let (mine, request) = execute("'done'", "b");
    bob.client().send(Channel::Shell, request).await.unwrap();
    // All output of Alice's cell has arrived once Bob's cell is idle. The reply alone is not enough: it uses another
    // socket.
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
    within_deadline(kernel.connections().wait_for(|connections| *connections == 1))
        .await
        .unwrap();
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconnecting_session_resumes_after_its_acknowledgement() {
    let Some(test_folder) = TestFolder::new() else { return };
    let manager = test_folder.manager(ManagerOptions::default()).await;
    let kernel = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
    let mut first = Attached::to(&kernel, "laptop");
    let (id, request) = execute("for i in range(1000): print(i, flush=True)", "laptop");
    first.client().send(Channel::Shell, request).await.unwrap();
    let seen = first.until(|entry| msg_type(entry) == "stream").await;
    let acknowledged = seen.last().unwrap().seq();
    first.client().acknowledge(acknowledged);
    let second = kernel.attach("laptop");
    within_deadline(first.attachment.superseded()).await;
    drop(first);
    assert_eq!(
        *kernel.connections().borrow(),
        1,
        "a superseded attachment must not be counted"
    );
    drop(second);
    within_deadline(kernel.state().wait_for(|state| *state == ExecutionState::Idle))
        .await
        .unwrap();
    let mut again = Attached::to(&kernel, "laptop");
    // The idle status is the last message on iopub. The reply uses another socket and may be earlier.
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
    assert!(text == expected, "output is missing or repeated: {text}");
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_ten_times_the_kernels_queue_loses_nothing() {
    let Some(test_folder) = TestFolder::new() else { return };
    let manager = test_folder.manager(ManagerOptions::default()).await;
    let kernel = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
    let text = run(&kernel, "for i in range(10_000): print(i, flush=True)").await;
    let expected: String = (0..10_000).map(|i| format!("{i}\n")).collect();
    assert!(text == expected, "{} of {} bytes arrived", text.len(), expected.len());
    // The setup request behind this leaves no trace in the user's namespace and history.
    assert_eq!(
        run(&kernel, "print([name for name in dir() if name[0] != '_'], In)").await,
        "['In', 'Out', 'exit', 'get_ipython', 'i', 'open', 'quit'] ['', 'for i in range(10_000): print(i, flush=True)', \"print([name for name in dir() if name[0] != '_'], In)\"]\n"
    );
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn kernels_outlive_the_manager_and_their_logs_continue() {
    let Some(test_folder) = TestFolder::new() else { return };
    let manager = test_folder.manager(ManagerOptions::default()).await;
    let kernel = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
    let id = kernel.id();
    run(&kernel, "kept = 'kept'").await;
    let (epoch, head) = (kernel.log().epoch(), kernel.log().head());
    within_deadline(manager.close(AtClose::LeaveKernels)).await.unwrap();
    drop((kernel, manager));

    let manager = reopen(&test_folder).await;
    assert_eq!(within_deadline(manager.restore()).await, 1);
    let kernel = manager.get(id).unwrap();
    assert_eq!(kernel.log().epoch(), epoch);
    assert_eq!(run(&kernel, "print(kept)").await, "kept\n");
    let mut reader = kernel.log().reader(head);
    // The log has an entry for the time without a recorder.
    let gap = loop {
        let block = within_deadline(reader.next()).await.unwrap().unwrap();
        if let Some(entry) = block.entries().find(|entry| msg_type(entry) == LIFECYCLE) {
            break content(&entry);
        }
    };
    assert_eq!(gap["event"], "attached");
    assert!(gap["unrecorded_ms"].is_i64());
    within_deadline(kernel.state().wait_for(|state| *state == ExecutionState::Idle))
        .await
        .unwrap();
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}

/// Opens a new manager on the folder once the previous one has released it.
async fn reopen(test_folder: &TestFolder) -> Manager {
    let lock = test_folder.folder.path().to_owned();
    within_deadline(async move {
        while !is_free(&lock) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    test_folder.manager(ManagerOptions::default()).await
}

/// Whether the log database can be opened. The previous user releases it on a background thread.
fn is_free(folder: &Path) -> bool {
    FjallStore::open(&folder.join("logs")).is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_and_unique_ids_are_enforced_during_concurrent_starts() {
    let Some(test_folder) = TestFolder::new() else { return };
    let mut options = ManagerOptions::default();
    options.max_kernels = Some(3);
    options.max_kernels_per_owner = Some(1);
    let manager = test_folder.manager(options).await;
    let request = |owner: &str| {
        let mut request = StartRequest::new("python3");
        request.owner = Some(owner.to_owned());
        request
    };
    let id = KernelId::random();
    let (mut named, mut twin) = (request("ann"), request("bob"));
    (named.id, twin.id) = (Some(id), Some(id));
    let (first, second) = within_deadline(async { tokio::join!(manager.start(named), manager.start(twin)) }).await;
    let (kernel, refused) = if first.is_ok() {
        (first, second)
    } else {
        (second, first)
    };
    let kernel = kernel.unwrap();
    assert!(matches!(refused.map(|_| ()), Err(StartError::Duplicate(twice)) if twice == id));
    let owner = kernel.owner().unwrap().to_owned();
    let error = within_deadline(manager.start(request(&owner)))
        .await
        .map(|_| ())
        .unwrap_err();
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
    within_deadline(manager.start(request("cid"))).await.unwrap();
    within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
    let error = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .map(|_| ())
        .unwrap_err();
    assert!(
        matches!(error, StartError::LimitReached { limit: 3, owner: None }),
        "{error}"
    );
    within_deadline(kernel.shutdown()).await.unwrap();
    within_deadline(manager.start(request(&owner))).await.unwrap();
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
    let error = within_deadline(manager.start(request("dan")))
        .await
        .map(|_| ())
        .unwrap_err();
    assert!(matches!(error, StartError::ShuttingDown), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_start_reports_the_cause_and_leaves_no_kernel() {
    let Some(test_folder) = TestFolder::new() else { return };
    test_folder.spec(
        "broken",
        &json!(["sh", "-c", "echo no licence found >&2; exit 3"]),
        &json!({}),
    );
    test_folder.spec("missing", &json!(["/no/such/interpreter"]), &json!({}));
    let manager = test_folder.manager(ManagerOptions::default()).await;
    for (spec, expected) in [
        ("broken", &["exited with code 3", "no licence found"][..]),
        ("missing", &["/no/such/interpreter"]),
        ("unheard-of", &["unheard-of", "python3"]),
    ] {
        let error = within_deadline(manager.start(StartRequest::new(spec)))
            .await
            .map(|_| ())
            .unwrap_err()
            .to_string();
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
        assert!(manager.list().is_empty());
    }
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn shutting_down_the_manager_cancels_pending_starts() {
    let Some(test_folder) = TestFolder::new() else { return };
    let pid_file = test_folder.folder.path().join("pid");
    let script = format!("echo $$ >{0}.new; mv {0}.new {0}; exec sleep 600", pid_file.display());
    test_folder.spec("mute", &json!(["sh", "-c", script]), &json!({}));
    let manager = test_folder.manager(ManagerOptions::default()).await;
    let starting = tokio::spawn({
        let manager = manager.clone();
        async move { manager.start(StartRequest::new("mute")).await.map(drop) }
    });
    let pid = within_deadline(async {
        loop {
            match std::fs::read_to_string(&pid_file) {
                Ok(pid) => return pid.trim().to_owned(),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    })
    .await;
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
    let error = within_deadline(starting).await.unwrap().unwrap_err();
    assert!(matches!(error, StartError::ShuttingDown), "{error}");
    let left = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    assert!(!left.contains("sleep"), "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_idle_and_unconnected_kernels_are_culled() {
    let Some(test_folder) = TestFolder::new() else { return };
    let python = python().unwrap();
    let argv = json!([python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]);
    test_folder.spec("kept", &argv, &json!({"cull_idle_timeout": 0}));
    let mut options = ManagerOptions::default();
    options.culling = Culling::default();
    // Longer than a client needs to attach.
    options.culling.idle_timeout = Duration::from_secs(5);
    options.culling.interval = Duration::from_millis(100);
    let manager = test_folder.manager(options).await;
    let mut events = manager.events();
    let idle = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
    let watched = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
    let _client = watched.attach("client");
    let busy = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
    let mut running = busy
        .execute(ExecuteRequest::new("import time; time.sleep(600)"))
        .await
        .unwrap();
    // The execution stays attached until the kernel is known to be busy.
    within_deadline(running.next()).await.unwrap().unwrap();
    within_deadline(busy.state().wait_for(|state| *state == ExecutionState::Busy))
        .await
        .unwrap();
    drop(running);
    let kept = within_deadline(manager.start(StartRequest::new("kept"))).await.unwrap();
    let culled = within_deadline(async {
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
    let dead = within_deadline(async {
        loop {
            let block = reader
                .next()
                .await
                .unwrap()
                .expect("the log has ended without the dead status");
            let mut contents = block.entries().map(|entry| content(&entry));
            if let Some(dead) = contents.find(|content| content["execution_state"] == "dead") {
                return dead;
            }
        }
    })
    .await;
    let reason = dead["reason"].as_str().unwrap();
    assert!(reason.starts_with("culled: idle for "), "{reason}");
    let mut left: Vec<_> = manager.list().iter().map(|kernel| kernel.id()).collect();
    let mut expected = vec![watched.id(), busy.id(), kept.id()];
    left.sort();
    expected.sort();
    assert_eq!(left, expected);
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn kernels_that_do_not_respond_at_a_restore_delay_no_other_kernel() {
    let Some(test_folder) = TestFolder::new() else { return };
    let manager = test_folder.manager(ManagerOptions::default()).await;
    let mut pids = Vec::new();
    for _ in 0..3 {
        let kernel = within_deadline(manager.start(StartRequest::new("python3")))
            .await
            .unwrap();
        let pid = run(&kernel, "import os; print(os.getpid())").await.trim().to_owned();
        pids.push((kernel.id(), pid));
    }
    within_deadline(manager.close(AtClose::LeaveKernels)).await.unwrap();
    drop(manager);
    let [(one, _), (two, second), (three, third)] = &pids[..] else {
        panic!("expected three kernels")
    };
    kill(second, "-STOP");
    kill(third, "-STOP");

    let manager = test_folder.manager(ManagerOptions::default()).await;
    assert_eq!(
        within_deadline(manager.restore()).await,
        3,
        "kernels that do not respond must be listed too"
    );
    let kernel = |id: &KernelId| manager.get(*id).unwrap();
    assert_eq!(run(&kernel(one), "print('served')").await, "served\n");
    assert_eq!(*kernel(two).state().borrow(), ExecutionState::Busy);
    // An unresponsive kernel can be shut down, and can be used once it responds again.
    within_deadline(kernel(three).shutdown()).await.unwrap();
    assert!(manager.get(*three).is_none());
    kill(second, "-CONT");
    assert_eq!(run(&kernel(two), "print('back')").await, "back\n");
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}

/// Prints many lines, each as a separate message.
const FLOOD: &str = "for i in range(60_000):\n    print(i, flush=True)";

#[tokio::test(flavor = "multi_thread")]
async fn a_python_kernel_has_exactly_the_arguments_of_its_kernelspec() {
    let Some(test_folder) = TestFolder::new() else { return };
    let manager = test_folder.manager(ManagerOptions::default()).await;
    let kernel = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
    let argv = run(&kernel, "import sys; print(len(sys.argv), sys.argv[1:2])").await;
    assert_eq!(argv, "3 ['-f']\n");
    // Many notebooks parse the kernel's arguments.
    let parse = "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('-f')\n\
                 print(parser.parse_args().f == sys.argv[2])";
    assert_eq!(run(&kernel, parse).await, "True\n");
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_kernel_detects_jupyter_and_does_not_watch_its_parent() {
    let Some(test_folder) = TestFolder::new() else { return };
    let manager = test_folder.manager(ManagerOptions::default()).await;
    let kernel = within_deadline(manager.start(StartRequest::new("python3")))
        .await
        .unwrap();
    let look = "import os, threading\nprint('JPY_PARENT_PID' in os.environ, \
                [thread for thread in threading.enumerate() if 'Poller' in type(thread).__name__])";
    assert_eq!(run(&kernel, look).await, "True []\n");
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn startup_code_of_profiles_and_kernelspecs_runs() {
    let Some(test_folder) = TestFolder::new() else { return };
    let python = python().unwrap();
    let file = test_folder.folder.path().join("start.py");
    std::fs::write(&file, "from_file = 'file'\n").unwrap();
    let profile = test_folder.folder.path().join("ipython").join("profile_default");
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
    test_folder.spec(
        "code",
        &with("--IPKernelApp.code_to_run=from_argv = 'argv'"),
        &json!({}),
    );
    test_folder.spec(
        "file",
        &with(&format!("--IPKernelApp.file_to_run={}", file.display())),
        &json!({}),
    );
    let manager = test_folder.manager(ManagerOptions::default()).await;
    for (spec, expected) in [
        ("python3", "from_profile"),
        ("code", "from_argv"),
        ("file", "from_file"),
    ] {
        let mut request = StartRequest::new(spec);
        if spec == "python3" {
            let ipython = test_folder.folder.path().join("ipython");
            request
                .env
                .insert("IPYTHONDIR".to_owned(), ipython.to_str().unwrap().to_owned());
        }
        let kernel = within_deadline(manager.start(request)).await.unwrap();
        let printed = run(&kernel, &format!("print({expected})")).await;
        assert_eq!(printed.trim(), expected.trim_start_matches("from_"));
    }
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_kernel_behind_a_wrapper_starts_and_loses_no_output() {
    use std::os::unix::fs::PermissionsExt as _;

    let Some(test_folder) = TestFolder::new() else { return };
    let wrapper = test_folder.folder.path().join("wrapper.sh");
    // Without quotes, as in many wrappers on clusters.
    std::fs::write(
        &wrapper,
        format!("#!/bin/sh\nexec {} $@\n", python().unwrap().display()),
    )
    .unwrap();
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).unwrap();
    test_folder.spec(
        "wrapped",
        &json!([wrapper, "-m", "ipykernel_launcher", "-f", "{connection_file}"]),
        &json!({}),
    );
    let manager = test_folder.manager(ManagerOptions::default()).await;
    let kernel = within_deadline(manager.start(StartRequest::new("wrapped")))
        .await
        .unwrap();
    let output = kernel.handle().output().await.unwrap();
    assert!(!output.contains("Error"), "{output}");
    for _ in 0..2 {
        let printed = run(&kernel, FLOOD).await;
        assert!(printed.lines().eq((0..60_000).map(|i| i.to_string())));
        // The setup has to be repeated for the new process.
        within_deadline(kernel.restart()).await.unwrap();
    }
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_the_subscriber_leaves_no_trace_in_the_kernel() {
    let Some(test_folder) = TestFolder::new() else { return };
    let python = python().unwrap();
    test_folder.spec(
        "untouched",
        &json!([python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]),
        &json!({"kernelmux": {"wait_for_subscriber": false}}),
    );
    let manager = test_folder.manager(ManagerOptions::default()).await;
    let look = "import sys\nshell = get_ipython()\n\
                print(shell.execution_count, In, Out, repr(_), repr(__), repr(_i), shell.history_manager.input_hist_raw)\n\
                print(sorted(globals()))\nprint(sorted(sys.modules))";
    let mut seen = Vec::new();
    for spec in ["untouched", "python3"] {
        let kernel = within_deadline(manager.start(StartRequest::new(spec))).await.unwrap();
        seen.push(run(&kernel, look).await);
        kernel.log().flushed().await;
        // The log, and so what clients receive, does not contain the setup request.
        let mut reader = kernel.log().reader(Seq(0));
        let mut last = Seq(0);
        while last < kernel.log().head() {
            for entry in within_deadline(reader.next()).await.unwrap().unwrap().entries() {
                last = entry.seq();
                let message = entry.message();
                let text = String::from_utf8_lossy(&message.parts_and_buffers().concat()).into_owned();
                assert!(!text.contains("XPUB_NODROP") && !text.contains("setup"), "{text}");
            }
        }
    }
    assert_eq!(seen[0], seen[1]);
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn kernelspec_names_match_as_in_jupyter_client_and_broken_ones_have_a_reason() {
    let Some(test_folder) = TestFolder::new() else { return };
    test_folder.spec(
        "ROOT",
        &json!([python().unwrap(), "-m", "ipykernel_launcher", "-f", "{connection_file}"]),
        &json!({}),
    );
    test_folder.spec("broken", &json!("python"), &json!({}));
    let manager = test_folder.manager(ManagerOptions::default()).await;
    for (name, expected) in [
        ("ROOT", "root"),
        ("Root", "root"),
        ("root", "root"),
        ("python", "python3"),
    ] {
        let kernel = within_deadline(manager.start(StartRequest::new(name))).await.unwrap();
        assert_eq!(kernel.spec_name(), expected);
        within_deadline(kernel.shutdown()).await.unwrap();
    }
    let file = test_folder.folder.path().join("kernels/broken/kernel.json");
    let reason = &manager.broken_specs()["broken"];
    assert!(
        reason.contains(file.to_str().unwrap()) && reason.contains("argv"),
        "{reason}"
    );
    let error = within_deadline(manager.start(StartRequest::new("Broken")))
        .await
        .err()
        .unwrap();
    assert!(
        matches!(&error, StartError::BrokenSpec { reason: reported, .. } if reported == reason),
        "{error}"
    );
    within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_releases_the_folders_and_the_next_manager_finds_the_kernel() {
    let Some(folder) = TestFolder::new() else { return };
    let state = folder.folder.path().join("state");
    let open = async || {
        let mut config = LocalOptions::new(&state);
        config.search = SearchPath::new([folder.folder.path().join("kernels")]);
        let builder = Manager::builder().local_with(config);
        within_deadline(builder.on_disk(folder.folder.path().join("logs")).open())
            .await
            .unwrap()
    };
    let manager = open().await;
    let held = within_deadline(manager.start("python3")).await.unwrap();
    assert_eq!(run(&held, "n = 6").await, "");
    within_deadline(manager.close(AtClose::LeaveKernels)).await.unwrap();

    // The first manager and its kernel are still here.
    let next = open().await;
    let kernel = next.get(held.id()).expect("the kernel is found again");
    assert_eq!(
        within_deadline(kernel.run("print(n * 7)")).await.unwrap().text(),
        "42\n"
    );
    let refused = held.handle().interrupt().await.unwrap_err();
    assert!(matches!(refused, kernelmux::ProviderError::Closed), "{refused}");
    within_deadline(next.close(AtClose::EndKernels)).await.unwrap();
    drop(manager);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_manager_kills_its_kernels_only_if_asked_to() {
    for end in [false, true] {
        let Some(folder) = TestFolder::new() else { return };
        let options = ManagerOptions::default().with_end_kernels_on_drop(end);
        let manager = folder.manager(options).await;
        let kernel = within_deadline(manager.start(StartRequest::new("python3")))
            .await
            .unwrap();
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
            within_deadline(gone).await;
        } else {
            assert!(is_alive());
            let manager = folder.manager(ManagerOptions::default()).await;
            assert_eq!(within_deadline(manager.restore()).await, 1);
            within_deadline(manager.close(AtClose::EndKernels)).await.unwrap();
        }
    }
}
