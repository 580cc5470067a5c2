use std::net::IpAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use axum::http::{HeaderName, Method};
use clap::builder::BoolishValueParser;
use clap::{ArgAction, Parser, Subcommand, ValueEnum};
use kernelmux_gateway::{Access, AllowOrigin, BaseUrl, TRACES, Token};
use tracing_subscriber::EnvFilter;

use super::config_command::ConfigCommand;
use super::enterprise_gateway;
use super::kubernetes::KubernetesFlags;
use super::sign_in::SignInFlags;
use super::tls::TlsFlags;
use super::user::UserCommand;

/// Serves the Jupyter kernels of this machine or of a cluster to JupyterLab and other clients, in place of Enterprise
/// Gateway.
///
/// Each flag is also an environment variable, such as KERNELMUX_PORT for --port, and a key of the configuration file,
/// such as port. A flag overrides the variable, and both override the file.
#[derive(Debug, Parser)]
#[command(name = "kernelmux-gateway", version)]
pub(super) struct Flags {
    /// A configuration file in TOML
    #[arg(long, env = "KERNELMUX_CONFIG", value_name = "PATH", global = true)]
    pub(super) config: Option<PathBuf>,
    /// Also use the environment variables of Enterprise Gateway (EG_* and KG_*) and, if a path is given, its
    /// configuration file (.json or .py); all other sources override them
    #[arg(long, env = "KERNELMUX_FROM_ENTERPRISE_GATEWAY", value_name = "PATH", global = true, num_args = 0..=1,
          require_equals = true, default_missing_value = enterprise_gateway::ENVIRONMENT)]
    pub(super) from_enterprise_gateway: Option<enterprise_gateway::Origin>,
    /// The address to listen on
    #[arg(long, env = "KERNELMUX_IP", default_value = "127.0.0.1", value_parser = parse_ip)]
    pub(super) ip: IpAddr,
    /// The port to listen on; 0 picks a free one
    #[arg(long, env = "KERNELMUX_PORT", default_value_t = 8888)]
    pub(super) port: u16,
    /// The token that clients need [default: a random one, or none if users authenticate in another way]. Other users of this machine can read flags, so prefer the
    /// environment variable or --token-file
    #[arg(long, env = "KERNELMUX_TOKEN", hide_env_values = true)]
    pub(super) token: Option<String>,
    /// A file that contains only the token
    #[arg(long, env = "KERNELMUX_TOKEN_FILE", value_name = "PATH")]
    pub(super) token_file: Option<PathBuf>,
    /// Disable authentication
    #[arg(long, env = "KERNELMUX_NO_AUTH", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    no_auth: bool,
    /// Allow --no-auth on an address that other machines can reach: anyone who can connect can run programs here
    #[arg(long, env = "KERNELMUX_INSECURE", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    insecure: bool,
    /// Directory for logs and the kernels' state [default: kernelmux in XDG_DATA_HOME]
    #[arg(long, env = "KERNELMUX_DATA_DIR")]
    pub(super) data_dir: Option<PathBuf>,
    /// Origins whose pages may use the gateway, such as https://lab.example, separated by commas; * allows all
    #[arg(long, env = "KERNELMUX_ALLOW_ORIGIN", value_delimiter = ',', value_name = "ORIGINS")]
    allow_origin: Vec<String>,
    /// Let pages of allowed origins send credentials, such as a proxy's cookies
    #[arg(long, env = "KERNELMUX_ALLOW_CREDENTIALS", action = ArgAction::SetTrue,
          value_parser = BoolishValueParser::new())]
    pub(super) allow_credentials: bool,
    /// Request headers that such pages may send, in addition to Authorization, Content-Type and X-XSRFToken, separated
    /// by commas
    #[arg(long, env = "KERNELMUX_ALLOW_HEADERS", value_delimiter = ',', value_name = "NAMES")]
    pub(super) allow_headers: Vec<HeaderName>,
    /// Methods that such pages may use, separated by commas [default: those of the address]
    #[arg(long, env = "KERNELMUX_ALLOW_METHODS", value_delimiter = ',', value_name = "METHODS")]
    pub(super) allow_methods: Vec<Method>,
    /// Response headers that such pages may read, in addition to Location, separated by commas
    #[arg(long, env = "KERNELMUX_EXPOSE_HEADERS", value_delimiter = ',', value_name = "NAMES")]
    pub(super) expose_headers: Vec<HeaderName>,
    /// How long browsers may cache these settings, in seconds
    #[arg(long, env = "KERNELMUX_CORS_MAX_AGE", default_value_t = 600, value_name = "SECONDS")]
    pub(super) cors_max_age: u64,
    /// Refuse to list kernels, sessions and logs; they can still be used by id
    #[arg(long, env = "KERNELMUX_NO_LIST", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(super) no_list: bool,
    /// Turn off shares: links to live pages of kernels' cells, and kernels that users share with others
    #[arg(long, env = "KERNELMUX_NO_SHARES", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(super) no_shares: bool,
    /// The path prefix of all addresses
    #[arg(long, env = "KERNELMUX_BASE_URL", default_value = "/", value_name = "PATH")]
    pub(super) base_url: BaseUrl,
    /// The only kernelspecs that are shown and may be started, separated by commas [default: all]
    #[arg(long, env = "KERNELMUX_KERNELSPECS", value_name = "NAMES", value_delimiter = ',')]
    pub(super) kernelspecs: Vec<String>,
    /// The only users for whom kernels may be started, separated by commas, unless a kernelspec names its own [default: all]
    #[arg(
        long,
        env = "KERNELMUX_AUTHORIZED_USERS",
        value_name = "NAMES",
        value_delimiter = ','
    )]
    pub(super) authorized_users: Vec<String>,
    /// Users for whom no kernels may be started, separated by commas
    #[arg(
        long,
        env = "KERNELMUX_UNAUTHORIZED_USERS",
        value_name = "NAMES",
        value_delimiter = ','
    )]
    pub(super) unauthorized_users: Vec<String>,
    /// The kernelspec of starts that name none [default: python3, else the first Python kernel, else the first]
    #[arg(long, env = "KERNELMUX_DEFAULT_KERNEL", value_name = "NAME")]
    pub(super) default_kernel: Option<String>,
    /// End kernels that were idle for this long, in seconds; 0 never does
    #[arg(
        long,
        env = "KERNELMUX_CULL_IDLE_TIMEOUT",
        default_value_t = 0,
        value_name = "SECONDS"
    )]
    pub(super) cull_idle_timeout: u64,
    /// How often to look for idle kernels, in seconds
    #[arg(long, env = "KERNELMUX_CULL_INTERVAL", default_value_t = 300, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) cull_interval: u64,
    /// Also end idle kernels with connected clients
    #[arg(long, env = "KERNELMUX_CULL_CONNECTED", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(super) cull_connected: bool,
    /// Also end busy kernels
    #[arg(long, env = "KERNELMUX_CULL_BUSY", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(super) cull_busy: bool,
    /// End kernels at this age, in seconds, even if they are busy; 0 never does
    #[arg(long, env = "KERNELMUX_CULL_MAX_AGE", default_value_t = 0, value_name = "SECONDS")]
    pub(super) cull_max_age: u64,
    /// How long before the end of a kernel its connected clients are warned, in seconds; 0 for no warning. If the idle time is
    /// not longer, half of it
    #[arg(long, env = "KERNELMUX_CULL_WARNING", default_value_t = 60, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(..=24 * 60 * 60))]
    pub(super) cull_warning: u64,
    /// The most kernels at a time [default: no limit]
    #[arg(long, env = "KERNELMUX_MAX_KERNELS", value_name = "NUMBER")]
    pub(super) max_kernels: Option<NonZeroUsize>,
    /// The most kernels of one user at a time [default: no limit]
    #[arg(long, env = "KERNELMUX_MAX_KERNELS_PER_USER", value_name = "NUMBER")]
    pub(super) max_kernels_per_user: Option<NonZeroUsize>,
    /// The most starts of kernels of each user a minute; they may come all at once [default: no limit]
    #[arg(long, env = "KERNELMUX_USER_STARTS_PER_MINUTE", value_name = "NUMBER")]
    pub(super) user_starts_per_minute: Option<NonZeroU32>,
    /// The same for requests, except those of clients that act for others [default: no limit]
    #[arg(long, env = "KERNELMUX_USER_REQUESTS_PER_MINUTE", value_name = "NUMBER")]
    pub(super) user_requests_per_minute: Option<NonZeroU32>,
    /// The same for WebSockets and event streams [default: no limit]
    #[arg(long, env = "KERNELMUX_USER_CONNECTIONS_PER_MINUTE", value_name = "NUMBER")]
    pub(super) user_connections_per_minute: Option<NonZeroU32>,
    /// Environment variables that clients may set for kernels, in addition to KERNEL_*, separated by commas; * allows
    /// all
    #[arg(long, env = "KERNELMUX_CLIENT_ENVS", value_delimiter = ',', value_name = "NAMES")]
    pub(super) client_envs: Vec<String>,
    /// Environment variables of the gateway that kernels inherit, in addition to PATH, HOME and the like, separated by
    /// commas; they override a kernel.json's; * passes on all but tokens
    #[arg(long, env = "KERNELMUX_INHERITED_ENVS", value_delimiter = ',', value_name = "NAMES")]
    pub(super) inherited_envs: Vec<String>,
    /// TCP ports for kernels of this machine, such as 40000..50000, both included; each kernel needs five [default:
    /// any]
    #[arg(long, env = "KERNELMUX_PORT_RANGE", value_name = "LOW..HIGH", value_parser = parse_port_range)]
    pub(super) port_range: Option<RangeInclusive<u16>>,
    /// The program that starts each kernel of this machine and records it while no gateway runs: auto for
    /// kernelmux-agent in the folder of the gateway's program, off to start kernels directly, or a path
    #[arg(long, env = "KERNELMUX_AGENT", default_value = "off", value_name = "PATH")]
    pub(super) agent: PathBuf,
    /// The most MiB of a kernel's messages that its agent keeps for the gateway; beyond that, a kernel that can wait
    /// does so, and otherwise the oldest are dropped
    #[arg(long, env = "KERNELMUX_AGENT_SPOOL_MIB", default_value_t = 1024, value_name = "MIB",
          value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub(super) agent_spool_mib: u64,
    /// How long the agent of an idle kernel waits for a gateway before it ends the kernel and itself, in seconds; 0
    /// means no limit
    #[arg(long, env = "KERNELMUX_AGENT_ORPHAN_TIMEOUT", default_value_t = 7 * 24 * 60 * 60, value_name = "SECONDS")]
    pub(super) agent_orphan_timeout: u64,
    /// MiB that the large messages of all kernels may take together while they are received and logged; a message that
    /// gets no memory within a minute is skipped, and its cell says so
    #[arg(long, env = "KERNELMUX_MESSAGE_MEMORY_MIB", default_value_t = 256, value_name = "MIB",
          value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub(super) message_memory_mib: u64,
    /// MiB of a kernel's log to keep; the oldest entries are dropped first
    #[arg(long, env = "KERNELMUX_LOG_MAX_MIB", default_value_t = 1024, value_name = "MIB",
          value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    pub(super) log_max_mib: u64,
    /// MiB of all logs together; beyond that, logs of kernels that have ended are dropped, the oldest first, and then
    /// the oldest entries of the largest logs [default: no limit]
    #[arg(long, env = "KERNELMUX_LOG_QUOTA", value_name = "MIB",
          value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    pub(super) log_quota: Option<u64>,
    /// The same for the logs of each user [default: no limit]
    #[arg(long, env = "KERNELMUX_LOG_QUOTA_PER_USER", value_name = "MIB",
          value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    pub(super) log_quota_per_user: Option<u64>,
    /// How long to keep an entry of a kernel's log, in seconds; 0 for no limit
    #[arg(long, env = "KERNELMUX_LOG_MAX_AGE", default_value_t = 30 * 24 * 60 * 60, value_name = "SECONDS")]
    pub(super) log_max_age: u64,
    /// How long to keep a log after its kernel has ended, in seconds
    #[arg(long, env = "KERNELMUX_LOG_RETENTION", default_value_t = 7 * 24 * 60 * 60, value_name = "SECONDS")]
    pub(super) log_retention: u64,
    /// Keep logs in NATS JetStream, at these servers, instead of the data directory; needs a gateway built with the
    /// feature nats
    #[arg(long, env = "KERNELMUX_LOG_NATS", value_name = "URL", hide_env_values = true)]
    pub(super) log_nats: Option<String>,
    /// What a log entry survives once clients have it
    #[arg(long, env = "KERNELMUX_LOG_DURABILITY", value_enum, default_value_t = LogDurability::Batched)]
    pub(super) log_durability: LogDurability,
    /// What SIGTERM does to the kernels
    #[arg(long, env = "KERNELMUX_ON_TERMINATE", value_enum, default_value_t = OnTerminate::Detach)]
    pub(super) on_terminate: OnTerminate,
    /// The most open connections, WebSockets included; beyond that, the next ones wait until some are closed [default: three
    /// quarters of the files that the gateway may have open]
    #[arg(long, env = "KERNELMUX_MAX_CONNECTIONS", value_name = "NUMBER",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) max_connections: Option<u32>,
    /// A file to which one line of JSON is appended for each act of a user: starts, stops, connections, shares, refusals and
    /// others
    #[arg(long, env = "KERNELMUX_AUDIT_LOG", value_name = "PATH")]
    pub(super) audit_log: Option<PathBuf>,
    /// MiB of the audit log after which it is renamed and begun again
    #[arg(long, env = "KERNELMUX_AUDIT_LOG_MAX_MIB", default_value_t = 64, value_name = "MIB",
          value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub(super) audit_log_max_mib: u64,
    /// How many renamed audit logs to keep
    #[arg(long, env = "KERNELMUX_AUDIT_LOG_FILES", default_value_t = 10, value_name = "NUMBER")]
    pub(super) audit_log_files: u16,
    /// Record the code that users run in the audit log, up to 64 KiB of each execution
    #[arg(long, env = "KERNELMUX_AUDIT_CODE")]
    pub(super) audit_code: bool,
    /// Send traces of requests and of starts of kernels to the collector of OpenTelemetry at this URL, such as
    /// http://127.0.0.1:4318; needs a gateway built with the feature otlp
    #[arg(long, env = "KERNELMUX_OTLP_ENDPOINT", value_name = "URL")]
    pub(super) otlp_endpoint: Option<String>,
    /// What to log to stderr: error, warn, info, debug, trace, or a filter such as info,kernel_provider=debug
    #[arg(long, env = "KERNELMUX_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
    /// The format of the log
    #[arg(long, env = "KERNELMUX_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub(super) log_format: LogFormat,
    // Last, because their headings apply to all flags after them.
    #[command(flatten)]
    pub(super) sign_in: SignInFlags,
    #[command(flatten)]
    pub(super) tls: TlsFlags,
    #[command(flatten)]
    pub(super) kubernetes: KubernetesFlags,
    #[command(subcommand)]
    pub(super) subcommand: Option<Subcommands>,
}

