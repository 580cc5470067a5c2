use std::fmt;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::{Notify, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::Kernel;
use super::blocking::MAX_THREADS;
use super::control;
use super::dispatch::DynKernel;
use super::error::ServeError;
use super::iopub::IopubPublisher;
#[cfg(unix)]
use super::parent::Parent;
use super::shell::Shells;
use super::sockets::Sockets;
use super::state::KernelState;
use super::stdin::Stdin;
use crate::connection_file::ConnectionInfo;
use crate::content::{ExecutionState, Status};
use crate::handshake;
use crate::message::Message;
use crate::zmq::{RouterReceiver, RouterSender, SocketServer};

/// How long queued messages may take to be written before the sockets close.
const LINGER: Duration = Duration::from_secs(1);

/// How long the starter of the kernel may take to acknowledge the ports (JEP 66).
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// How a kernel was shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shutdown {
    /// Whether the starter of the kernel will start it again.
    pub restart: bool,
}

/// Serves a kernel for the lifetime of its process.
///
/// Reads the connection file, interrupts the kernel on SIGINT, and returns after a `shutdown_request`. If the file has
/// a registration port instead of the five ports (JEP 66), chooses free ports and announces them to the registration
/// port.
///
/// # End of the parent process
///
/// On Unix, the kernel ends with its parent if the environment variable `JPY_PARENT_PID` has a process id other than 1,
/// as under `jupyter_client`. On Linux, the parent is the process with this id if that process started this one,
/// directly or through others. Otherwise, and on other systems, it is the direct parent. The kernel outlives its parent
/// if the variable is 1, as under kernelmux, or has no process id, or if its direct parent is process 1.
///
/// When the parent ends, `serve` calls [`Kernel::shutdown`] and returns. If the process still runs 15 seconds later,
/// for example because it waits for a thread, it exits with code 1.
///
/// # Errors
/// [`ServeError`] if starting the kernel fails. Once the kernel runs, there are no errors.
pub async fn serve(connection_file: impl AsRef<Path>, kernel: impl Kernel) -> Result<Shutdown, ServeError> {
    let info = ConnectionInfo::read(connection_file)?;
    // Installed before binding: once clients can connect, SIGINT must not end the process.
    #[cfg(unix)]
    let mut signals = {
        use tokio::signal::unix::{SignalKind, signal};
        signal(SignalKind::interrupt()).map_err(ServeError::Signal)?
    };
    #[cfg(unix)]
    let parent = Parent::watch();
    let server = Server::bind(info, kernel).await?;
    #[cfg(unix)]
    let interrupts = {
        let handle = server.handle();
        async move {
            while signals.recv().await.is_some() {
                handle.interrupt();
            }
        }
    };
    #[cfg(not(unix))]
    let interrupts = std::future::pending::<()>();
    #[cfg(unix)]
    let orphaned = parent.ended();
    #[cfg(not(unix))]
    let orphaned = std::future::pending::<()>();
    let handle = server.handle();
    let run = server.run();
    tokio::pin!(run);
    tokio::select! {
        shutdown = &mut run => Ok(shutdown),
        () = interrupts => Ok(run.await),
        () = orphaned => {
            tracing::warn!("the parent process has ended; the kernel shuts down");
            control::end_after(&handle.state, false, handle.kernel.shutdown(false)).await;
            Ok(run.await)
        }
    }
}

/// A kernel with bound sockets, ready to [run](Self::run).
pub struct Server {
    kernel: DynKernel,
    state: Arc<KernelState>,
    shell: (RouterSender, RouterReceiver),
    control: (RouterSender, RouterReceiver),
    stdin: RouterReceiver,
    iopub: AbortOnDrop,
    /// Servers of all sockets but iopub.
    servers: Vec<SocketServer>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

impl Server {
    /// Binds the sockets.
    ///
    /// Replaces ports that are 0 with free ones; [`connection_info`](Self::connection_info) returns them. If there is a
    /// registration port, announces the ports to it (JEP 66).
    ///
    /// # Errors
    /// - [`ServeError::Bind`] if a socket cannot be bound, for example because its port is taken.
    /// - [`ServeError::Handshake`] if announcing fails, or the starter does not acknowledge within 30 seconds.
    /// - [`ServeError::Encrypted`] if the connection requires CurveZMQ.
    /// - [`ServeError::Signing`] if the connection's signature scheme is not supported.
    pub async fn bind(mut info: ConnectionInfo, kernel: impl Kernel) -> Result<Self, ServeError> {
        if info.is_encrypted() {
            return Err(ServeError::Encrypted);
        }
        let signer = info.signer()?;
        let Sockets {
            shell,
            control,
            stdin: (stdin_sender, stdin),
            iopub,
            servers,
        } = Sockets::bind(&mut info).await?;
        if let Some(port) = info.registration_port.take() {
            handshake::announce(&info, port, HANDSHAKE_TIMEOUT).await?;
        }
        let session = uuid::Uuid::new_v4().to_string();
        let (iopub, iopub_task) = IopubPublisher::new(iopub, signer.clone(), session.clone());
        let state = Arc::new(KernelState {
            info,
            session,
            signer,
            iopub,
            stdin: Stdin::new(stdin_sender),
            running: Default::default(),
            comms: Default::default(),
            blocking_threads: Arc::new(Semaphore::new(MAX_THREADS)),
            next_count: AtomicU64::new(1),
            history: Mutex::default(),
            shutdown: Mutex::default(),
            ended: Notify::new(),
        });
        Ok(Self {
            kernel: Arc::new(kernel),
            state,
            shell,
            control,
            stdin,
            iopub: AbortOnDrop(iopub_task),
            servers,
        })
    }

