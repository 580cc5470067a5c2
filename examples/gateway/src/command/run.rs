use std::collections::BTreeSet;
use std::error::Error;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kernel_log::{DiskStore, Durability, LogOptions, LogStore, Logs, WhenFull};
use kernel_manager::{AtClose, Manager, ManagerOptions};
use kernel_provider::KernelProvider;
use kernelmux_gateway::{Access, AuditLog, AuditOptions, Gateway, GatewayOptions, TRACES, serve};
use provider_local::{InheritEnv, LocalOptions, LocalProvider};
#[cfg(target_os = "linux")]
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Layered, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use super::announce::announce;
use super::data_dir::{self, DataDir};
use super::flags::{Flags, LogDurability, LogFormat, OnTerminate};
use super::reload::Reloader;
use super::settings::Settings;
#[cfg(feature = "otlp")]
use super::traces::Traces;

/// How long the gateway waits for its kernels to end before it exits.
const STOP_DEADLINE: Duration = Duration::from_secs(60);
/// How long disconnecting from the kernels may take.
const LEAVE_DEADLINE: Duration = Duration::from_secs(45);
/// The wanted limit of open files: a kernel needs about five, a client one.
const OPEN_FILES: u64 = 65_536;

/// What the log's lines come from.
type Filtered = Layered<reload::Layer<EnvFilter, Registry>, Registry>;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Runs the gateway until a signal ends it.
pub(super) fn run(settings: Box<Settings>, args: Vec<OsString>) -> Result<()> {
    let flags = &settings.flags;
    let (filter, filter_handle) = reload::Layer::new(flags.log_filter()?);
    let lines = tracing_subscriber::fmt::layer::<Filtered>()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        // A line that cannot be written would be reported with `eprintln!`, which panics for the same reason.
        .log_internal_errors(false);
    let lines = match flags.log_format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let lines = lines.with_filter(filter_fn(|metadata| metadata.target() != TRACES));
    let log = tracing_subscriber::registry().with(filter).with(lines);
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    #[cfg(feature = "otlp")]
    let traces = flags
        .otlp_endpoint
        .as_deref()
        .map(|endpoint| Traces::start(endpoint, runtime.handle()))
        .transpose()
        .map_err(|error| format!("--otlp-endpoint: {error}"))?;
    #[cfg(feature = "otlp")]
    log.with(traces.as_ref().map(Traces::layer)).init();
    #[cfg(not(feature = "otlp"))]
    if flags.otlp_endpoint.is_some() {
        let missing = "--otlp-endpoint: this gateway was built without its feature otlp; build it with --features otlp";
        return Err(missing.into());
    } else {
        log.init();
    }
    for warning in &settings.warnings {
        warn!("{warning}");
    }
    raise_open_files();
    keep_memory_private();
    // Separate threads read iopub, so that clients' traffic cannot make a kernel drop output.
    let recorders = Builder::new_multi_thread()
        .thread_name("recorder")
        .enable_all()
        .build()?;
    let on_terminate = flags.on_terminate;
    let ended = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let hang_up = signal(SignalKind::hangup())?;
        tokio::select! {
            running = Running::start(&settings, recorders.handle()) => {
                let running = running?;
                let reloader = Reloader {
                    args,
                    settings,
                    manager: running.manager.clone(),
                    gateway: running.gateway.clone(),
                    filter: filter_handle,
                    last_error: None,
                };
                let reloading = AbortOnDropHandle::new(tokio::spawn(reloader.run(hang_up)));
                running.until_signalled(&mut signals, on_terminate).await;
                drop(reloading);
            }
            _ = signals.next() => {}
        }
        Ok(())
    });
    #[cfg(feature = "otlp")]
    if let Some(traces) = traces {
        traces.shut_down();
    }
    // Blocking operations, such as a read from a store, are not awaited.
    runtime.shutdown_background();
    recorders.shutdown_background();
    ended
}

/// A signal that ends the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EndSignal {
    Interrupt,
    Terminate,
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for the next signal that ends the gateway.
    async fn next(&mut self) -> EndSignal {
        tokio::select! {
            _ = self.interrupt.recv() => EndSignal::Interrupt,
            _ = self.terminate.recv() => EndSignal::Terminate,
        }
    }
}

struct Running {
    listener: TcpListener,
    manager: Manager,
    gateway: Arc<Gateway>,
    _data_dir: DataDir,
}