/// What to do instead of serving kernels.
#[derive(Debug, Subcommand)]
pub(super) enum Subcommands {
    /// Make, list and remove users
    #[command(subcommand)]
    User(UserCommand),
    /// Check and show the settings
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Check the data directory, kernelspecs, certificate and cluster, and say what to do
    Doctor,
}

/// Quiets libraries that the filter does not name.
const QUIETER: &str = "kube_client=off";

/// What a log entry survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogDurability {
    /// Only the end of the gateway
    Process,
    /// Also a machine failure, except for the last 50 ms
    Batched,
    /// Also a machine failure; clients wait for the disk
    Always,
}

/// The format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object a line
    Json,
}

/// What SIGTERM does to the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum OnTerminate {
    /// Leave them running for the next start with the same data directory
    Detach,
    /// End them
    Stop,
}

impl Flags {
    /// Whether there are users, so that no shared token is needed.
    fn has_users(&self) -> bool {
        self.sign_in.has_users() || self.tls.tls_client_ca.is_some()
    }

    /// Access control.
    pub(super) fn access(&self) -> Result<Access, String> {
        match (&self.token, self.no_auth) {
            (_, true) if self.has_users() => {
                Err("--no-auth and the flags for users exclude each other; give one of them".to_owned())
            }
            (Some(_), true) => Err("--no-auth and a token exclude each other; give one of them".to_owned()),
            (None, true) if !self.ip.is_loopback() && !self.insecure => Err(format!(
                "--no-auth on {} lets anyone who can connect run programs here; give a token, or add --insecure if \
                 that is intended",
                self.ip
            )),
            (None, true) => Ok(Access::Open),
            (Some(token), false) => match Token::new(token.clone()) {
                Ok(token) => Ok(Access::Token(token)),
                Err(error) => Err(format!("wrong token: {error}")),
            },
            (None, false) if self.has_users() => Ok(Access::Users),
            (None, false) => Ok(Access::Token(Token::random())),
        }
    }

