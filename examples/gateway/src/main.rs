//! `kernelmux-gateway`: the gateway over this machine's kernels.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt;
use clap::{Parser, ValueEnum};
use kernel_provider::log::{FjallStore, LogOptions, Logs};
use kernel_provider::manager::{Manager, ManagerOptions};
use kernelmux_gateway::{Gateway, router};
use provider_local::{LocalConfig, LocalProvider};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Serves this machine's Jupyter kernels to JupyterLab, in place of Enterprise Gateway.
#[derive(Parser)]
#[command(name = "kernelmux-gateway", version)]
struct Flags {
    /// The address to listen on.
    #[arg(long, env = "KERNELMUX_IP", default_value = "127.0.0.1")]
    ip: IpAddr,
    /// The port; 0 picks a free one.
    #[arg(long, env = "KERNELMUX_PORT", default_value_t = 8888)]
    port: u16,
    /// The token that clients must have; a random one where there is none.
    #[arg(long, env = "KERNELMUX_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Ask nobody for a token.
    #[arg(long, env = "KERNELMUX_NO_AUTH", conflicts_with = "token")]
    no_auth: bool,
    /// Where logs and the kernels' state are kept.
    #[arg(long, env = "KERNELMUX_DATA_DIR", default_value = ".kernelmux")]
    data_dir: PathBuf,
    /// The kernelspec of starts that name none.
    #[arg(long, env = "KERNELMUX_DEFAULT_KERNEL", default_value = "python3")]
    default_kernel: String,
    /// End kernels that were inactive for these seconds; 0 never does.
    #[arg(long, env = "KERNELMUX_CULL_IDLE_TIMEOUT", default_value_t = 0)]
    cull_idle_timeout: u64,
    /// How often to look for them, in seconds.
    #[arg(long, env = "KERNELMUX_CULL_INTERVAL", default_value_t = 300)]
    cull_interval: u64,
    /// End them also while clients are connected.
    #[arg(long, env = "KERNELMUX_CULL_CONNECTED")]
    cull_connected: bool,
    /// End them also while they run something.
    #[arg(long, env = "KERNELMUX_CULL_BUSY")]
    cull_busy: bool,
    /// What SIGTERM does to the kernels.
    #[arg(long, env = "KERNELMUX_ON_TERMINATE", default_value = "detach")]
    on_terminate: OnTerminate,
    /// What to log, as a tracing filter such as `info` or `kernel_provider=debug`.
    #[arg(long, env = "KERNELMUX_LOG", default_value = "info")]
    log: String,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnTerminate {
    /// Leave them running, for the next start with the same data directory.
    Detach,
    /// End them.
    Stop,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Flags::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kernelmux-gateway: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(flags: Flags) -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&flags.log)?)
        .with_writer(std::io::stderr)
        .init();
    let address = SocketAddr::new(flags.ip, flags.port);
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .map_err(|error| format!("cannot listen on {address}: {error}; choose another --port"))?;
    let address = listener.local_addr()?;
    std::fs::create_dir_all(&flags.data_dir)?;
    let mut local = LocalConfig::new(flags.data_dir.join("kernels"));
    local.working_dir = std::env::current_dir().ok();
    let provider = LocalProvider::open(local).await?;
    let store = FjallStore::open(&flags.data_dir.join("logs"))?;
    let logs = Logs::new(Arc::new(store), LogOptions::default())?;
    let mut options = ManagerOptions::default();
    options.default_spec = flags.default_kernel;
    options.culling.idle_timeout = Duration::from_secs(flags.cull_idle_timeout);
    options.culling.interval = Duration::from_secs(flags.cull_interval.max(1));
    options.culling.connected = flags.cull_connected;
    options.culling.busy = flags.cull_busy;
    let manager = Manager::new(vec![Arc::new(provider)], logs, options);
    manager.restore().await?;
    let token = (!flags.no_auth).then(|| flags.token.unwrap_or_else(|| uuid::Uuid::new_v4().simple().to_string()));
    announce(address, token.as_deref());

    let gateway = Arc::new(Gateway::new(manager.clone(), token));
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY cannot be set");
        }
    });
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let serving = axum::serve(listener, router(gateway.clone()));
    let stop = tokio::select! {
        ended = serving.into_future() => return Ok(ended?),
        _ = interrupt.recv() => true,
        _ = terminate.recv() => flags.on_terminate == OnTerminate::Stop,
    };
    gateway.close();
    if stop {
        manager.shutdown().await;
    } else {
        manager.detach().await;
    }
    Ok(())
}

fn announce(address: SocketAddr, token: Option<&str>) {
    let query = token.map_or_else(String::new, |token| format!("?token={token}"));
    let variable = token.map_or_else(String::new, |token| format!("JUPYTER_GATEWAY_AUTH_TOKEN={token} "));
    println!("kernelmux-gateway listens on http://{address}/{query}");
    println!("JupyterLab:  JUPYTER_GATEWAY_URL=http://{address} {variable}jupyter lab");
}
