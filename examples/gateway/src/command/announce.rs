use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use kernelmux_gateway::{Access, BaseUrl};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Characters to escape in a query: all but the unreserved ones of RFC 3986.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The variable with a token that the user has to fill in.
const ASKED: &str = " JUPYTER_GATEWAY_AUTH_TOKEN=\"$TOKEN\"";

/// The source of the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenSource<'a> {
    /// A flag, or generated.
    Shown,
    /// The variable `KERNELMUX_TOKEN`.
    Environment,
    /// This file.
    File(&'a Path),
    /// A configuration file.
    Configuration,
}

/// Prints the gateway's address and the command line for JupyterLab, with the token. Nothing else prints the token. If
/// the token comes from a file or the environment, prints a reference to that source instead of the token, because
/// others may read a pod's output.
pub(super) fn announce(
    out: &mut impl io::Write,
    address: SocketAddr,
    base_url: &BaseUrl,
    has_tls: bool,
    access: &Access,
    token_source: TokenSource<'_>,
) -> io::Result<()> {
    // A gateway on all addresses can be reached through loopback.
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::from(std::net::Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let scheme = if has_tls { "https" } else { "http" };
    let url = format!("{scheme}://{}{base_url}", SocketAddr::new(ip, address.port()));
    let (query, variable) = match access {
        Access::Token(token) => match token_source {
            TokenSource::Environment => (
                String::new(),
                " JUPYTER_GATEWAY_AUTH_TOKEN=\"$KERNELMUX_TOKEN\"".to_owned(),
            ),
            TokenSource::File(path) => (
                String::new(),
                format!(
                    " JUPYTER_GATEWAY_AUTH_TOKEN=\"$(cat {})\"",
                    shell_quote(&path.to_string_lossy())
                ),
            ),
            TokenSource::Configuration => (String::new(), ASKED.to_owned()),
            TokenSource::Shown => (
                format!("?token={}", utf8_percent_encode(token.reveal(), ESCAPED)),
                format!(" JUPYTER_GATEWAY_AUTH_TOKEN={}", shell_quote(token.reveal())),
            ),
        },
        // Each user has their own token.
        Access::Users => (String::new(), ASKED.to_owned()),
        Access::Open => (String::new(), String::new()),
    };
    writeln!(out, "kernelmux-gateway is at {url}{query}")?;
    writeln!(out, "JUPYTER_GATEWAY_URL={url}{variable} jupyter lab")?;
    out.flush()
}

fn shell_quote(text: &str) -> String {
    let is_plain = text
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._/:@%+=,".contains(&byte));
    if is_plain {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use kernelmux_gateway::Token;

    use super::*;

    fn announced(address: &str, base_url: &str, token: Option<&str>, token_source: TokenSource<'_>) -> String {
        let access = token.map_or(Access::Open, |token| Access::Token(Token::new(token).unwrap()));
        let mut out = Vec::new();
        announce(
            &mut out,
            address.parse().unwrap(),
            &base_url.parse().unwrap(),
            false,
            &access,
            token_source,
        )
        .unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn both_lines_can_be_pasted() {
        assert_eq!(
            announced("127.0.0.1:8888", "/", Some("abc"), TokenSource::Shown),
            "kernelmux-gateway is at http://127.0.0.1:8888/?token=abc\n\
             JUPYTER_GATEWAY_URL=http://127.0.0.1:8888/ JUPYTER_GATEWAY_AUTH_TOKEN=abc jupyter lab\n"
        );
        assert_eq!(
            announced("0.0.0.0:1", "/a", Some("a&b's"), TokenSource::Shown),
            "kernelmux-gateway is at http://127.0.0.1:1/a/?token=a%26b%27s\n\
             JUPYTER_GATEWAY_URL=http://127.0.0.1:1/a/ JUPYTER_GATEWAY_AUTH_TOKEN='a&b'\\''s' jupyter lab\n"
        );
        assert_eq!(
            announced("[::1]:1", "/", None, TokenSource::Shown),
            "kernelmux-gateway is at http://[::1]:1/\nJUPYTER_GATEWAY_URL=http://[::1]:1/ jupyter lab\n"
        );
    }

    #[test]
    fn users_fill_in_their_own_token() {
        let mut out = Vec::new();
        let (address, base_url) = ("127.0.0.1:8888".parse().unwrap(), BaseUrl::default());
        announce(&mut out, address, &base_url, true, &Access::Users, TokenSource::Shown).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "kernelmux-gateway is at https://127.0.0.1:8888/\n\
             JUPYTER_GATEWAY_URL=https://127.0.0.1:8888/ JUPYTER_GATEWAY_AUTH_TOKEN=\"$TOKEN\" jupyter lab\n"
        );
    }

    #[test]
    fn a_token_from_the_environment_or_a_file_is_not_printed() {
        assert_eq!(
            announced("127.0.0.1:8888", "/", Some("abc"), TokenSource::Environment),
            "kernelmux-gateway is at http://127.0.0.1:8888/\n\
             JUPYTER_GATEWAY_URL=http://127.0.0.1:8888/ JUPYTER_GATEWAY_AUTH_TOKEN=\"$KERNELMUX_TOKEN\" jupyter lab\n"
        );
        let file = TokenSource::File(Path::new("/run/a token"));
        let lines = announced("127.0.0.1:8888", "/", Some("abc"), file);
        assert!(
            lines.contains("AUTH_TOKEN=\"$(cat '/run/a token')\" jupyter lab"),
            "{lines}"
        );
        assert!(!lines.contains("abc"), "{lines}");
    }
}
