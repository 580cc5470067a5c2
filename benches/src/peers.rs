//! The measured gateways, each in its own process.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::setup::{Setup, binary};
use crate::wire::Address;
use crate::{Result, process};

/// A running gateway. Dropping it ends the gateway and its kernels.
pub struct Gateway {
    child: Child,
    /// The gateway's address.
    pub address: Address,
}

const TOKEN: &str = "bench-token";
const START_DEADLINE: Duration = Duration::from_secs(30);
const END_DEADLINE: Duration = Duration::from_secs(15);

impl Gateway {
    /// Starts kernelmux-gateway with a data folder of this name.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn kernelmux(setup: &Setup, data: &str) -> Result<Self> {
        Self::kernelmux_with(setup, data, &[]).await
    }

    /// Starts kernelmux-gateway with additional flags.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn kernelmux_with(setup: &Setup, data: &str, flags: &[&str]) -> Result<Self> {
        let port = free_port()?;
        let mut command = setup.command(binary("kernelmux-gateway")?);
        command
            .args(["--ip", "127.0.0.1", "--token", TOKEN, "--log", "error"])
            .args(["--port", &port.to_string(), "--data-dir"])
            .arg(setup.folder().join(data))
            .args(flags);
        Self::start(command, port, TOKEN).await
    }

    /// Starts Jupyter Kernel Gateway.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn kernel_gateway(setup: &Setup) -> Result<Self> {
        let port = free_port()?;
        let mut command = setup.command(setup.python());
        command.args([
            "-m",
            "kernel_gateway",
            "--KernelGatewayApp.ip=127.0.0.1",
            "--log-level=ERROR",
        ]);
        command.arg(format!("--KernelGatewayApp.port={port}"));
        Self::start(command, port, "").await
    }

    /// Starts jupyter_server with its own kernels.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn jupyter_server(setup: &Setup) -> Result<Self> {
        let port = free_port()?;
        let mut command = setup.command(setup.python());
        command.args([
            "-m",
            "jupyter_server",
            "--no-browser",
            "--allow-root",
            "--log-level=ERROR",
        ]);
        command.args(["--ServerApp.ip=127.0.0.1", "--ServerApp.port_retries=0"]);
        command.arg(format!("--ServerApp.port={port}"));
        command.arg(format!("--IdentityProvider.token={TOKEN}"));
        command.arg(format!("--ServerApp.root_dir={}", setup.folder().display()));
        Self::start(command, port, TOKEN).await
    }

    /// Starts a program that listens on the port.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn start(mut command: Command, port: u16, token: &str) -> Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let address = Address {
            port,
            token: token.to_owned(),
        };
        let mut gateway = Self { child, address };
        let begun = Instant::now();
        while let Err(error) = gateway.address.call("GET", "/api", "").await {
            if let Some(status) = gateway.child.try_wait()? {
                return Err(format!("{command:?}: {status}").into());
            }
            if begun.elapsed() > START_DEADLINE {
                return Err(format!("{command:?} does not answer: {error}").into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(gateway)
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The CPU time so far.
    ///
    /// # Errors
    /// If the process's counters in `/proc` cannot be read.
    pub fn cpu(&self) -> Result<Duration> {
        process::cpu(self.pid())
    }

    /// Kills the gateway. The kernels of kernelmux keep running; those of the other gateways end with their parent.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Ends the gateway with its kernels, and waits until it has ended.
    ///
    /// # Errors
    /// If it does not end.
    pub fn end(mut self) -> Result<()> {
        self.interrupt()
    }

    fn interrupt(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        let pid = i32::try_from(self.pid())?;
        kill_process(Pid::from_raw(pid).ok_or("no process")?, Signal::INT)?;
        let begun = Instant::now();
        while begun.elapsed() < END_DEADLINE {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err("the gateway does not end".into())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Err(error) = self.interrupt() {
            eprintln!("{error}");
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Finds a free port.
///
/// # Errors
/// If there is none.
pub fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
