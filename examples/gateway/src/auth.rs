//! Who may: whoever has the token, in `Authorization: token X`, `Authorization: Bearer X` (in any case) or `?token=X`.

use std::sync::Arc;

use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::error::ApiError;
use crate::{Access, Gateway, origin};

/// Lets a request through that has the token and does not come from a foreign page.
pub(crate) async fn guard(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    // A browser asks without its token what it may do. No route takes OPTIONS, so this lets nobody do anything.
    if request.method() == Method::OPTIONS {
        return next.run(request).await;
    }
    if let Err(refusal) = check(&gateway.options.access, request.headers(), request.uri()) {
        let mut response = refusal.into_response();
        let challenge = HeaderValue::from_static("Bearer");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        return response;
    }
    if let Err(refusal) = origin::check(&gateway.options, request.method(), request.headers()) {
        return refusal.into_response();
    }
    next.run(request).await
}

fn check(access: &Access, headers: &HeaderMap, uri: &Uri) -> Result<(), ApiError> {
    let Access::Token(token) = access else {
        return Ok(());
    };
    let given = given(headers, uri);
    if given.is_empty() {
        let how = "a token is required: send `Authorization: token TOKEN`, or `?token=TOKEN`";
        return Err(ApiError::new(StatusCode::UNAUTHORIZED, how));
    }
    if given.iter().any(|given| token.is(given)) {
        Ok(())
    } else {
        Err(ApiError::new(
            StatusCode::UNAUTHORIZED,
            "the token is not the right one",
        ))
    }
}

/// All tokens that the request has. `Authorization: token` and `?token=` without more are none: that is what clients
/// without a token send.
fn given(headers: &HeaderMap, uri: &Uri) -> Vec<Vec<u8>> {
    let from_headers = headers
        .get_all(header::AUTHORIZATION)
        .iter()
        .filter_map(|value| of_header(value.as_bytes()))
        .map(<[u8]>::to_vec);
    let query = Query::<Vec<(String, String)>>::try_from_uri(uri).map_or_else(|_| Vec::new(), |query| query.0);
    let from_query = query
        .into_iter()
        .filter(|(key, value)| key == "token" && !value.is_empty())
        .map(|(_, value)| value.into_bytes());
    from_headers.chain(from_query).collect()
}

fn of_header(value: &[u8]) -> Option<&[u8]> {
    let value = value.trim_ascii();
    let end = value.iter().position(u8::is_ascii_whitespace)?;
    let (scheme, token) = value.split_at(end);
    let is_known = scheme.eq_ignore_ascii_case(b"token") || scheme.eq_ignore_ascii_case(b"bearer");
    is_known.then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Token;

    #[test]
    fn the_token_counts_wherever_it_is() {
        let access = Access::Token(Token::new("s3cret/&").unwrap());
        let status = |headers: &[&[u8]], uri: &str| {
            let mut map = HeaderMap::new();
            for value in headers {
                map.append(header::AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
            }
            check(&access, &map, &uri.parse().unwrap())
                .err()
                .map(|error| error.status())
        };
        let right: &[(&[&[u8]], &str)] = &[
            (&[b"token s3cret/&"], "/"),
            (&[b"Token  s3cret/& "], "/"),
            (&[b"TOKEN\ts3cret/&"], "/"),
            (&[b"bearer s3cret/&"], "/?x=1"),
            (&[b"Bearer s3cret/&"], "/"),
            (&[], "/?token=s3cret/%26"),
            (&[], "/?a=b&token=s3cret%2F%26"),
            // A proxy's own header beside it does no harm.
            (&[b"Basic dXNlcjpwYXNz"], "/?token=s3cret/%26"),
            (&[b"token"], "/?token=s3cret/%26"),
        ];
        for (headers, uri) in right {
            assert_eq!(status(headers, uri), None, "{headers:?} {uri}");
        }
        let wrong: &[(&[&[u8]], &str)] = &[
            (&[], "/"),
            (&[], "/?token="),
            (&[], "/?Token=s3cret/%26"),
            (&[], "/?token=s3cret"),
            (&[], "/?token=%ff%fe"),
            (&[b"token"], "/"),
            (&[b"token "], "/"),
            (&[b"token s3cret/&x"], "/"),
            (&[b"token s3cret/"], "/"),
            (&[b"token S3CRET/&"], "/"),
            (&[b"Basic s3cret/&"], "/"),
            (&[b"tokens3cret/&"], "/"),
            (&[b"s3cret/&"], "/"),
            (&[b"token \xff\xfe"], "/"),
        ];
        for (headers, uri) in wrong {
            assert_eq!(
                status(headers, uri),
                Some(StatusCode::UNAUTHORIZED),
                "{headers:?} {uri}"
            );
        }
        assert!(check(&Access::Open, &HeaderMap::new(), &"/".parse().unwrap()).is_ok());
    }
}
