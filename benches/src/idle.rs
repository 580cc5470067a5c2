//! A thousand idle kernels in one gateway.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use jupyter_protocol::content::{ExecuteReply, ExecuteRequest, KernelInfoReply, ReplyError};
use jupyter_protocol::kernel::{self, Context, Server};
use jupyter_protocol::{ConnectionInfo, InstalledKernelspec, Kernelspec, Key, Transport};
use kernel_log::{DiskStore, LogOptions, Logs};
use kernel_manager::{Manager, ManagerOptions};
use kernel_provider::{
    AttachError, Exit, ExitCause, Interrupt, KernelHandle, KernelProvider, KernelRecord, LaunchError, LaunchRequest,
    Phase, Progress, ProviderError, Selector, Specs,
};
use kernelmux_gateway::{Access, GatewayOptions};
use tokio::sync::watch;

use crate::measure::{bytes, time};
use crate::peers::{Gateway, free_port};
use crate::report::Section;
use crate::setup::{Setup, binary};
use crate::{Result, process};

const KERNELS: usize = 1_000;
/// Pause before measuring, and duration of the CPU measurement.
const PAUSE: Duration = Duration::from_secs(3);
const MEASURED: Duration = Duration::from_secs(10);
/// Target: bytes of memory per kernel.
const WANTED_BYTES: u64 = 100_000;
const SPEC: &str = "idle";

/// Runs the benchmark.
///
/// # Errors
/// If the kernels or the gateway fail.
pub async fn run(setup: &Setup) -> Result<Section> {
    let mut section = Section::new(
        "Idle kernels",
        format!(
            "{KERNELS} kernels made with `jupyter_protocol::kernel` in one process, all in one gateway: \
             `kernelmux_gateway`'s router and the manager with a log on disk, over a provider that returns prepared \
             connections (so the memory of `provider-local` for each process is not included). CPU is measured from \
             {} s after the last start, over {} s. Memory is the gateway's resident set at the end of this, and its \
             growth per kernel.",
            PAUSE.as_secs(),
            MEASURED.as_secs()
        ),
    );
    section.table(&["", "memory", "per kernel", "CPU"]);
    let folder = setup.folder().join("idle");
    std::fs::create_dir_all(&folder)?;
    let _kernels = Kernels::start(&folder)?;
    let port = free_port()?;
    let mut command = Command::new(binary("kernelmux-benches")?);
    command.args(["child", "idle-gateway", &port.to_string()]).arg(&folder);
    let gateway = Gateway::start(command, port, "").await?;
    let empty = process::memory(gateway.pid())?;
    section.row([
        "gateway without kernels".to_owned(),
        bytes(empty),
        "–".to_owned(),
        "–".to_owned(),
    ]);
    for _ in 0..KERNELS {
        gateway.address.start_kernel(SPEC).await?;
    }
    tokio::time::sleep(PAUSE).await;
    let (cpu_before, begun) = (gateway.cpu()?, Instant::now());
    tokio::time::sleep(MEASURED).await;
    let (cpu, watched) = (gateway.cpu()? - cpu_before, begun.elapsed());
    let full = process::memory(gateway.pid())?;
    let a_kernel = full.saturating_sub(empty) / KERNELS as u64;
    let share = cpu.as_secs_f64() / watched.as_secs_f64();
    section.row([
        format!("with {KERNELS}"),
        bytes(full),
        bytes(a_kernel),
        format!("{} in {}", time(cpu), time(watched)),
    ]);
    section.target(
        "memory per kernel",
        "≤ 100 KB",
        format!("{:.1} KB", a_kernel as f64 / 1e3),
        a_kernel <= WANTED_BYTES,
    );
    section.target(
        "CPU",
        "< 1 % of a core",
        format!("{:.2} %", share * 100.0),
        share < 0.01,
    );
    Ok(section)
}

/// The process that runs all kernels; killed on drop.
struct Kernels(Child);

