use std::path::PathBuf;
use std::time::Duration;

use crate::{
    AllowOrigin, AuditLog, BaseUrl, CorsOptions, GroupRoles, GroupRules, JupyterHub, Oidc, RateLimits, Tls, Token,
    TrustedHeader, Users,
};

/// Access control of a gateway.
#[derive(Clone, Debug)]
pub enum Access {
    /// Requires this shared token, which gives access to all kernels, or a user.
    Token(Token),
    /// Requires a user: of the [file](GatewayOptions::users), or authenticated in another way. There is no shared token.
    Users,
    /// No access control: anyone who can connect can run programs on the gateway's machine.
    Open,
}

impl Access {
    /// Whether both allow the same requests without a user.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Token(token), Self::Token(other)) => token.is(other.reveal().as_bytes()),
            (Self::Users, Self::Users) | (Self::Open, Self::Open) => true,
            _ => false,
        }
    }
}

/// Options of a gateway.
///
/// ```
/// use kernelmux_gateway::{Access, GatewayOptions, Token};
///
/// let mut options = GatewayOptions::new(Access::Token(Token::random()));
/// options.base_url = "/jupyter".parse()?;
/// # Ok::<(), kernelmux_gateway::InvalidBaseUrl>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GatewayOptions {
    /// Access control.
    pub access: Access,
    /// Users with their own tokens.
    pub users: Option<Users>,
    /// An issuer whose tokens are accepted.
    pub oidc: Option<Oidc>,
    /// A JupyterHub whose users' tokens are accepted.
    pub hub: Option<JupyterHub>,
    /// A proxy that authenticates users.
    pub trusted_header: Option<TrustedHeader>,
    /// TLS with a certificate; `None` for plain HTTP.
    pub tls: Option<Tls>,
    /// With TLS, for how long browsers use nothing else for the gateway's host, on all its ports (RFC 6797); zero for
    /// no such rule.
    pub strict_transport: Duration,
    /// The roles of groups of those that `oidc`, `hub`, `trusted_header` and clients' certificates authenticate.
    pub group_roles: GroupRoles,
    /// Rules for the members of groups, by the group's name. If a user is in several of them, the first one that has a
    /// rule decides.
    pub groups: Vec<(String, GroupRules)>,
    /// Records who does what; `None` for no audit log.
    pub audit: Option<AuditLog>,
    /// How often users may start kernels, send requests and connect.
    pub rates: RateLimits,
    /// Path prefix of all addresses.
    pub base_url: BaseUrl,
    /// Foreign origins whose pages may use the gateway.
    pub allow_origin: AllowOrigin,
    /// Permissions of those pages.
    pub cors: CorsOptions,
    /// Whether kernels, sessions and logs may be listed. Otherwise they can only be used by id.
    pub list_kernels: bool,
    /// Whether to accept only requests whose `Host` is an address, `localhost`, or the host of an allowed origin. For
    /// gateways with [`Access::Open`] on loopback: it blocks pages whose host name resolves to this machine (DNS
    /// rebinding).
    pub local_hosts_only: bool,
    /// Environment variables that clients may set for kernels, in addition to `KERNEL_*`; `*` allows all.
    pub client_envs: Vec<String>,
    /// The only users for whom kernels may be started; empty for all. A kernelspec that authorizes users replaces them.
    pub authorized_users: Vec<String>,
    /// Users for whom no kernels may be started.
    pub unauthorized_users: Vec<String>,
    /// The only kernelspecs that are shown and may be started; empty for all.
    pub kernelspecs: Vec<String>,
    /// Owner of kernels whose client is no user and sends no `KERNEL_USERNAME`.
    pub default_owner: Option<String>,
    /// Root of the `path` of new kernels and sessions. A kernel starts in the deepest existing folder of its path.
    pub root_dir: Option<PathBuf>,
    /// Whether users can share links to pages with a kernel's cells. Anyone with such a link can view the page without
    /// a token.
    pub allow_shares: bool,
    /// File with the hashes of shares' links, so that links work after a restart of the gateway; `None` keeps them in
    /// memory.
    pub shares_file: Option<PathBuf>,
    /// The most open connections of [`serve`](crate::serve). At this number, it accepts the next when one is closed.
    pub max_connections: usize,
    /// Timeout for a request's head, and for idle connections of [`serve`](crate::serve).
    pub head_deadline: Duration,
    /// Timeout for a request's body; the response is 408.
    pub body_deadline: Duration,
    /// Write timeout of WebSockets and, on Linux, of all connections of [`serve`](crate::serve). A connection that
    /// exceeds it is closed.
    pub write_deadline: Duration,
}

impl GatewayOptions {
    /// Base URL `/`, no foreign origins, any `Host`, only `KERNEL_*` variables, no default owner, no root, and shares
    /// that are kept in memory. There may be 32,768 connections. The timeouts are 60 s for a request's head, 30 s for its body, and 90 s for writes.
    #[must_use]
    pub fn new(access: Access) -> Self {
        Self {
            access,
            users: None,
            oidc: None,
            hub: None,
            trusted_header: None,
            tls: None,
            strict_transport: Duration::ZERO,
            group_roles: GroupRoles::default(),
            groups: Vec::new(),
            audit: None,
            rates: RateLimits::default(),
            base_url: BaseUrl::default(),
            allow_origin: AllowOrigin::Own,
            cors: CorsOptions::default(),
            list_kernels: true,
            local_hosts_only: false,
            client_envs: Vec::new(),
            authorized_users: Vec::new(),
            unauthorized_users: Vec::new(),
            kernelspecs: Vec::new(),
            default_owner: None,
            root_dir: None,
            allow_shares: true,
            shares_file: None,
            max_connections: 32_768,
            head_deadline: Duration::from_secs(60),
            body_deadline: Duration::from_secs(30),
            write_deadline: Duration::from_secs(90),
        }
    }
}
