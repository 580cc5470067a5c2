//! `GET /api/me`: the client's identity and permissions. The token grants all permissions.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::Gateway;
use crate::error::ApiError;

#[derive(Deserialize)]
pub(super) struct MeQuery {
    permissions: Option<String>,
}

pub(super) async fn me(
    State(gateway): State<Arc<Gateway>>,
    Query(MeQuery { permissions }): Query<MeQuery>,
) -> Result<Json<Value>, ApiError> {
    let mut granted = match permissions.as_deref() {
        None | Some("") => Map::new(),
        Some(asked) => read(asked).ok_or_else(|| {
            ApiError::bad_request("permissions must be a JSON object of lists, such as {\"kernels\": [\"read\"]}")
        })?,
    };
    granted.insert("updatable_fields".to_owned(), json!([]));
    let name = gateway.options.default_owner.as_deref().unwrap_or("anonymous");
    let initial: String = name.chars().take(1).flat_map(char::to_uppercase).collect();
    Ok(Json(json!({
        "identity": {
            "username": name,
            "name": name,
            "display_name": name,
            "initials": initial,
            "avatar_url": null,
            "color": null,
        },
        "permissions": granted,
    })))
}

fn read(asked: &str) -> Option<Map<String, Value>> {
    let Ok(Value::Object(asked)) = serde_json::from_str(asked) else {
        return None;
    };
    let is_list = |actions: &Value| actions.as_array().is_some_and(|all| all.iter().all(Value::is_string));
    asked.values().all(is_list).then_some(asked)
}
