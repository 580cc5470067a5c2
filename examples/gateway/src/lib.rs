#![doc = include_str!("../README.md")]
//! # The path of a request
//!
//! A request is logged and counted (`request_log`), gets CORS headers (`cors`) and JSON errors (`error`), is checked
//! for its size (`limits`), its sender (`auth`) or, without authentication, its `origin`, and its sender's permission
//! (`authorization`), and reaches its handler (`routes`).
#![cfg_attr(docsrs, feature(doc_cfg))]

mod audit;
mod auth;
mod authorization;
mod base_url;
mod cors;
mod counted;
mod environment;
mod error;
mod file_changes;
mod group_roles;
mod group_rules;
mod http_get;
mod identity;
mod jupyterhub;
mod keyed_hash;
mod launches;
mod limits;
mod live;
mod metrics;
mod model;
mod oidc;
mod options;
mod origin;
mod profiles;
mod rates;
mod reader_lag;
mod replace_file;
mod request_log;
mod routes;
mod serve;
mod sessions;
mod shares;
mod start;
mod tls;
mod token;
mod traces;
mod trusted_header;
mod unread_body;
mod user_tokens;
mod users;
mod websocket;
mod wrong_tokens;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use axum::Router;
use chrono::{DateTime, Utc};
use jupyter_protocol::KernelId;
use kernel_manager::Manager;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio_util::task::{AbortOnDrop, TaskTracker};

pub use audit::{AuditLog, AuditOptions};
pub use base_url::{BaseUrl, InvalidBaseUrl};
pub use cors::CorsOptions;
pub use file_changes::FileChanges;
pub use group_roles::GroupRoles;
pub use group_rules::GroupRules;
pub use identity::{InvalidName, InvalidRole, Role};
pub use jupyterhub::{HubError, HubOptions, JupyterHub};
pub use oidc::{Oidc, OidcError, OidcOptions};
pub use options::{Access, GatewayOptions};
pub use origin::{AllowOrigin, InvalidOrigin};
pub use rates::RateLimits;
pub use serve::serve;
pub use tls::{Tls, TlsError, TlsOptions, TlsVersion};
pub use token::{InvalidToken, Token};
pub use traces::TRACES;
pub use trusted_header::TrustedHeader;
pub use user_tokens::{User, UserToken, Users, UsersFile, UsersFileError};

use audit::Act;
use identity::Identity;
use launches::Launches;
use live::Live;
use metrics::Metrics;
use rates::Rates;
use reader_lag::Positions;
use routes::OutputLimits;
use sessions::Sessions;
use shares::Shares;
use wrong_tokens::WrongTokens;

/// The state that handlers share.
pub struct Gateway {
    manager: Manager,
    settings: RwLock<Settings>,
    sessions: Sessions,
    wrong_tokens: WrongTokens,
    metrics: Arc<Metrics>,
    output_limits: OutputLimits,
    launches: Arc<Launches>,
    rates: Rates,
    positions: Positions,
    shares: Arc<Shares>,
    live: Live,
    started: DateTime<Utc>,
    /// The latest known kernel activity.
    last_activity: Mutex<DateTime<Utc>>,
    closing: watch::Sender<bool>,
    /// The WebSocket connections.
    clients: TaskTracker,
    _counting: AbortOnDrop,
    /// Follow the files of users and certificates.
    _following: Vec<AbortOnDrop>,
}

/// What can be replaced while the gateway runs.
struct Settings {
    options: Arc<GatewayOptions>,
    /// The identity of requests with the shared token, and of all requests without authentication. It is revoked when
    /// that changes.
    shared: Arc<Identity>,
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("manager", &self.manager)
            .finish_non_exhaustive()
    }
}

