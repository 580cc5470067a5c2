//! `GET /api/me`: the client's identity and permissions. The token grants all permissions.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::{IntoParams, ToSchema};

use crate::Gateway;
use crate::error::ApiError;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct MeQuery {
    /// A JSON object of resources, each with a list of actions. All are granted to every client with the token.
    #[param(nullable = false)]
    permissions: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Me {
    identity: Identity,
    /// The requested permissions.
    #[schema(value_type = BTreeMap<String, Vec<String>>)]
    permissions: Map<String, Value>,
}

#[derive(Serialize, ToSchema)]
struct Identity {
    username: String,
    name: String,
    display_name: String,
    initials: String,
    avatar_url: Option<String>,
    color: Option<String>,
}

/// The client's identity and permissions.
#[utoipa::path(
    get, path = "/api/me", tag = "api", operation_id = "me", params(MeQuery),
    responses(
        (status = 200, description = "Identity and permissions", body = Me),
        (status = 400, description = "The permissions are malformed"),
    ),
)]
pub(super) async fn me(
    State(gateway): State<Arc<Gateway>>,
    Query(MeQuery { permissions }): Query<MeQuery>,
) -> Result<Json<Me>, ApiError> {
    let mut granted = match permissions.as_deref() {
        None | Some("") => Map::new(),
        Some(asked) => read(asked).ok_or_else(|| {
            ApiError::bad_request("permissions must be a JSON object of lists, such as {\"kernels\": [\"read\"]}")
        })?,
    };
    granted.insert("updatable_fields".to_owned(), json!([]));
    let name = gateway.options.default_owner.as_deref().unwrap_or("anonymous");
    Ok(Json(Me {
        identity: Identity {
            username: name.to_owned(),
            name: name.to_owned(),
            display_name: name.to_owned(),
            initials: name.chars().take(1).flat_map(char::to_uppercase).collect(),
            avatar_url: None,
            color: None,
        },
        permissions: granted,
    }))
}

fn read(asked: &str) -> Option<Map<String, Value>> {
    let Ok(Value::Object(asked)) = serde_json::from_str(asked) else {
        return None;
    };
    let is_list = |actions: &Value| actions.as_array().is_some_and(|all| all.iter().all(Value::is_string));
    asked.values().all(is_list).then_some(asked)
}
