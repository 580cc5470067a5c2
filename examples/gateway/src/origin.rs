//! Restricts which web pages may use the gateway.
//!
//! A page of another origin can open WebSockets and send some modifying requests without a preflight. So without
//! authentication, such requests with a foreign `Origin` are refused. Reading is left to browsers, which hide responses
//! from pages that the [CORS](crate::cors) headers do not name. With authentication, the token decides (see
//! [`auth`](crate::auth)).

use axum::http::{HeaderMap, Method, header};

use crate::GatewayOptions;
use crate::error::ApiError;

/// Foreign origins whose pages may use the gateway, in addition to its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum AllowOrigin {
    /// None.
    #[default]
    Own,
    /// All.
    Any,
    /// These, such as `https://lab.example:8443`.
    These(Vec<String>),
}

/// The text is not an origin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an origin: write `*`, or scheme, host and port such as https://lab.example:8443")]
pub struct InvalidOrigin(String);

impl AllowOrigin {
    /// Parses a list of origins. `*` allows all, and an empty list none.
    ///
    /// # Errors
    /// [`InvalidOrigin`] for the first invalid one.
    pub fn parse<T: AsRef<str>>(origins: &[T]) -> Result<Self, InvalidOrigin> {
        let mut these = Vec::new();
        for origin in origins.iter().map(AsRef::as_ref) {
            if origin == "*" {
                return Ok(Self::Any);
            }
            let bare = origin.strip_suffix('/').unwrap_or(origin).to_ascii_lowercase();
            let is_origin = bare.split_once("://").is_some_and(|(scheme, host)| {
                !scheme.is_empty()
                    && !host.is_empty()
                    && bare.bytes().all(|byte| byte.is_ascii_graphic())
                    && !host.contains(['/', '?', '#', '@', ','])
            });
            if !is_origin {
                return Err(InvalidOrigin(origin.to_owned()));
            }
            these.push(bare);
        }
        Ok(if these.is_empty() {
            Self::Own
        } else {
            Self::These(these)
        })
    }

    pub(crate) fn allows(&self, origin: &str) -> bool {
        match self {
            Self::Own => false,
            Self::Any => true,
            Self::These(these) => these.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin)),
        }
    }

    fn names_host(&self, host: &str) -> bool {
        match self {
            Self::Own => false,
            Self::Any => true,
            Self::These(these) => these
                .iter()
                .any(|origin| host_of(origin).is_some_and(|named| named.eq_ignore_ascii_case(host))),
        }
    }
}

/// Refuses WebSockets and modifying requests of foreign pages and, with `local_hosts_only`, requests to other hosts.
pub(crate) fn check(options: &GatewayOptions, method: &Method, headers: &HeaderMap) -> Result<(), ApiError> {
    let host = headers.get(header::HOST).map(|host| host.to_str().unwrap_or(""));
    // With DNS rebinding, a foreign page's host name resolves to this machine, so its origin equals the host. Without a
    // token, only hosts that no such page can have are accepted.
    if options.local_hosts_only
        && let Some(host) = host
        && !is_local(host)
        && !options.allow_origin.names_host(host)
    {
        return Err(ApiError::forbidden(
            "without a token, this gateway accepts only requests to an IP address or to localhost",
        ));
    }
    if method.is_safe() && !headers.contains_key(header::UPGRADE) {
        return Ok(());
    }
    let Some(origin) = headers.get(header::ORIGIN) else {
        return Ok(());
    };
    let origin = origin.to_str().unwrap_or("");
    let is_own = matches!((host_of(origin), host), (Some(of_page), Some(own)) if of_page.eq_ignore_ascii_case(own))
        // A page without TLS may be another one: on the standard ports, the origins differ only in the scheme.
        && (options.tls.is_none() || has_tls(origin));
    if is_own || options.allow_origin.allows(origin) {
        Ok(())
    } else {
        Err(ApiError::forbidden(
            "pages of this origin may not use the gateway; name it with --allow-origin if they should",
        ))
    }
}

