use std::path::PathBuf;
use std::time::Duration;

use crate::{AllowOrigin, BaseUrl, CorsOptions, Token};

/// Who may use the gateway.
#[derive(Clone, Debug)]
pub enum Access {
    /// Whoever has the token.
    Token(Token),
    /// Everybody who can connect to it. They can run programs on its machine.
    Open,
}

/// How a gateway behaves.
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
    /// Who may use it.
    pub access: Access,
    /// The path in front of all its addresses.
    pub base_url: BaseUrl,
    /// Which pages of other origins may use it.
    pub allow_origin: AllowOrigin,
    /// What browsers are told that such pages may do.
    pub cors: CorsOptions,
    /// Whether kernels, sessions and logs may be listed. Where they may not, one that is known by its id can still be
    /// used.
    pub list_kernels: bool,
    /// Whether it takes only requests whose `Host` is an address, `localhost`, or the host of an allowed origin. For
    /// gateways with [`Access::Open`] that listen on this machine only: it keeps out pages whose name was made to point
    /// at this machine (DNS rebinding).
    pub local_hosts_only: bool,
    /// Which of a client's environment variables a kernel gets, beside `KERNEL_*`; `*` means all.
    pub client_envs: Vec<String>,
    /// Whose the kernels are of clients that send no `KERNEL_USERNAME`.
    pub default_owner: Option<String>,
    /// Where the `path` of a new kernel or session starts from. Kernels start in the deepest folder of it that there is.
    pub root_dir: Option<PathBuf>,
    /// How long a client may take for a request's head, and how long [`serve`](crate::serve) keeps a connection open
    /// that is not used. It is closed then.
    pub head_deadline: Duration,
    /// How long a request's body may take to arrive. The answer is 408 then.
    pub body_deadline: Duration,
    /// How long a client may take nothing of what it is sent before its connection is closed: a WebSocket's everywhere,
    /// any other of [`serve`](crate::serve)'s on Linux.
    pub write_deadline: Duration,
}

impl GatewayOptions {
    /// At `/`, for no other origins, taking any `Host` and only `KERNEL_*`, with no default owner and no root; 60 s for
    /// a request's head, 30 s for its body, and 90 s in which a client may take nothing.
    #[must_use]
    pub fn new(access: Access) -> Self {
        Self {
            access,
            base_url: BaseUrl::default(),
            allow_origin: AllowOrigin::Own,
            cors: CorsOptions::default(),
            list_kernels: true,
            local_hosts_only: false,
            client_envs: Vec::new(),
            default_owner: None,
            root_dir: None,
            head_deadline: Duration::from_secs(60),
            body_deadline: Duration::from_secs(30),
            write_deadline: Duration::from_secs(90),
        }
    }
}
