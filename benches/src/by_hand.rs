//! A kernel started without any gateway, and a client straight on its sockets.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use jupyter_protocol::zmq::{self, DealerReceiver, DealerSender, IopubSubscriber};
use jupyter_protocol::{Channel, ConnectionInfo, Key, Signer, Transport, WireMessage};
use tokio::task::AbortHandle;

use crate::Result;
use crate::peers::free_port;
use crate::setup::Setup;

const DEADLINE: Duration = Duration::from_secs(30);
/// How long between two tries to reach a kernel that starts.
const POLL: Duration = Duration::from_micros(200);

/// A kernel's process; killed when it is dropped.
pub struct Kernel {
    child: Child,
    /// Its connection file.
    pub info: ConnectionInfo,
    file: PathBuf,
}

impl Kernel {
    /// Starts an ipykernel over this transport, with files in this folder.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn python(setup: &Setup, folder: &Path, transport: Transport) -> Result<Self> {
        let mut command = setup.command(setup.python());
        command.args(["-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f"]);
        Self::start(command, folder, transport)
    }

    /// Starts the kernel that floods, over TCP, with files in this folder.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn flood(setup: &Setup, folder: &Path) -> Result<Self> {
        Self::start(setup.flood_kernel(), folder, Transport::Tcp)
    }

    fn start(mut command: Command, folder: &Path, transport: Transport) -> Result<Self> {
        let mut info = ConnectionInfo {
            transport,
            key: Key::random(),
            ..ConnectionInfo::default()
        };
        let channels = [
            Channel::Shell,
            Channel::Iopub,
            Channel::Stdin,
            Channel::Control,
            Channel::Heartbeat,
        ];
        for (channel, number) in channels.into_iter().zip(1..) {
            match transport {
                Transport::Ipc => info.set_port(channel, number),
                _ => info.set_port(channel, free_port()?),
            }
        }
        if transport == Transport::Ipc {
            info.ip = folder.join("k").display().to_string();
        }
        let file = folder.join("connection.json");
        info.write(&file)?;
        command
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(Self {
            child: command.spawn()?,
            info,
            file,
        })
    }

    /// Where its connection file is.
    #[must_use]
    pub fn connection_file(&self) -> &Path {
        &self.file
    }

    /// Waits until its shell can be connected to, trying as fast as possible.
    ///
    /// # Errors
    /// Where that takes too long.
    pub fn wait(&self) -> Result<()> {
        let begun = Instant::now();
        let path: Option<PathBuf> = self.info.socket_path(Channel::Shell);
        loop {
            let open = match &path {
                Some(path) => std::os::unix::net::UnixStream::connect(path).is_ok(),
                None => TcpStream::connect(("127.0.0.1", self.info.shell_port)).is_ok(),
            };
            if open {
                return Ok(());
            }
            if begun.elapsed() > DEADLINE {
                return Err("the kernel that was started by hand does not listen".into());
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client on the kernel's shell, which reads its iopub too as every client does.
pub struct Direct {
    signer: Signer,
    send: DealerSender,
    receive: DealerReceiver,
    iopub: Option<AbortHandle>,
}

impl Direct {
    /// Connects to shell alone.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn to_shell(info: &ConnectionInfo) -> Result<Self> {
        let identity = uuid::Uuid::new_v4().to_string();
        let (send, receive) = zmq::dealer(&info.address(Channel::Shell), &identity, DEADLINE).await?;
        Ok(Self {
            signer: info.signer()?,
            send,
            receive,
            iopub: None,
        })
    }

    /// Connects to shell and iopub.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn connect(info: &ConnectionInfo) -> Result<Self> {
        let mut direct = Self::to_shell(info).await?;
        let mut iopub = IopubSubscriber::connect(&info.address(Channel::Iopub), DEADLINE).await?;
        let signer = direct.signer.clone();
        let reading = tokio::spawn(async move {
            while let Ok(message) = iopub.recv().await {
                if message.verify(&signer).is_err() {
                    return;
                }
            }
        });
        direct.iopub = Some(reading.abort_handle());
        Ok(direct)
    }

    /// Sends on shell.
    ///
    /// # Errors
    /// Where the kernel is gone.
    pub async fn send(&mut self, message: WireMessage) -> Result<()> {
        Ok(self.send.send(message.signed(&self.signer)).await?)
    }

    /// The next message on shell.
    ///
    /// # Errors
    /// Where the kernel is gone, or another one answers.
    pub async fn receive(&mut self) -> Result<WireMessage> {
        let message = self.receive.recv().await?;
        message.verify(&self.signer)?;
        Ok(message)
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        if let Some(iopub) = &self.iopub {
            iopub.abort();
        }
    }
}
