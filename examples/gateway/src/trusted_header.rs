//! Users that a proxy authenticates and names in a header.

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName};
use ipnet::IpNet;

use crate::group_roles::GroupRoles;
use crate::identity::{Identity, checked_name};
use crate::tls::ClientCertificate;

/// The most groups of a user.
const MAX_GROUPS: usize = 1_024;

/// A proxy that names the user of each request in a header. It is known by its address, or by its certificate if the
/// gateway asks for [clients' certificates](crate::TlsOptions::client_ca).
///
/// Everyone who can send requests from the proxy's addresses can act as any user. So the addresses must not be those of
/// kernels: with kernels as processes of the gateway's machine, not its own addresses.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TrustedHeader {
    /// The header with the user's name, such as `X-Forwarded-User`.
    pub user: HeaderName,
    /// The header with the user's groups, separated by commas.
    pub groups: Option<HeaderName>,
    /// The proxy's addresses. The headers of other clients are ignored.
    pub proxies: Vec<IpNet>,
    /// The common names of the proxy's certificates, in addition to its addresses.
    pub certificates: Vec<String>,
}

/// The address of the connection that a request came over, which may be a proxy's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerAddress(pub(crate) IpAddr);

impl TrustedHeader {
    /// A proxy with one of these addresses, which names the user in this header, and no groups.
    #[must_use]
    pub fn new(user: HeaderName, proxies: Vec<IpNet>) -> Self {
        Self {
            user,
            groups: None,
            proxies,
            certificates: Vec::new(),
        }
    }

    /// Whether this is the proxy's certificate, which names no user.
    pub(crate) fn is_of_proxy(&self, certificate: &ClientCertificate) -> bool {
        self.certificates.contains(&certificate.name)
    }

    /// The user that the proxy names; `None` if the request is not from the proxy, or names no valid user.
    pub(crate) fn identity(
        &self,
        headers: &HeaderMap,
        peer: Option<PeerAddress>,
        certificate: Option<&ClientCertificate>,
        roles: &GroupRoles,
    ) -> Option<Arc<Identity>> {
        let has_address = || {
            let peer = peer.map(|PeerAddress(peer)| peer.to_canonical());
            peer.is_some_and(|peer| self.proxies.iter().any(|proxy| proxy.contains(&peer)))
        };
        if !certificate.is_some_and(|certificate| self.is_of_proxy(certificate)) && !has_address() {
            return None;
        }
        let name = checked_name(only(headers, &self.user)?).ok()?;
        let groups = self.groups.as_ref().and_then(|header| only(headers, header));
        let groups: Vec<String> = groups
            .unwrap_or_default()
            .split(',')
            .map(str::trim)
            .filter(|group| checked_name(group).is_ok())
            .take(MAX_GROUPS)
            .map(str::to_owned)
            .collect();
        let role = roles.role_of(&groups);
        Some(Arc::new(Identity::new(name, groups, role)))
    }
}

/// The value of a header that occurs once. A second one may be the client's own.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() {
        return None;
    }
    std::str::from_utf8(value.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Role;

    #[test]
    fn only_the_proxy_names_users() {
        let networks = ["10.1.0.0/16", "fd00::/8"].map(|network| network.parse().unwrap());
        let mut trusted = TrustedHeader::new(HeaderName::from_static("x-forwarded-user"), networks.to_vec());
        trusted.groups = Some(HeaderName::from_static("x-forwarded-groups"));
        let roles = GroupRoles::new(vec![("ops".to_owned(), Role::Operator)]);
        let identity = |peer: &str, headers: &[(&'static str, &str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(*name, value.parse().unwrap());
            }
            let identity = trusted.identity(&map, Some(PeerAddress(peer.parse().unwrap())), None, &roles)?;
            Some((identity.name.clone().unwrap(), identity.role, identity.groups.join(" ")))
        };
        let user = ("x-forwarded-user", "ada");
        let ada = |role, groups: &str| Some(("ada".to_owned(), role, groups.to_owned()));
        for peer in ["10.1.2.3", "::ffff:10.1.2.3", "fd00::1"] {
            assert_eq!(identity(peer, &[user]), ada(Role::User, ""), "{peer}");
        }
        for peer in ["10.2.0.1", "127.0.0.1", "::1", "fe80::1"] {
            assert_eq!(identity(peer, &[user]), None, "{peer}");
        }
        let groups = ("x-forwarded-groups", "staff, ops,,a/b");
        assert_eq!(identity("10.1.0.1", &[user, groups]), ada(Role::Operator, "staff ops"));
        for wrong in ["", "a/b", " "] {
            assert_eq!(identity("10.1.0.1", &[("x-forwarded-user", wrong)]), None, "{wrong:?}");
        }
        assert_eq!(identity("10.1.0.1", &[]), None);
        assert_eq!(identity("10.1.0.1", &[user, ("x-forwarded-user", "root")]), None);
        assert!(trusted.identity(&HeaderMap::new(), None, None, &roles).is_none());
    }
}
