//! The routes.

mod api;
mod comms;
mod description;
mod event_stream;
mod execution_outputs;
mod executions;
mod health;
mod kernels;
mod kernelspecs;
mod logs;
mod me;
mod metrics;
mod progress;
mod sessions;
mod shares;
mod status;

use std::sync::Arc;

use axum::middleware::{from_fn, from_fn_with_state};
use axum::{Extension, Router};
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) use self::event_stream::write_event;
pub(crate) use self::execution_outputs::OutputLimits;
pub(crate) use self::kernels::{KernelPath, not_found as no_such_kernel};
pub(crate) use self::progress::progress_of_kernel;
pub(crate) use self::sessions::not_found as no_such_session;
use crate::error::ApiError;
use crate::{Gateway, auth, base_url, cors, error, limits, live, request_log, tls, unread_body, websocket};

/// All routes, and their description.
fn described_routes(gateway: &Arc<Gateway>) -> (Router<Arc<Gateway>>, OpenApi) {
    let (routes, mut api) = OpenApiRouter::with_openapi(description::begin(&gateway.options().base_url))
        .routes(routes!(api::version))
        .routes(routes!(status::status))
        .routes(routes!(me::me))
        .routes(routes!(description::yaml))
        .routes(routes!(description::json))
        .routes(routes!(description::swagger_yaml))
        .routes(routes!(metrics::metrics))
        .routes(routes!(kernelspecs::list))
        .routes(routes!(kernelspecs::one))
        .routes(routes!(kernelspecs::resource))
        .routes(routes!(kernels::list, kernels::start))
        .routes(routes!(kernels::one, kernels::end))
        .routes(routes!(kernels::interrupt))
        .routes(routes!(kernels::restart))
        .routes(routes!(progress::progress))
        .routes(routes!(websocket::channels))
        .routes(routes!(event_stream::events))
        .routes(routes!(comms::list))
        .routes(routes!(executions::list, executions::start))
        .routes(routes!(executions::one))
        .routes(routes!(shares::list, shares::create))
        .routes(routes!(shares::revoke))
        .routes(routes!(logs::list))
        .routes(routes!(logs::remove))
        .routes(routes!(sessions::list, sessions::create))
        .routes(routes!(sessions::one, sessions::change, sessions::end))
        .split_for_parts();
    description::require_token(&mut api);
    let (open_routes, open_api) = OpenApiRouter::default()
        .routes(routes!(health::health))
        .routes(routes!(live::page))
        .routes(routes!(live::events))
        .split_for_parts();
    api.merge(open_api);
    description::finish(&mut api);
    let routes = routes
        .fallback(not_found)
        .layer(from_fn_with_state(gateway.clone(), auth::guard))
        .merge(open_routes)
        .layer(from_fn(request_log::note_route));
    (routes, api)
}

pub(crate) fn router(gateway: Arc<Gateway>) -> Router {
    let (routes, api) = described_routes(&gateway);
    let routes = routes.layer(Extension(Arc::new(api))).with_state(gateway.clone());
    // These layers wrap the whole router, so that they also process responses that no handler makes, such as 405 with
    // `Allow`. Requests pass the last layer first.
    Router::new()
        .fallback_service(routes)
        .layer(from_fn_with_state(gateway.clone(), base_url::strip))
        .layer(from_fn_with_state(gateway.clone(), cors::options))
        .layer(from_fn(limits::check))
        .layer(from_fn(unread_body::discard))
        .layer(from_fn(error::as_json))
        .layer(from_fn(error::plain_answers))
        .layer(from_fn_with_state(gateway.clone(), cors::expose))
        .layer(from_fn_with_state(gateway.clone(), tls::strict_transport))
        .layer(from_fn_with_state(gateway, request_log::record))
}

async fn not_found() -> ApiError {
    ApiError::not_found("")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use kernel_log::{LogOptions, Logs, MemoryStore};
    use kernel_manager::{Manager, ManagerOptions};

    use axum::http::Method;

    use super::*;
    use crate::authorization::{ROUTES, action_of};
    use crate::{Access, GatewayOptions};

    /// axum's own routes to the fallback.
    const FALLBACK: [&str; 2] = ["/", "/{*__private__axum_fallback}"];

    fn gateway() -> Arc<Gateway> {
        let logs = Logs::new(Arc::new(MemoryStore::new()), LogOptions::default()).unwrap();
        let manager = Manager::new(vec![], logs, ManagerOptions::default());
        Arc::new(Gateway::new(manager, GatewayOptions::new(Access::Open)))
    }

    /// Routes that the guard does not protect.
    const OPEN: [&str; 3] = ["/healthz", "/live/{token}", "/live/{token}/events"];

    #[tokio::test]
    async fn each_protected_route_has_an_action_and_no_other_has() {
        let (_, api) = described_routes(&gateway());
        let mut described = BTreeSet::new();
        for (path, item) in api.paths.paths {
            let path = path.replace("{path}", "{*path}");
            for (method, operation) in [
                (Method::GET, item.get),
                (Method::POST, item.post),
                (Method::PATCH, item.patch),
                (Method::DELETE, item.delete),
                (Method::PUT, item.put),
            ] {
                if operation.is_some() && !OPEN.contains(&path.as_str()) {
                    assert!(
                        action_of(&method, &path).is_some(),
                        "add {method} {path} to the table of `authorization`"
                    );
                    described.insert(format!("{method} {path}"));
                }
            }
        }
        let table: BTreeSet<String> = ROUTES
            .iter()
            .map(|(method, path, _)| format!("{method} {path}"))
            .collect();
        assert_eq!(table, described);
    }

    #[tokio::test]
    async fn the_description_has_the_routes_and_no_others() {
        let (routes, api) = described_routes(&gateway());
        let described: BTreeSet<String> = api.paths.paths.into_keys().collect();
        // A router names its routes only in its debug output.
        let text = format!("{routes:?}");
        let routed: BTreeSet<String> = text
            .split('"')
            .filter(|text| text.starts_with('/') && !FALLBACK.contains(text))
            .map(|path| path.replace("{*", "{"))
            .collect();
        assert_eq!(routed, described, "{text}");
    }
}
