//! `/api/kernels/{id}/shares`: links that show a kernel's cells to people without an account.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::kernels::{KernelPath, find, not_found};
use crate::Gateway;
use crate::error::ApiError;
use crate::identity::checked_name;
use crate::limits::JsonObject;
use crate::model::timestamp;
use crate::shares::{DEFAULT_LIFETIME, MAX_LIFETIME, MIN_LIFETIME, Readers, Share, ShareError, SharedKernel};

/// Longest path of a notebook, in bytes.
const MAX_PATH: usize = 1_024;
/// The most users, and the most groups, of a share.
const MAX_READERS: usize = 64;

/// The share to make.
#[derive(Deserialize, ToSchema)]
#[serde(expecting = "an object")]
pub(super) struct NewShare {
    /// The path of the notebook. The page shows it as title.
    path: Option<String>,
    /// How long the share lasts, in seconds: a day by default, 30 days at most.
    expires_in_s: Option<u64>,
    /// Users of the gateway who may read the kernel with their own tokens. A share with users or groups has no link.
    users: Option<Vec<String>>,
    /// Groups whose members may read the kernel.
    groups: Option<Vec<String>>,
}

/// A share.
#[derive(Serialize, ToSchema)]
#[schema(as = Share)]
pub(super) struct ShareModel {
    #[schema(format = Uuid)]
    id: String,
    path: Option<String>,
    /// The users who may read the kernel; absent if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    users: Vec<String>,
    /// The groups whose members may read the kernel; absent if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    groups: Vec<String>,
    #[schema(format = DateTime)]
    created: String,
    #[schema(format = DateTime)]
    expires: String,
}

/// A new share with its link, which is shown only once.
#[derive(Serialize, ToSchema)]
#[schema(as = ShareWithLink)]
pub(super) struct ShareWithLink {
    #[serde(flatten)]
    share: ShareModel,
    /// The token, which gives access to the page; absent from a share with users or groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    token: Option<String>,
    /// The path of the page, with the gateway's base URL; absent like the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    url: Option<String>,
}

