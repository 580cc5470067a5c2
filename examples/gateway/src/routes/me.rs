//! `GET /api/me`: the client's identity and permissions.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::{IntoParams, ToSchema};

use crate::Gateway;
use crate::error::ApiError;
use crate::identity::{Caller, Role};

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct MeQuery {
    /// A JSON object of resources, each with a list of actions. The response has those that the client's role grants.
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
    Extension(caller): Caller,
    Query(MeQuery { permissions }): Query<MeQuery>,
) -> Result<Json<Me>, ApiError> {
    let mut granted: Map<String, Value> = match permissions.as_deref() {
        None | Some("") => Map::new(),
        Some(asked) => read(asked).ok_or_else(|| {
            ApiError::bad_request("permissions must be a JSON object of lists, such as {\"kernels\": [\"read\"]}")
        })?,
    };
    for (resource, actions) in &mut granted {
        if let Value::Array(actions) = actions {
            actions.retain(|action| grants(caller.role, resource, action.as_str().unwrap_or_default()));
        }
    }
    granted.insert("updatable_fields".to_owned(), json!([]));
    let options = gateway.options();
    let name = caller.name.as_deref().or(options.default_owner.as_deref());
    let name = name.unwrap_or("anonymous");
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

/// Whether a role has a permission in the terms of jupyter_server.
fn grants(role: Role, resource: &str, action: &str) -> bool {
    match role {
        Role::User | Role::Admin | Role::Server => true,
        Role::Operator => action == "read" || (action == "write" && matches!(resource, "kernels" | "sessions")),
        Role::Viewer => action == "read",
    }
}

fn read(asked: &str) -> Option<Map<String, Value>> {
    let Ok(Value::Object(asked)) = serde_json::from_str(asked) else {
        return None;
    };
    let is_list = |actions: &Value| actions.as_array().is_some_and(|all| all.iter().all(Value::is_string));
    asked.values().all(is_list).then_some(asked)
}