    /// Returns the connection info with the bound ports, for clients and for the connection file.
    #[must_use]
    pub fn connection_info(&self) -> &ConnectionInfo {
        &self.state.info
    }

    /// Returns a handle to interrupt or end the kernel from within its program.
    #[must_use]
    pub fn handle(&self) -> ServerHandle {
        ServerHandle {
            kernel: self.kernel.clone(),
            state: self.state.clone(),
        }
    }

    /// Handles requests until the kernel is shut down. Dropping the future ends the kernel at once.
    pub async fn run(self) -> Shutdown {
        let Self {
            kernel,
            state,
            shell,
            control,
            stdin,
            iopub,
            servers,
        } = self;
        let starting = Message::new(Status::new(ExecutionState::Starting), &state.session);
        state.iopub.publish(&starting).await;
        let mut tasks = JoinSet::new();
        let stdin_state = state.clone();
        tasks.spawn(async move { Stdin::receive_all(&stdin_state, stdin).await });
        let (shell_sender, shell_receiver) = shell;
        let shells = Arc::new(Shells::new(kernel.clone(), state.clone(), shell_sender));
        spawn_main_shell(&mut tasks, &shells, shell_receiver);
        spawn_control(&mut tasks, kernel, &state, shells, control);

        state.ended.notified().await;
        let restart = state
            .shutdown
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .unwrap_or(false);
        // Cancels running code, so that only messages in the queue remain to be published. The timeout is for code that
        // blocks its thread, which cannot be cancelled.
        let _ = timeout(LINGER, tasks.shutdown()).await;
        // Blocking code continues to run. This sets the interrupt flag, which it can check.
        state.running.interrupt();
        state.iopub.close();
        // Writes the last replies and published messages, and removes the socket files.
        tokio::join!(iopub.finish(), join_all(servers.into_iter().map(SocketServer::close)));
        Shutdown { restart }
    }
}

fn spawn_main_shell(tasks: &mut JoinSet<()>, shells: &Arc<Shells>, socket: RouterReceiver) {
    let (queue, worker) = shells.main();
    tasks.spawn(shells.clone().receive_all(socket, queue));
    tasks.spawn(worker);
}

fn spawn_control(
    tasks: &mut JoinSet<()>,
    kernel: DynKernel,
    state: &Arc<KernelState>,
    shells: Arc<Shells>,
    (sender, receiver): (RouterSender, RouterReceiver),
) {
    let (queue, worker) = control::worker(kernel.clone(), state.clone(), sender.clone());
    tasks.spawn(control::receive_all(
        kernel,
        state.clone(),
        shells,
        sender,
        receiver,
        queue,
    ));
    tasks.spawn(worker);
}

/// Aborts the publishing task of iopub when dropped.
struct AbortOnDrop(JoinHandle<()>);

impl AbortOnDrop {
    /// Waits until the task has published all messages, up to [`LINGER`].
    async fn finish(mut self) {
        // Does not wait longer for subscribers that do not read.
        let _ = timeout(LINGER, &mut self.0).await;
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Handle to interrupt or end a kernel from within its program.
#[derive(Clone)]
pub struct ServerHandle {
    kernel: DynKernel,
    state: Arc<KernelState>,
}

impl fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerHandle").finish_non_exhaustive()
    }
}

impl ServerHandle {
    /// Interrupts the running requests.
    pub fn interrupt(&self) {
        control::interrupt(&self.kernel, &self.state);
    }

    /// Ends the kernel without calling [`Kernel::shutdown`].
    pub fn shutdown(&self) {
        self.state.end(false);
    }
}