impl Running {
    async fn start(settings: &Settings, recorders: &Handle) -> Result<Self> {
        let flags = &settings.flags;
        let wanted = SocketAddr::new(flags.ip, flags.port);
        let listener = TcpListener::bind(wanted)
            .await
            .map_err(|error| format!("cannot listen on {wanted}: {error}; choose another --ip or --port"))?;
        let address = listener.local_addr()?;
        let data_dir = match &flags.data_dir {
            Some(path) => path.clone(),
            None => data_dir::default_path()?,
        };
        let data_dir = DataDir::take(data_dir)?;
        // Wrong flags and files are refused before kernels are attached.
        let mut options = GatewayOptions::new(flags.access()?);
        gateway_options(settings, &mut options)?;
        flags.sign_in.apply(&mut options)?;
        flags.tls.apply(&mut options)?;
        options.max_connections = flags
            .max_connections
            .map_or_else(most_of_open_files, |max| max as usize);
        options.audit = flags
            .audit_log
            .as_ref()
            .map(|path| audit_log(path, flags))
            .transpose()?;
        let manager = manager(settings, &data_dir, recorders).await?;
        let restored = manager.restore().await;

        announce(
            &mut std::io::stdout().lock(),
            address,
            &flags.base_url,
            options.tls.is_some(),
            &options.access,
            settings.token_source(),
        )?;
        info!(%address, data_dir = %data_dir.path().display(), restored, "serving");
        options.shares_file = Some(data_dir.path().join("shares.json"));
        let gateway = Arc::new(Gateway::new(manager.clone(), options));
        Ok(Self {
            listener,
            manager,
            gateway,
            _data_dir: data_dir,
        })
    }

    async fn until_signalled(self, signals: &mut Signals, on_terminate: OnTerminate) {
        let serving = tokio::spawn(serve(self.listener, self.gateway.clone()));
        let signal = signals.next().await;
        let stop = signal == EndSignal::Interrupt || on_terminate == OnTerminate::Stop;
        let kernels = self.manager.list().len();
        if stop {
            info!(
                kernels,
                "ending the kernels; another signal ends the gateway immediately"
            );
        } else {
            info!(
                kernels,
                "leaving the kernels to the next start with the same data directory"
            );
        }
        self.gateway.close();
        let ending = async {
            let (kernels, deadline) = if stop {
                (AtClose::EndKernels, STOP_DEADLINE)
            } else {
                (AtClose::LeaveKernels, LEAVE_DEADLINE)
            };
            match timeout(deadline, self.manager.close(kernels)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => warn!(%error, "the logs were not closed cleanly"),
                Err(_) if stop => warn!("some kernels did not end in time and may keep running"),
                Err(_) => warn!("disconnecting from the kernels timed out; the last of their output may be missing"),
            }
            // `serve` has its own deadline.
            let _ = serving.await;
            if let Some(audit) = &self.gateway.options().audit {
                audit.flush().await;
            }
        };
        tokio::select! {
            () = ending => info!("done"),
            _ = signals.next() => warn!("ended immediately by a second signal"),
        }
    }
}

/// Creates the manager for kernels of this machine or of a cluster, and for their logs.
async fn manager(settings: &Settings, data_dir: &DataDir, recorders: &Handle) -> Result<Manager> {
    let flags = &settings.flags;
    let mut log_options = log_options(flags);
    let (spool_bytes, orphan_timeout) = (flags.agent_spool_mib << 20, orphan_timeout(flags));
    let (provider, has_agents): (Arc<dyn KernelProvider>, _) =
        match flags.kubernetes.open(spool_bytes, orphan_timeout).await? {
            Some(pods) => (Arc::new(pods), flags.kubernetes.agent_image.is_some()),
            None => {
                let agent = agent(&flags.agent);
                let has_agents = agent.is_some();
                (Arc::new(local(flags, data_dir, agent).await?), has_agents)
            }
        };
    if has_agents && flags.log_nats.is_none() {
        // The agents keep entries that cannot be stored.
        log_options.when_full = WhenFull::Wait;
    }
    let store = log_store(flags, data_dir).await?;
    let logs = Logs::new(store, log_options)?;
    let mut options = ManagerOptions::default();
    manager_options(settings, &mut options);
    options.message_memory = flags.message_memory_mib << 20;
    options.recorder_runtime = Some(recorders.clone());
    Ok(Manager::new(vec![provider], logs, options))
}

