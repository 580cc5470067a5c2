//! A kernel started without a gateway, and a client on its sockets.

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
/// Pause between attempts to connect to a starting kernel.
const POLL: Duration = Duration::from_micros(200);

/// A kernel's process; killed on drop.
pub struct Kernel {
    child: Child,
    /// The content of its connection file.
    pub info: ConnectionInfo,
    file: PathBuf,
}

impl Kernel {
    /// Starts an ipykernel over this transport, with files in this folder.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn python(setup: &Setup, folder: &Path, transport: Transport) -> Result<Self> {
        let mut command = setup.command(setup.python());
        command.args(["-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f"]);
        Self::start(command, folder, transport)
    }

    /// Starts the flood kernel over TCP, with files in this folder.
    ///
    /// # Errors
    /// If it cannot be started.
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

    /// The path of its connection file.
    #[must_use]
    pub fn connection_file(&self) -> &Path {
        &self.file
    }

    /// Waits until its shell accepts connections, and polls at short intervals.
    ///
    /// # Errors
    /// If that takes too long.
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
                return Err("the kernel started by hand does not listen".into());
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

/// A client on a kernel's sockets.
pub struct Direct {
    signer: Signer,
    send: DealerSender,
    receive: DealerReceiver,
    iopub: Option<AbortHandle>,
}

impl Direct {
    /// Connects to shell only.
    ///
    /// # Errors
    /// If the kernel does not answer.
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

    /// Connects to shell and iopub. A task reads iopub, as every client does.
    ///
    /// # Errors
    /// If the kernel does not answer.
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

    /// Sends a message on shell.
    ///
    /// # Errors
    /// If the kernel has ended.
    pub async fn send(&mut self, message: WireMessage) -> Result<()> {
        Ok(self.send.send(message.signed(&self.signer)).await?)
    }

    /// Returns the next message on shell.
    ///
    /// # Errors
    /// If the kernel has ended or the signature is invalid.
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