impl Kernels {
    fn start(folder: &Path) -> Result<Self> {
        let mut command = Command::new(binary("kernelmux-benches")?);
        command
            .args(["child", "idle-kernels"])
            .arg(folder)
            .stdout(Stdio::null());
        let kernels = Self(command.spawn()?);
        let begun = Instant::now();
        while !connection_file(folder, KERNELS - 1).exists() {
            if begun.elapsed() > Duration::from_secs(60) {
                return Err("the kernels did not start within 60 s".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(kernels)
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn connection_file(folder: &Path, index: usize) -> PathBuf {
    folder.join(format!("kernel-{index}.json"))
}

/// Runs all kernels, as a child process.
///
/// # Errors
/// If their sockets cannot be bound.
pub async fn kernels(folder: &Path) -> Result<()> {
    process::allow_open_files()?;
    for index in 0..KERNELS {
        let info = ConnectionInfo {
            transport: Transport::Tcp,
            key: Key::random(),
            ..ConnectionInfo::default()
        };
        let server = Server::bind(info, Idle).await?;
        let info = server.connection_info().clone();
        tokio::spawn(server.run());
        info.write(connection_file(folder, index))?;
    }
    std::future::pending().await
}

/// A kernel that does nothing.
pub(crate) struct Idle;

#[async_trait]
impl kernel::Kernel for Idle {
    fn info(&self) -> KernelInfoReply {
        KernelInfoReply {
            implementation: SPEC.to_owned(),
            ..KernelInfoReply::default()
        }
    }

    async fn execute(
        &self,
        _request: &ExecuteRequest,
        _context: &Context,
    ) -> std::result::Result<ExecuteReply, ReplyError> {
        Ok(ExecuteReply::default())
    }
}

/// Runs the gateway, as a child process.
///
/// # Errors
/// If it cannot listen or open its logs.
pub async fn gateway(port: u16, folder: &Path) -> Result<()> {
    process::allow_open_files()?;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    let logs = Logs::new(Arc::new(DiskStore::open(&folder.join("logs"))?), LogOptions::default())?;
    let provider = Arc::new(PreparedProvider::new(folder)?);
    let manager = Manager::new(vec![provider], logs, ManagerOptions::default());
    let gateway = Arc::new(kernelmux_gateway::Gateway::new(
        manager,
        GatewayOptions::new(Access::Open),
    ));
    let serving = kernelmux_gateway::serve(listener, gateway);
    tokio::select! {
        () = serving => Ok(()),
        ended = tokio::signal::ctrl_c() => Ok(ended?),
    }
}

/// A provider that returns a running kernel for each launch instead of starting a process.
struct PreparedProvider {
    folder: PathBuf,
    specs: watch::Sender<Arc<Specs>>,
    next: AtomicUsize,
    records: Mutex<Vec<KernelRecord>>,
}

impl PreparedProvider {
    fn new(folder: &Path) -> Result<Self> {
        let spec: Kernelspec =
            serde_json::from_value(serde_json::json!({"argv": [SPEC], "display_name": SPEC, "language": SPEC}))?;
        let mut specs = Specs::default();
        let installed = InstalledKernelspec {
            name: SPEC.to_owned(),
            spec,
            resource_dir: folder.to_owned(),
        };
        specs.by_name = BTreeMap::from([(SPEC.to_owned(), installed)]);
        Ok(Self {
            folder: folder.to_owned(),
            specs: watch::Sender::new(Arc::new(specs)),
            next: AtomicUsize::new(0),
            records: Mutex::default(),
        })
    }
}

#[async_trait]
impl KernelProvider for PreparedProvider {
    fn name(&self) -> &str {
        SPEC
    }

    fn specs(&self) -> watch::Receiver<Arc<Specs>> {
        self.specs.subscribe()
    }

    async fn launch(
        &self,
        request: LaunchRequest,
        _progress: Progress,
    ) -> std::result::Result<Arc<dyn KernelHandle>, LaunchError> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        let data = serde_json::json!(connection_file(&self.folder, index));
        let record = KernelRecord::new(SPEC, request.id, request.spec, request.owner, chrono::Utc::now(), data);
        self.records
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(record.clone());
        Ok(Arc::new(PreparedKernel {
            file: connection_file(&self.folder, index),
            record,
            phase: watch::Sender::new(Phase::Running),
        }))
    }

    async fn list(&self, selector: &Selector) -> std::result::Result<Vec<KernelRecord>, ProviderError> {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(records
            .iter()
            .filter(|record| selector.matches(record))
            .cloned()
            .collect())
    }

    async fn attach(&self, record: &KernelRecord) -> std::result::Result<Arc<dyn KernelHandle>, AttachError> {
        Ok(Arc::new(PreparedKernel {
            file: record.data.as_str().unwrap_or_default().into(),
            record: record.clone(),
            phase: watch::Sender::new(Phase::Running),
        }))
    }
}

struct PreparedKernel {
    file: PathBuf,
    record: KernelRecord,
    phase: watch::Sender<Phase>,
}

#[async_trait]
impl KernelHandle for PreparedKernel {
    fn record(&self) -> KernelRecord {
        self.record.clone()
    }

    async fn connection(&self) -> std::result::Result<ConnectionInfo, ProviderError> {
        ConnectionInfo::read(&self.file).map_err(|_| ProviderError::Gone(ExitCause::Deleted))
    }

    fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    async fn output(&self) -> std::result::Result<String, ProviderError> {
        Ok(String::new())
    }

    async fn interrupt(&self) -> std::result::Result<Interrupt, ProviderError> {
        Ok(Interrupt::ByMessage)
    }

    async fn restart(&self, _grace: Duration, _progress: Progress) -> std::result::Result<(), LaunchError> {
        Ok(())
    }

    async fn shutdown(&self, _grace: Duration) -> std::result::Result<Exit, ProviderError> {
        let exit = Exit::new(ExitCause::Requested);
        self.phase.send_replace(Phase::Exited(exit.clone()));
        Ok(exit)
    }
}
