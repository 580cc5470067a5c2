use std::fmt::Write;
use std::io;
use std::net::{IpAddr, SocketAddr};

use kernelmux_gateway::{Access, BaseUrl};

/// Says where the gateway is, with its token, and how to point JupyterLab at it. The only place that tells the token; one
/// that was given by the environment variable is told by that name: whoever set it has it, and what a pod prints is read
/// by others.
pub(super) fn announce(
    out: &mut impl io::Write,
    address: SocketAddr,
    base_url: &BaseUrl,
    access: &Access,
    from_env: bool,
) -> io::Result<()> {
    // Where it listens on all addresses, this machine's own reaches it.
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::from(std::net::Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let url = format!("http://{}{base_url}", SocketAddr::new(ip, address.port()));
    let (query, variable) = match access {
        Access::Token(_) if from_env => (
            String::new(),
            " JUPYTER_GATEWAY_AUTH_TOKEN=\"$KERNELMUX_TOKEN\"".to_owned(),
        ),
        Access::Token(token) => (
            format!("?token={}", percent_encode(token.reveal())),
            format!(" JUPYTER_GATEWAY_AUTH_TOKEN={}", shell_quote(token.reveal())),
        ),
        Access::Open => (String::new(), String::new()),
    };
    writeln!(out, "kernelmux-gateway is at {url}{query}")?;
    writeln!(out, "JUPYTER_GATEWAY_URL={url}{variable} jupyter lab")?;
    out.flush()
}

fn percent_encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
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

    fn said(address: &str, base_url: &str, token: Option<&str>, from_env: bool) -> String {
        let access = token.map_or(Access::Open, |token| Access::Token(Token::new(token).unwrap()));
        let mut out = Vec::new();
        announce(
            &mut out,
            address.parse().unwrap(),
            &base_url.parse().unwrap(),
            &access,
            from_env,
        )
        .unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn both_lines_can_be_used_as_they_are() {
        assert_eq!(
            said("127.0.0.1:8888", "/", Some("abc"), false),
            "kernelmux-gateway is at http://127.0.0.1:8888/?token=abc\n\
             JUPYTER_GATEWAY_URL=http://127.0.0.1:8888/ JUPYTER_GATEWAY_AUTH_TOKEN=abc jupyter lab\n"
        );
        assert_eq!(
            said("0.0.0.0:1", "/a", Some("a&b's"), false),
            "kernelmux-gateway is at http://127.0.0.1:1/a/?token=a%26b%27s\n\
             JUPYTER_GATEWAY_URL=http://127.0.0.1:1/a/ JUPYTER_GATEWAY_AUTH_TOKEN='a&b'\\''s' jupyter lab\n"
        );
        assert_eq!(
            said("[::1]:1", "/", None, false),
            "kernelmux-gateway is at http://[::1]:1/\nJUPYTER_GATEWAY_URL=http://[::1]:1/ jupyter lab\n"
        );
    }

    #[test]
    fn a_token_of_the_environment_is_not_told() {
        assert_eq!(
            said("127.0.0.1:8888", "/", Some("abc"), true),
            "kernelmux-gateway is at http://127.0.0.1:8888/\n\
             JUPYTER_GATEWAY_URL=http://127.0.0.1:8888/ JUPYTER_GATEWAY_AUTH_TOKEN=\"$KERNELMUX_TOKEN\" jupyter lab\n"
        );
    }
}
