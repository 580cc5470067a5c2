//! The description of the API in OpenAPI 3.1, generated from the handlers and their types.

use std::sync::Arc;

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use utoipa::openapi::path::Operation;
use utoipa::openapi::response::Response as Described;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, Content, InfoBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, ResponseBuilder, Server,
};

use crate::BaseUrl;
use crate::error::ErrorBody;

/// The description without its paths.
pub(super) fn begin(base_url: &BaseUrl) -> OpenApi {
    let info = InfoBuilder::new()
        .title("kernelmux-gateway")
        .description(Some(
            "Jupyter kernels over HTTP and WebSockets. Every address also answers HEAD where it answers GET, and \
             OPTIONS, which needs no token. Errors have a JSON body with reason and message.",
        ))
        .version(env!("CARGO_PKG_VERSION"));
    let header = ApiKeyValue::with_description("Authorization", "token TOKEN, or Bearer TOKEN");
    let components = ComponentsBuilder::new()
        .schema_from::<ErrorBody>()
        .security_scheme("header", SecurityScheme::ApiKey(ApiKey::Header(header)))
        .security_scheme(
            "query",
            SecurityScheme::ApiKey(ApiKey::Query(ApiKeyValue::new("token"))),
        );
    let server = match base_url.prefix() {
        "" => "/",
        prefix => prefix,
    };
    OpenApiBuilder::new()
        .info(info.build())
        .servers(Some([Server::new(server)]))
        .components(Some(components.build()))
        .build()
}

/// Adds the responses of `auth` to all operations.
pub(super) fn require_token(api: &mut OpenApi) {
    for operation in operations(api) {
        let schemes = ["header", "query"].map(|scheme| SecurityRequirement::new(scheme, [""; 0]));
        operation.security = Some(schemes.into());
        for (status, description) in [
            ("401", "The token is missing, wrong or expired"),
            (
                "429",
                "Too many wrong tokens came from the client's address; Retry-After is the number of seconds to wait",
            ),
        ] {
            let response = ResponseBuilder::new().description(description).build();
            operation.responses.responses.insert(status.to_owned(), response.into());
        }
        let unavailable = ResponseBuilder::new()
            .description("The token cannot be checked now; Retry-After is the number of seconds to wait")
            .build();
        let responses = &mut operation.responses.responses;
        responses.entry("503".to_owned()).or_insert(unavailable.into());
    }
}

/// Adds the schema of the JSON error body to all described errors without a content type.
pub(super) fn finish(api: &mut OpenApi) {
    for operation in operations(api) {
        for (status, response) in &mut operation.responses.responses {
            if let RefOr::T(Described { content, .. }) = response
                && status.starts_with(['4', '5'])
                && content.is_empty()
            {
                let body = Content::new(Some(Ref::from_schema_name("Error")));
                content.insert("application/json".to_owned(), body.into());
            }
        }
    }
    // axum's patterns mark a parameter that contains slashes; OpenAPI has no such mark.
    let paths = std::mem::take(&mut api.paths.paths);
    let renamed = paths.into_iter().map(|(path, item)| (path.replace("{*", "{"), item));
    api.paths.paths = renamed.collect();
}

fn operations(api: &mut OpenApi) -> impl Iterator<Item = &mut Operation> {
    let items = api.paths.paths.values_mut();
    items
        .flat_map(|item| [&mut item.get, &mut item.post, &mut item.patch, &mut item.delete])
        .flatten()
}

/// This description, as JSON.
#[utoipa::path(
    get, path = "/api/swagger.json", tag = "api", operation_id = "description_json",
    responses((status = 200, description = "The description", body = Object)),
)]
pub(super) async fn json(Extension(api): Extension<Arc<OpenApi>>) -> Response {
    Json(&*api).into_response()
}

/// This description, as YAML.
#[utoipa::path(
    get, path = "/api/spec.yaml", tag = "api", operation_id = "description_yaml",
    responses((status = 200, description = "The description", body = Object, content_type = "application/yaml")),
)]
pub(super) async fn yaml(api: Extension<Arc<OpenApi>>) -> Response {
    let mut response = json(api).await;
    // JSON is YAML.
    let content_type = HeaderValue::from_static("application/yaml");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

/// This description, as YAML, under a name like that of the JSON description.
#[utoipa::path(
    get, path = "/api/swagger.yaml", tag = "api", operation_id = "swagger_yaml",
    responses((status = 200, description = "The description", body = Object, content_type = "application/yaml")),
)]
pub(super) async fn swagger_yaml(api: Extension<Arc<OpenApi>>) -> Response {
    yaml(api).await
}