fn has_tls(origin: &str) -> bool {
    origin
        .split_once("://")
        .is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("https"))
}

fn host_of(origin: &str) -> Option<&str> {
    origin.split_once("://").map(|(_, host)| host)
}

/// Whether the host is an IP address or a name that always means this machine.
fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name.parse::<std::net::IpAddr>().is_ok() || name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Access;

    fn status(options: &GatewayOptions, method: Method, headers: &[(&str, &[u8])]) -> Option<u16> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name = axum::http::HeaderName::from_bytes(name.as_bytes()).unwrap();
            map.append(name, axum::http::HeaderValue::from_bytes(value).unwrap());
        }
        check(options, &method, &map).err().map(|error| error.status().as_u16())
    }

    #[test]
    fn a_foreign_origin_can_only_read() {
        let mut options = GatewayOptions::new(Access::Open);
        options.allow_origin = AllowOrigin::parse(&["https://Lab.example/", "http://x:1"]).unwrap();
        let host: (&str, &[u8]) = ("host", b"gw.example:8888");
        let upgrade: (&str, &[u8]) = ("upgrade", b"websocket");
        let cases: &[(&[u8], bool)] = &[
            (b"http://gw.example:8888", true),
            (b"https://GW.example:8888", true),
            (b"https://lab.example", true),
            (b"http://x:1", true),
            (b"http://lab.example", false),
            (b"https://lab.example:444", false),
            (b"http://gw.example:8889", false),
            (b"http://gw.example", false),
            (b"http://gw.example:8888.evil.example", false),
            (b"null", false),
            (b"", false),
            (b"gw.example:8888", false),
            (b"http://\xff\xfe", false),
        ];
        for (origin, passes) in cases {
            let expected = (!passes).then_some(403);
            assert_eq!(
                status(&options, Method::GET, &[host, upgrade, ("origin", origin)]),
                expected,
                "{origin:?}"
            );
            assert_eq!(
                status(&options, Method::POST, &[host, ("origin", origin)]),
                expected,
                "{origin:?}"
            );
            assert_eq!(status(&options, Method::GET, &[host, ("origin", origin)]), None);
        }
        assert_eq!(status(&options, Method::POST, &[host]), None);
        assert_eq!(status(&options, Method::GET, &[host, upgrade]), None);
    }

    #[test]
    fn without_a_token_only_local_hosts_are_served() {
        let mut options = GatewayOptions::new(Access::Open);
        options.local_hosts_only = true;
        options.allow_origin = AllowOrigin::parse(&["https://lab.example:8443"]).unwrap();
        for (host, passes) in [
            ("127.0.0.1:8888", true),
            ("localhost", true),
            ("LocalHost:1", true),
            ("a.localhost.:80", true),
            ("[::1]:8888", true),
            ("192.168.0.7", true),
            ("lab.example:8443", true),
            ("lab.example", false),
            ("evil.example:8888", false),
            ("127.0.0.1.evil.example", false),
            ("localhost.evil.example", false),
            ("", false),
        ] {
            let got = status(&options, Method::GET, &[("host", host.as_bytes())]);
            assert_eq!(got, (!passes).then_some(403), "{host}");
        }
        assert_eq!(status(&options, Method::GET, &[]), None);
    }

    #[test]
    fn invalid_origins_are_refused() {
        assert_eq!(AllowOrigin::parse::<&str>(&[]).unwrap(), AllowOrigin::Own);
        assert_eq!(AllowOrigin::parse(&["http://a", "*"]).unwrap(), AllowOrigin::Any);
        for bad in [
            "",
            "lab.example",
            "http://",
            "http://a/b",
            "://a",
            "http://a b",
            "http://u@a",
            "http://a?x",
        ] {
            assert!(AllowOrigin::parse(&[bad]).is_err(), "{bad:?}");
        }
    }
}
