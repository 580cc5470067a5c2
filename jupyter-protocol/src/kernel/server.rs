use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::Kernel;
use super::control;
use super::dispatch::DynKernel;
use super::error::ServeError;
use super::input::Input;
use super::iopub::Iopub;
use super::shared::Shared;
use super::shell::Shells;
use super::sockets::Sockets;
use crate::connection_file::ConnectionInfo;
use crate::content::{ExecutionState, Status};
use crate::handshake;
use crate::message::Message;
use crate::zmq::{Listening, RouterReceiver, RouterSender};

/// How long the last messages have to leave before the sockets are closed.
const LINGER: Duration = Duration::from_secs(1);

/// How long a starter may take to acknowledge the ports (JEP 66).
const HANDSHAKE: Duration = Duration::from_secs(30);

/// Why a kernel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shutdown {
    /// Whether it is to be started again, by whoever started it.
    pub restart: bool,
}

/// Serves a kernel as its process: reads the connection file that the process was started with, interrupts at SIGINT,
/// and ends at a `shutdown_request`.
///
/// Where the file names a registration port in place of the five ports, the ports are chosen and announced there
/// (JEP 66).
///
/// # Errors
/// [`ServeError`] where the kernel could not be started; once it runs, there is none.
pub async fn serve(connection_file: impl AsRef<Path>, kernel: impl Kernel) -> Result<Shutdown, ServeError> {
    let info = ConnectionInfo::read(connection_file)?;
    // Before there are sockets: once they can be connected to, an interrupt must not end the process.
    #[cfg(unix)]
    let mut signals = {
        use tokio::signal::unix::{SignalKind, signal};
        signal(SignalKind::interrupt()).map_err(ServeError::Signal)?
    };
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
    let run = server.run();
    tokio::pin!(run);
    tokio::select! {
        shutdown = &mut run => Ok(shutdown),
        () = interrupts => Ok(run.await),
    }
}

/// A kernel whose sockets are bound, to be [run](Self::run).
pub struct Server {
    kernel: DynKernel,
    shared: Arc<Shared>,
    shell: (RouterSender, RouterReceiver),
    control: (RouterSender, RouterReceiver),
    stdin: RouterReceiver,
    iopub: AbortOnDrop,
    /// What the sockets but iopub's are open by.
    listening: Vec<Listening>,
}

impl Server {
    /// Binds the sockets. Ports that are 0 are chosen: [`connection_info`](Self::connection_info) tells which. Where
    /// there is a registration port, they are announced there (JEP 66).
    ///
    /// # Errors
    /// [`ServeError::Bind`] where a port is taken, [`ServeError::Handshake`] where the starter does not acknowledge
    /// within 30 seconds, [`ServeError::Encrypted`] and [`ServeError::Signing`] where the connection cannot be served.
    pub async fn bind(mut info: ConnectionInfo, kernel: impl Kernel) -> Result<Self, ServeError> {
        if info.is_encrypted() {
            return Err(ServeError::Encrypted);
        }
        let signer = info.signer()?;
        let Sockets {
            shell,
            control,
            stdin: (ask, stdin),
            iopub,
            listening,
        } = Sockets::bind(&mut info).await?;
        if let Some(port) = info.registration_port.take() {
            handshake::announce(&info, port, HANDSHAKE).await?;
        }
        let session = uuid::Uuid::new_v4().to_string();
        let (iopub, iopub_task) = Iopub::new(iopub, signer.clone(), session.clone());
        let shared = Arc::new(Shared {
            info,
            session,
            signer,
            iopub,
            input: Input::new(ask),
            running: Default::default(),
            comms: Default::default(),
            next_count: AtomicU64::new(1),
            history: Mutex::default(),
            shutdown: Mutex::default(),
            shut_down: Notify::new(),
        });
        Ok(Self {
            kernel: Arc::new(kernel),
            shared,
            shell,
            control,
            stdin,
            iopub: AbortOnDrop(iopub_task),
            listening,
        })
    }

    /// Where the kernel listens, for clients and for its connection file.
    #[must_use]
    pub fn connection_info(&self) -> &ConnectionInfo {
        &self.shared.info
    }

    /// Interrupts and ends the kernel from within its program.
    #[must_use]
    pub fn handle(&self) -> ServerHandle {
        ServerHandle {
            kernel: self.kernel.clone(),
            shared: self.shared.clone(),
        }
    }

    /// Handles requests until the kernel is shut down. Dropped, it ends the kernel at once.
    pub async fn run(self) -> Shutdown {
        let Self {
            kernel,
            shared,
            shell,
            control,
            stdin,
            iopub,
            listening,
        } = self;
        let starting = Message::new(Status::new(ExecutionState::Starting), &shared.session);
        shared.iopub.publish(&starting).await;
        let mut tasks = JoinSet::new();
        let stdin_shared = shared.clone();
        tasks.spawn(async move { Input::receive_all(&stdin_shared, stdin).await });
        let (shell_sender, shell_receiver) = shell;
        let shells = Arc::new(Shells::new(kernel.clone(), shared.clone(), shell_sender));
        spawn_main_shell(&mut tasks, &shells, shell_receiver);
        spawn_control(&mut tasks, kernel, &shared, shells, control);

        shared.shut_down.notified().await;
        let restart = shared
            .shutdown
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .unwrap_or(false);
        // Running code is given up here; then nobody publishes any more, and what waits to be published is.
        // A kernel that blocks its thread cannot be waited for.
        let _ = timeout(LINGER, tasks.shutdown()).await;
        shared.iopub.close();
        // The last replies and what was published have left then, and the sockets' files are gone.
        tokio::join!(iopub.finish(), join_all(listening.into_iter().map(Listening::close)));
        Shutdown { restart }
    }
}

fn spawn_main_shell(tasks: &mut JoinSet<()>, shells: &Arc<Shells>, socket: RouterReceiver) {
    let (queue, work) = shells.main();
    tasks.spawn(shells.clone().receive_all(socket, queue));
    tasks.spawn(work);
}

fn spawn_control(
    tasks: &mut JoinSet<()>,
    kernel: DynKernel,
    shared: &Arc<Shared>,
    shells: Arc<Shells>,
    (sender, receiver): (RouterSender, RouterReceiver),
) {
    let (queue, work) = control::worker(kernel.clone(), shared.clone(), sender.clone());
    tasks.spawn(control::receive_all(
        kernel,
        shared.clone(),
        shells,
        sender,
        receiver,
        queue,
    ));
    tasks.spawn(work);
}

struct AbortOnDrop(JoinHandle<()>);

impl AbortOnDrop {
    async fn finish(mut self) {
        // Subscribers that take nothing are not waited for any longer.
        let _ = timeout(LINGER, &mut self.0).await;
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Interrupts and ends a kernel from within its program.
#[derive(Clone)]
pub struct ServerHandle {
    kernel: DynKernel,
    shared: Arc<Shared>,
}

impl ServerHandle {
    /// Interrupts what runs.
    pub fn interrupt(&self) {
        control::interrupt(&self.kernel, &self.shared);
    }

    /// Ends the kernel, without asking it.
    pub fn shutdown(&self) {
        self.shared.end(false);
    }
}