/// Sets the manager's options that can change while it runs.
pub(super) fn manager_options(settings: &Settings, options: &mut ManagerOptions) {
    let flags = &settings.flags;
    options.default_spec.clone_from(&flags.default_kernel);
    options.max_kernels = flags.max_kernels.map(usize::from);
    options.max_kernels_per_owner = flags.max_kernels_per_user.map(usize::from);
    options.log_retention = Duration::from_secs(flags.log_retention);
    options.culling.idle_timeout = Duration::from_secs(flags.cull_idle_timeout);
    options.culling.interval = Duration::from_secs(flags.cull_interval);
    options.culling.connected = flags.cull_connected;
    options.culling.busy = flags.cull_busy;
    options.culling.max_age = Duration::from_secs(flags.cull_max_age);
    options.culling.warning = Duration::from_secs(flags.cull_warning);
    let groups = settings.groups.iter();
    options.groups = groups
        .map(|(name, rules)| (name.clone(), rules.for_manager()))
        .collect();
}

/// The names in a list, without spaces around them.
fn trimmed(names: &[String]) -> Vec<String> {
    let names = names.iter().map(|name| name.trim().to_owned());
    names.filter(|name| !name.is_empty()).collect()
}

fn audit_log(path: &Path, flags: &Flags) -> Result<AuditLog> {
    let options = AuditOptions::new(path)
        .with_max_bytes(flags.audit_log_max_mib << 20)
        .with_files(flags.audit_log_files.into())
        .with_code(flags.audit_code);
    Ok(AuditLog::open(options).map_err(|error| format!("--audit-log {}: {error}", path.display()))?)
}

/// Opens the provider for kernels as processes of this machine.
async fn local(flags: &Flags, data_dir: &DataDir, agent: Option<PathBuf>) -> Result<LocalProvider> {
    let mut local = LocalOptions::new(data_dir.folder("kernels")?);
    local.working_dir = std::env::current_dir().ok();
    let inherited = inherited(&flags.inherited_envs);
    // As in Enterprise Gateway, a variable that the operator names overrides the kernelspec's.
    let is_named = |name: &&String| flags.inherited_envs.iter().any(|named| named.trim() == *name);
    local.inherit_over_kernelspec = inherited.iter().filter(is_named).cloned().collect();
    local.inherit_env = InheritEnv::Only(inherited);
    local.port_range.clone_from(&flags.port_range);
    local.reap_orphans = std::process::id() == 1;
    local.agent = agent;
    local.spool_bytes = flags.agent_spool_mib << 20;
    local.orphan_timeout = orphan_timeout(flags);
    Ok(LocalProvider::open(local).await?)
}

/// How long the agent of an idle kernel waits for a gateway; `None` for no limit.
fn orphan_timeout(flags: &Flags) -> Option<Duration> {
    (flags.agent_orphan_timeout > 0).then(|| Duration::from_secs(flags.agent_orphan_timeout))
}

/// The agent's program; `None` to start kernels directly.
fn agent(flag: &Path) -> Option<PathBuf> {
    match flag.to_str() {
        Some("off") => None,
        Some("auto") => {
            let in_same_folder = std::env::current_exe()
                .ok()
                .map(|own| own.with_file_name("kernelmux-agent"));
            let found = in_same_folder.filter(|agent| agent.is_file());
            if found.is_none() {
                warn!("kernels are not recorded while no gateway runs: kernelmux-agent is not in the gateway's folder");
            }
            found
        }
        _ => Some(flag.to_owned()),
    }
}

/// The configured log store.
async fn log_store(flags: &Flags, data_dir: &DataDir) -> Result<Arc<dyn LogStore>> {
    match &flags.log_nats {
        #[cfg(feature = "nats")]
        Some(url) => {
            let options = kernel_log::NatsOptions::new(url.clone());
            let connecting = tokio::task::spawn_blocking(move || kernel_log::NatsStore::connect(options));
            Ok(Arc::new(connecting.await??))
        }
        #[cfg(not(feature = "nats"))]
        Some(_) => {
            Err("--log-nats: this gateway was built without its feature nats; build it with --features nats".into())
        }
        None => {
            let folder = data_dir.folder("logs")?;
            let opening = tokio::task::spawn_blocking(move || DiskStore::open(&folder));
            Ok(Arc::new(opening.await??))
        }
    }
}

