//! Tunnels to the sockets of a kernel with an agent. Without a tunnel, only processes in the kernel's pod can connect.

use jupyter_protocol::{Channel, ConnectionInfo, Transport};
use kernel_provider::{KernelHandle, ProviderError};
use kube::Api;
use kube::api::AttachParams;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::{Pod, TestNamespace, pod_name};

/// Connects to the Unix socket that the argument names, and copies standard input and output to and from it.
const BRIDGE: &str = "import os, socket, sys, threading\n\
    stream = socket.socket(socket.AF_UNIX)\n\
    stream.connect(sys.argv[1])\n\
    def send():\n\
    \x20   while data := os.read(0, 65536): stream.sendall(data)\n\
    \x20   os._exit(0)\n\
    threading.Thread(target=send, daemon=True).start()\n\
    while data := stream.recv(65536):\n\
    \x20   while data: data = data[os.write(1, data):]\n";
const CHANNELS: [Channel; 5] = [
    Channel::Shell,
    Channel::Iopub,
    Channel::Stdin,
    Channel::Control,
    Channel::Heartbeat,
];

/// The local ends of a kernel's tunnels. Dropping this closes the tunnels.
pub(crate) struct Tunnels {
    _dir: tempfile::TempDir,
    _tasks: JoinSet<()>,
}

impl TestNamespace {
    /// The connection information of a kernel, with tunnels if it has an agent.
    pub(crate) async fn connection(&self, kernel: &dyn KernelHandle) -> Result<ConnectionInfo, ProviderError> {
        let mut connection = kernel.connection().await?;
        if kernel.agent().is_none() {
            return Ok(connection);
        }
        assert_eq!(connection.transport, Transport::Ipc);
        let dir = tempfile::tempdir().unwrap();
        let prefix = dir.path().join("k").to_string_lossy().into_owned();
        let mut tasks = JoinSet::new();
        for channel in CHANNELS {
            let remote = format!("{}-{}", connection.ip, connection.port(channel));
            let listener = UnixListener::bind(format!("{prefix}-{}", connection.port(channel))).unwrap();
            tasks.spawn(serve(listener, self.pods(), pod_name(kernel), remote));
        }
        connection.ip = prefix;
        self.tunnels.lock().unwrap().push(Tunnels {
            _dir: dir,
            _tasks: tasks,
        });
        Ok(connection)
    }
}

async fn serve(listener: UnixListener, pods: Api<Pod>, pod: String, remote: String) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(bridge(stream, pods.clone(), pod.clone(), remote.clone()));
    }
}

/// Forwards one connection. Ends when either side closes it, or the pod is gone.
async fn bridge(mut local: UnixStream, pods: Api<Pod>, pod: String, remote: String) {
    let params = AttachParams::default().container("kernel").stdin(true).stderr(false);
    let command = ["python3", "-I", "-S", "-c", BRIDGE, &remote];
    let Ok(mut process) = pods.exec(&pod, command, &params).await else {
        return;
    };
    let (stdin, stdout) = (process.stdin().unwrap(), process.stdout().unwrap());
    let mut remote = tokio::io::join(stdout, stdin);
    let _ = tokio::io::copy_bidirectional(&mut local, &mut remote).await;
    process.abort();
}