    /// Reads the token file. A pipe can be read only once, so its token is that of `before`.
    pub(super) fn read_token_file(&mut self, before: Option<(PathBuf, String)>) -> Result<(), String> {
        if let Some(path) = &self.token_file {
            if let Some((_, token)) = before.filter(|(before, _)| before == path && !path.is_file()) {
                self.token = Some(token);
                return Ok(());
            }
            let text =
                std::fs::read_to_string(path).map_err(|error| format!("--token-file {}: {error}", path.display()))?;
            self.token = Some(text.trim_end_matches(['\r', '\n']).to_owned());
        }
        Ok(())
    }

    /// Foreign origins whose pages may use the gateway.
    pub(super) fn allow_origin(&self) -> Result<AllowOrigin, String> {
        let origins: Vec<&str> = self.allow_origin.iter().map(|origin| origin.trim()).collect();
        let origins: Vec<&str> = origins.into_iter().filter(|origin| !origin.is_empty()).collect();
        AllowOrigin::parse(&origins).map_err(|error| format!("wrong --allow-origin: {error}"))
    }

    /// The log filter.
    pub(super) fn log_filter(&self) -> Result<EnvFilter, String> {
        let traces = if self.otlp_endpoint.is_some() { "info" } else { "off" };
        EnvFilter::try_new(format!("{QUIETER},{},{TRACES}={traces}", self.log))
            .map_err(|error| format!("wrong --log {:?}: {error}", self.log))
    }
}

