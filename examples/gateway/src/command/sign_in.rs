use std::path::PathBuf;

use axum::http::HeaderName;
use clap::Args;
use ipnet::IpNet;
use kernelmux_gateway::{
    GatewayOptions, GroupRoles, HubOptions, JupyterHub, Oidc, OidcOptions, Role, TrustedHeader, Users, UsersFile,
};

/// How users authenticate, in addition to the shared token.
#[derive(Debug, Args)]
#[command(next_help_heading = "Users")]
pub(super) struct SignInFlags {
    /// A file of users with their own tokens, which `kernelmux-gateway user` changes
    #[arg(long, env = "KERNELMUX_USERS_FILE", value_name = "PATH", global = true)]
    pub(super) users_file: Option<PathBuf>,
    /// Accept tokens of this OpenID Connect issuer; write it as in the tokens' claim iss
    #[arg(long, env = "KERNELMUX_OIDC_ISSUER", value_name = "URL")]
    oidc_issuer: Option<String>,
    /// The audience that the issuer's tokens must name in the claim aud
    #[arg(long, env = "KERNELMUX_OIDC_AUDIENCE", value_name = "NAME")]
    oidc_audience: Option<String>,
    /// The claim with the user's name
    #[arg(long, env = "KERNELMUX_OIDC_USER_CLAIM", default_value = "sub", value_name = "CLAIM")]
    oidc_user_claim: String,
    /// The claim with the list of the user's groups
    #[arg(
        long,
        env = "KERNELMUX_OIDC_GROUPS_CLAIM",
        default_value = "groups",
        value_name = "CLAIM"
    )]
    oidc_groups_claim: String,
    /// Accept tokens of the users of the JupyterHub with this API, such as http://127.0.0.1:8081/hub/api
    #[arg(long, env = "KERNELMUX_JUPYTERHUB_API", value_name = "URL")]
    jupyterhub_api: Option<String>,
    /// The gateway's name as a service of the JupyterHub: only tokens with the scope access:services or
    /// access:services!service=NAME are accepted
    #[arg(long, env = "KERNELMUX_JUPYTERHUB_SERVICE", value_name = "NAME")]
    jupyterhub_service: Option<String>,
    /// The header in which a proxy names the user, such as X-Forwarded-User
    #[arg(long, env = "KERNELMUX_TRUSTED_HEADER", value_name = "NAME")]
    trusted_header: Option<HeaderName>,
    /// The header in which the proxy names the user's groups, separated by commas
    #[arg(long, env = "KERNELMUX_TRUSTED_GROUPS_HEADER", value_name = "NAME")]
    trusted_groups_header: Option<HeaderName>,
    /// The proxy's addresses, such as 10.1.2.0/24, separated by commas; all who can send requests from them can act as
    /// any user
    #[arg(long, env = "KERNELMUX_TRUSTED_PROXY", value_delimiter = ',', value_name = "CIDR")]
    trusted_proxy: Vec<IpNet>,
    /// The common names of the proxy's certificates, separated by commas, in addition to its addresses or in place of them;
    /// needs --tls-client-ca
    #[arg(
        long,
        env = "KERNELMUX_TRUSTED_PROXY_CERT",
        value_delimiter = ',',
        value_name = "NAMES"
    )]
    trusted_proxy_cert: Vec<String>,
    /// The roles of groups of an issuer, a JupyterHub, a proxy or clients' certificates, such as platform=operator, separated by commas; the
    /// first one that a user is in decides, and others have the role user
    #[arg(
        long,
        env = "KERNELMUX_GROUP_ROLES",
        value_delimiter = ',',
        value_name = "GROUP=ROLE",
        value_parser = parse_group_role
    )]
    pub(super) group_roles: Vec<(String, Role)>,
}

impl SignInFlags {
    /// Whether there are users, so that no shared token is needed.
    pub(super) fn has_users(&self) -> bool {
        self.users_file.is_some()
            || self.oidc_issuer.is_some()
            || self.jupyterhub_api.is_some()
            || self.trusted_header.is_some()
    }

    /// Sets how users authenticate. Reads the file of users.
    pub(super) fn apply(&self, options: &mut GatewayOptions) -> Result<(), Box<dyn std::error::Error>> {
        options.users = match &self.users_file {
            Some(path) => Some(Users::open(UsersFile::new(path))?),
            None => None,
        };
        options.oidc = match (&self.oidc_issuer, &self.oidc_audience) {
            (Some(issuer), Some(audience)) => {
                let mut oidc = OidcOptions::new(issuer, audience);
                oidc.user_claim.clone_from(&self.oidc_user_claim);
                oidc.groups_claim.clone_from(&self.oidc_groups_claim);
                Some(Oidc::new(oidc).map_err(|error| format!("--oidc-issuer: {error}"))?)
            }
            _ => None,
        };
        options.hub = match &self.jupyterhub_api {
            Some(api) => {
                let mut hub = HubOptions::new(api);
                hub.service.clone_from(&self.jupyterhub_service);
                Some(JupyterHub::new(hub).map_err(|error| format!("--jupyterhub-api: {error}"))?)
            }
            None => None,
        };
        options.trusted_header = self.trusted_header.clone().map(|user| {
            let mut trusted = TrustedHeader::new(user, self.trusted_proxy.clone());
            trusted.groups.clone_from(&self.trusted_groups_header);
            trusted.certificates.clone_from(&self.trusted_proxy_cert);
            trusted
        });
        options.group_roles = GroupRoles::new(self.group_roles.clone());
        Ok(())
    }
}

fn parse_group_role(text: &str) -> Result<(String, Role), String> {
    let Some((group, role)) = text.rsplit_once('=') else {
        return Err("it must be a group and its role, such as platform=operator".to_owned());
    };
    let role: Role = role.parse().map_err(|error| format!("{error}"))?;
    Ok((group.to_owned(), role))
}