/// The shares of a kernel.
#[derive(Serialize, ToSchema)]
#[schema(as = Shares)]
pub(super) struct SharesModel {
    /// Oldest first, without their tokens.
    shares: Vec<ShareModel>,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct SharePath {
    /// The kernel's id.
    #[param(format = Uuid)]
    id: String,
    /// The share's id.
    #[param(format = Uuid)]
    share: String,
}

impl From<&Share> for ShareModel {
    fn from(share: &Share) -> Self {
        Self {
            id: share.id.to_string(),
            path: share.path.clone(),
            users: share.readers.users.clone(),
            groups: share.readers.groups.clone(),
            created: timestamp(share.created),
            expires: timestamp(share.expires),
        }
    }
}

/// 404 if shares are turned off.
fn if_allowed(gateway: &Gateway) -> Result<(), ApiError> {
    if gateway.options().allow_shares {
        Ok(())
    } else {
        Err(ApiError::not_found("this gateway has no shares"))
    }
}

/// Checks the names of users or groups.
fn checked_names(field: &str, names: Option<Vec<String>>) -> Result<Vec<String>, ApiError> {
    let names = names.unwrap_or_default();
    if names.len() > MAX_READERS {
        let message = format!("{field:?} has more than {MAX_READERS} names; share with a group instead");
        return Err(ApiError::bad_request(message));
    }
    for name in &names {
        checked_name(name).map_err(|error| ApiError::bad_request(format!("{field:?}: {error}")))?;
    }
    Ok(names)
}

/// Makes a link to a read-only page of the kernel's cells and their live outputs, or lets users and groups of the
/// gateway read the kernel.
#[utoipa::path(
    post, path = "/api/kernels/{id}/shares", tag = "shares", operation_id = "share", params(KernelPath),
    request_body = Option<NewShare>,
    responses(
        (status = 201, description = "The share with its link", body = ShareWithLink,
         headers(("Location" = String, description = "The share's address"))),
        (status = 400, description = "The request is malformed"),
        (status = 404, description = "There is no such kernel, or shares are turned off"),
        (status = 408, description = "The body did not arrive in time"),
        (status = 409, description = "There are too many shares"),
        (status = 413, description = "The body is too large"),
        (status = 500, description = "The share cannot be stored"),
    ),
)]
pub(super) async fn create(
    State(gateway): State<Arc<Gateway>>,
    Path(KernelPath { id }): Path<KernelPath>,
    body: JsonObject,
) -> Result<Response, ApiError> {
    if_allowed(&gateway)?;
    let kernel = find(&gateway, &id)?;
    let NewShare {
        path,
        expires_in_s,
        users,
        groups,
    } = body.read()?;
    if path.as_ref().is_some_and(|path| path.len() > MAX_PATH) {
        return Err(ApiError::bad_request(format!(
            "\"path\" has more than {MAX_PATH} bytes"
        )));
    }
    let lifetime = expires_in_s.map_or(DEFAULT_LIFETIME, Duration::from_secs);
    if !(MIN_LIFETIME..=MAX_LIFETIME).contains(&lifetime) {
        return Err(ApiError::bad_request(format!(
            "\"expires_in_s\" must be from {} to {}",
            MIN_LIFETIME.as_secs(),
            MAX_LIFETIME.as_secs()
        )));
    }
    let readers = Readers {
        users: checked_names("users", users)?,
        groups: checked_names("groups", groups)?,
    };
    let (share, token) = gateway
        .shares
        .create(SharedKernel::of(&kernel), path, readers, lifetime)
        .await
        .map_err(|error| {
            let status = match error {
                ShareError::TooMany(_) => StatusCode::CONFLICT,
                ShareError::Write(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            ApiError::new(status, error.to_string())
        })?;
    let options = gateway.options();
    let prefix = options.base_url.prefix();
    let location = format!("{prefix}/api/kernels/{}/shares/{}", kernel.id(), share.id);
    let made = ShareWithLink {
        share: (&share).into(),
        url: token.as_ref().map(|token| format!("{prefix}/live/{token}")),
        token,
    };
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(made)).into_response())
}

/// The valid shares of a kernel, without their links.
#[utoipa::path(
    get, path = "/api/kernels/{id}/shares", tag = "shares", operation_id = "list_shares", params(KernelPath),
    responses(
        (status = 200, description = "The shares", body = SharesModel),
        (status = 404, description = "The id is malformed, or shares are turned off"),
    ),
)]
pub(super) async fn list(
    State(gateway): State<Arc<Gateway>>,
    Path(KernelPath { id }): Path<KernelPath>,
) -> Result<Json<SharesModel>, ApiError> {
    if_allowed(&gateway)?;
    // Shares of a kernel that is gone can still be revoked.
    let kernel = id.parse().map_err(|_| not_found(&id))?;
    let shares = gateway.shares.of_kernel(kernel).iter().map(ShareModel::from).collect();
    Ok(Json(SharesModel { shares }))
}

/// Revokes a share: its link stops working, also on pages that are open.
#[utoipa::path(
    delete, path = "/api/kernels/{id}/shares/{share}", tag = "shares", operation_id = "revoke_share",
    params(SharePath),
    responses(
        (status = 204, description = "The link does not work any more"),
        (status = 404, description = "There is no such share, or shares are turned off"),
        (status = 500, description = "The link does not work now, but may after a restart of the gateway"),
    ),
)]
pub(super) async fn revoke(
    State(gateway): State<Arc<Gateway>>,
    Path(SharePath { id, share }): Path<SharePath>,
) -> Result<StatusCode, ApiError> {
    if_allowed(&gateway)?;
    let no_share = || ApiError::not_found("Share does not exist");
    let kernel = id.parse().map_err(|_| no_share())?;
    let share: Uuid = share.parse().map_err(|_| no_share())?;
    match gateway.shares.revoke(kernel, share).await {
        Ok(true) => Ok(StatusCode::NO_CONTENT),
        Ok(false) => Err(no_share()),
        Err(error) => Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}