impl Gateway {
    /// A gateway for the manager's kernels. Starts tasks that count kernel events and follow the files of users and certificates; needs a tokio
    /// runtime.
    #[must_use]
    pub fn new(manager: Manager, options: GatewayOptions) -> Self {
        let metrics = Arc::new(Metrics::default());
        let started = Utc::now();
        let shares = Arc::new(Shares::open(options.shares_file.clone()));
        let audit = options.audit.clone();
        let users = options.users.clone().map(|users| tokio::spawn(users.follow(audit)));
        let tls = options.tls.clone().map(|tls| tokio::spawn(tls.follow()));
        let following = users.into_iter().chain(tls);
        let following = following.map(|following| AbortOnDrop::new(following.abort_handle()));
        let rates = options.rates;
        let counting = tokio::spawn(follow_events(manager.clone(), metrics.clone(), options.audit.clone()));
        Self {
            manager,
            settings: RwLock::new(Settings {
                options: Arc::new(options),
                shared: Arc::new(Identity::revocable()),
            }),
            sessions: Sessions::default(),
            wrong_tokens: WrongTokens::default(),
            metrics,
            output_limits: OutputLimits::default(),
            launches: Arc::default(),
            rates: Rates::new(rates),
            positions: Positions::default(),
            shares,
            live: Live::default(),
            started,
            last_activity: Mutex::new(started),
            closing: watch::Sender::new(false),
            clients: TaskTracker::new(),
            _counting: AbortOnDrop::new(counting.abort_handle()),
            _following: following.collect(),
        }
    }

    /// Replaces the options, for requests from now on. If the access control changes, requests and streams end that the
    /// shared token or the lack of authentication had allowed. `base_url`, `users`, `tls`, `audit`, `shares_file`, and
    /// what [`serve`] has read (`head_deadline`, `max_connections`), stay as they were.
    pub fn set_options(&self, mut options: GatewayOptions) {
        let mut settings = self.settings.write().unwrap_or_else(PoisonError::into_inner);
        let before = &settings.options;
        options.base_url.clone_from(&before.base_url);
        options.users.clone_from(&before.users);
        options.tls.clone_from(&before.tls);
        options.audit.clone_from(&before.audit);
        options.shares_file.clone_from(&before.shares_file);
        if !options.access.is_same(&before.access) {
            let before = std::mem::replace(&mut settings.shared, Arc::new(Identity::revocable()));
            before.revoke();
        }
        self.rates.set(options.rates);
        settings.options = Arc::new(options);
    }

    /// Records in the audit log that these settings were reloaded.
    pub async fn settings_changed(&self, names: &str) {
        if let Some(audit) = &self.options().audit {
            audit.gateway_act(Act::Settings, names).await;
        }
    }

    /// The current options.
    #[must_use]
    pub fn options(&self) -> Arc<GatewayOptions> {
        self.settings().options.clone()
    }

    fn settings(&self) -> RwLockReadGuard<'_, Settings> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The access control, and the identity of requests that it allows without a user.
    fn access(&self) -> (Arc<GatewayOptions>, Arc<Identity>) {
        let settings = self.settings();
        (settings.options.clone(), settings.shared.clone())
    }

    /// Closes all WebSocket connections, current and new ones, and ends [`serve`]. The close code is 1001 (RFC 6455
    /// section 7.4.1) in the resume protocol and 1012, "service restart", otherwise; clients reconnect after either.
    pub fn close(&self) {
        self.closing.send_replace(true);
    }

    pub(crate) async fn closing(&self) {
        // `self` holds the sender, so this cannot fail.
        let _ = self.closing.subscribe().wait_for(|closing| *closing).await;
    }

    /// The latest kernel activity. `of_kernels` is the latest activity of the existing kernels. The result never
    /// decreases, even after a kernel has ended.
    fn last_activity(&self, of_kernels: Option<DateTime<Utc>>) -> DateTime<Utc> {
        let mut last = kernel_provider::lock(&self.last_activity);
        *last = of_kernels.map_or(*last, |time| time.max(*last));
        *last
    }

    /// Whether the manager has the kernel.
    fn has_kernel(&self, kernel: KernelId) -> bool {
        self.manager.get(kernel).is_some()
    }
}

/// Counts the kernels' events, and records kernels that were culled or died.
async fn follow_events(manager: Manager, metrics: Arc<Metrics>, audit: Option<AuditLog>) {
    let mut events = manager.events();
    drop(manager);
    loop {
        match events.recv().await {
            Ok(event) => {
                metrics.event(&event.kind);
                if let Some(audit) = &audit {
                    audit.kernel_event(&event).await;
                }
            }
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

/// The gateway's routes below its base URL. Other addresses below it are answered with 404 as JSON.
pub fn router(gateway: Arc<Gateway>) -> Router {
    routes::router(gateway)
}