fn parse_ip(text: &str) -> Result<IpAddr, String> {
    if text == "localhost" {
        return Ok(std::net::Ipv4Addr::LOCALHOST.into());
    }
    text.parse()
        .map_err(|_| "it must be an IP address, such as 127.0.0.1 or 0.0.0.0".to_owned())
}

fn parse_port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    text.split_once("..")
        .and_then(|(low, high)| Some((low.parse().ok()?, high.parse().ok()?)))
        .filter(|(low, high): &(u16, u16)| *low > 0 && low < high && high - low >= 4)
        .map(|(low, high)| low..=high)
        .ok_or_else(|| "it must be two ports, such as 40000..50000, with room for a kernel's five ports".to_owned())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::super::settings::{self, Request};
    use super::*;

    fn parse(args: &[&str]) -> Result<Flags, String> {
        let args: Vec<_> = std::iter::once("kernelmux-gateway")
            .chain(args.iter().copied())
            .map(OsString::from)
            .collect();
        match settings::read(&args)? {
            Request::Run(settings) => Ok(settings.flags),
            Request::Print(text) => Err(text),
            Request::User(command, file) => Err(format!("{command:?} {file:?}")),
            Request::Config(command, _) => Err(format!("{command:?}")),
            Request::Doctor(_) => Err("Doctor".to_owned()),
        }
    }

    #[test]
    fn by_default_it_listens_on_loopback_and_requires_a_token() {
        let flags = parse(&[]).unwrap();
        assert!(flags.ip.is_loopback());
        assert_eq!(flags.port, 8888);
        assert!(matches!(flags.access(), Ok(Access::Token(_))));
        assert_eq!(flags.allow_origin(), Ok(AllowOrigin::Own));
        assert_eq!(flags.on_terminate, OnTerminate::Detach);
    }

    #[test]
    fn a_port_range_is_two_ports() {
        let flags = parse(&["--port-range", "40000..40004"]).unwrap();
        assert_eq!(flags.port_range, Some(40000..=40004));
        assert_eq!(parse(&[]).unwrap().port_range, None);
    }

    #[test]
    fn lists_are_separated_by_commas() {
        let flags = parse(&["--client-envs", "A,B", "--allow-origin", "http://a, https://b:1"]).unwrap();
        assert_eq!(flags.client_envs, ["A", "B"]);
        let these = vec!["http://a".to_owned(), "https://b:1".to_owned()];
        assert_eq!(flags.allow_origin(), Ok(AllowOrigin::These(these)));
    }

    #[test]
    fn errors_are_one_line() {
        for (args, expected) in [
            (&["--port", "x"][..], "--port"),
            (&["--port", "65536"], "--port"),
            (&["--port"], "--port"),
            (&["--prot", "1"], "--prot"),
            (&["extra"], "extra"),
            (&["--ip", "example.org"], "IP address"),
            (&["--token", ""], "token"),
            (&["--token", "a b"], "wrong token"),
            (&["--token", "hidden", "--token-file", "x"], "--token-file"),
            (&["--token-file", "/nonexistent/token"], "/nonexistent/token"),
            (&["--allow-headers", "a b"], "--allow-headers"),
            (&["--port-range", "50000..40000"], "two ports"),
            (&["--port-range", "40000..40003"], "two ports"),
            (&["--port-range", "0..70000"], "two ports"),
            (&["--token", "hidden", "--no-auth"], "exclude"),
            (&["--no-auth", "--ip", "0.0.0.0"], "--insecure"),
            (&["--no-auth", "--users-file", "x"], "exclude"),
            (&["user", "add"], "<NAME>"),
            (&["--oidc-issuer", "https://x"], "--oidc-audience"),
            (&["--trusted-header", "x-user"], "--trusted-proxy"),
            (&["--trusted-proxy", "10.0.0.0/8"], "--trusted-header"),
            (&["--trusted-header", "x", "--trusted-proxy", "ten"], "ten"),
            (&["--group-roles", "x=root"], "is not a role"),
            (&["--group-roles", "x"], "group and its role"),
            (&["user", "add", "ada", "--role", "root"], "is not a role"),
            (&["--allow-origin", "lab"], "lab"),
            (&["--base-url", "http://x"], "base URL"),
            (&["--cull-interval", "0"], "--cull-interval"),
            (&["--cull-idle-timeout", "-1"], "-1"),
            (&["--max-kernels", "0"], "--max-kernels"),
            (&["--on-terminate", "burn"], "detach, stop"),
            (&["--log", "a=b=c"], "--log"),
        ] {
            let message = parse(args).unwrap_err();
            assert!(
                message.contains(expected) && !message.contains('\n'),
                "{args:?}: {message}"
            );
            assert!(!message.contains("hidden"), "{message}");
        }
        assert!(parse(&["--no-auth", "--ip", "0.0.0.0", "--insecure"]).is_ok());
        assert!(parse(&["--no-auth", "--ip", "::1"]).is_ok());
        for args in [
            &["--users-file", "u.json", "user", "list"][..],
            &["user", "list", "--users-file", "u.json"],
        ] {
            assert_eq!(parse(args).unwrap_err(), "List Some(\"u.json\")");
        }
        let flags = parse(&["--users-file", "u.json"]).unwrap();
        assert!(matches!(flags.access(), Ok(Access::Users)));
        let proxy = ["--trusted-header", "x-user", "--trusted-proxy", "10.0.0.0/8,fd00::/8"];
        assert!(matches!(parse(&proxy).unwrap().access(), Ok(Access::Users)));
        let flags = parse(&["--users-file", "u.json", "--token", "x"]).unwrap();
        assert!(matches!(flags.access(), Ok(Access::Token(_))));
    }

    #[test]
    fn the_help_names_flags_and_variables() {
        let help = parse(&["--help"]).unwrap_err();
        for flag in ["--ip", "--on-terminate", "--inherited-envs", "KERNELMUX_TOKEN"] {
            assert!(help.contains(flag), "{flag}\n{help}");
        }
        assert!(parse(&["--version"]).unwrap_err().contains(env!("CARGO_PKG_VERSION")));
    }
}