fn log_options(flags: &Flags) -> LogOptions {
    let mut options = LogOptions::default();
    options.stored_bytes = flags.log_max_mib << 20;
    options.total_bytes = flags.log_quota.map(|mib| mib << 20);
    options.owner_bytes = flags.log_quota_per_user.map(|mib| mib << 20);
    options.stored_age = (flags.log_max_age > 0).then(|| Duration::from_secs(flags.log_max_age));
    options.durability = match flags.log_durability {
        LogDurability::Process => Durability::Process,
        LogDurability::Batched => Durability::Batched,
        LogDurability::Always => Durability::Always,
    };
    options
}

/// The names of the variables that kernels inherit, without tokens and the gateway's own flags.
fn inherited(named: &[String]) -> BTreeSet<String> {
    let own = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    own.filter(|own| {
        InheritEnv::BASIC.contains(&own.as_str()) || named.iter().any(|name| name == "*" || name.trim() == own)
    })
    .filter(|own| !is_secret(own))
    .collect()
}

fn is_secret(name: &str) -> bool {
    name.ends_with("_AUTH_TOKEN") || name.starts_with("KERNELMUX_") || matches!(name, "JUPYTER_TOKEN" | "JPY_API_TOKEN")
}

/// Sets the gateway's options but for how clients authenticate.
pub(super) fn gateway_options(settings: &Settings, options: &mut GatewayOptions) -> std::result::Result<(), String> {
    let flags = &settings.flags;
    let is_open = matches!(options.access, Access::Open);
    options.groups.clone_from(&settings.groups);
    options.rates.starts = flags.user_starts_per_minute;
    options.rates.requests = flags.user_requests_per_minute;
    options.rates.connections = flags.user_connections_per_minute;
    options.base_url = flags.base_url.clone();
    options.allow_origin = flags.allow_origin()?;
    options.cors.allow_credentials = flags.allow_credentials;
    options.cors.allow_headers.clone_from(&flags.allow_headers);
    options.cors.allow_methods.clone_from(&flags.allow_methods);
    options.cors.expose_headers.clone_from(&flags.expose_headers);
    options.cors.max_age = Duration::from_secs(flags.cors_max_age);
    options.list_kernels = !flags.no_list;
    options.allow_shares = !flags.no_shares;
    options.local_hosts_only = is_open && flags.ip.is_loopback();
    options.client_envs = trimmed(&flags.client_envs);
    options.authorized_users = trimmed(&flags.authorized_users);
    options.unauthorized_users = trimmed(&flags.unauthorized_users);
    options.kernelspecs = trimmed(&flags.kernelspecs);
    options.default_owner = user_name();
    // Pods do not have this machine's directories.
    options.root_dir = match flags.kubernetes.kubernetes_namespace {
        Some(_) => None,
        None => std::env::current_dir().ok(),
    };
    Ok(())
}

/// The user that runs the gateway, who owns the kernels of clients that name no user.
fn user_name() -> Option<String> {
    ["USER", "LOGNAME"]
        .iter()
        .filter_map(|name| std::env::var(name).ok())
        .find(|name| !name.is_empty())
        .or_else(|| Some(format!("uid-{}", rustix::process::getuid().as_raw())))
}

/// Raises the limit of open files. Many systems start programs with a soft limit of 1,024 and allow more on request.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(OPEN_FILES, |maximum| maximum.min(OPEN_FILES));
    if limit.current.is_some_and(|current| current < wanted) {
        let raised = Rlimit {
            current: Some(wanted),
            maximum: limit.maximum,
        };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            warn!(%error, "the limit of open files stays low and allows only few kernels and clients");
        }
    }
}

/// The rest is for kernels and logs.
fn most_of_open_files() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(OPEN_FILES);
    usize::try_from(limit / 4 * 3).unwrap_or(usize::MAX)
}

/// Prevents kernels, which run as the same user, from reading the token or other kernels' keys in this process's memory
/// or environment. (Kernels that run as root still can.)
fn keep_memory_private() {
    #[cfg(target_os = "linux")]
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        warn!(%error, "kernels of the same user can read the memory of the gateway");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_never_inherited() {
        for name in ["X_AUTH_TOKEN", "KERNELMUX_TOKEN", "KERNELMUX_LOG", "JUPYTER_TOKEN"] {
            assert!(is_secret(name), "{name}");
        }
        assert!(!is_secret("PATH"));
        let all = inherited(&["*".to_owned()]);
        assert!(all.contains("PATH"));
        assert!(!all.iter().any(|name| is_secret(name)));
    }
}
