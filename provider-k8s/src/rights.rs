use chrono::{DateTime, Utc};
use http::header::DATE;
use http::{Request, Uri};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kernel_provider::ProviderError;
use kube::api::PostParams;
use kube::client::Body;
use kube::{Api, Client};

/// What the provider does in its namespace: the resource, its subresource, and the verb.
const USED: [(&str, &str, &str); 11] = [
    ("pods", "", "get"),
    ("pods", "", "list"),
    ("pods", "", "watch"),
    ("pods", "", "create"),
    ("pods", "", "delete"),
    ("pods", "", "patch"),
    ("secrets", "", "get"),
    ("secrets", "", "create"),
    ("events", "", "list"),
    ("events", "", "watch"),
    ("pods", "log", "get"),
];

/// A right that the provider's credentials lack.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MissingRight {
    /// The verb, such as `create`.
    pub verb: &'static str,
    /// The resource, such as `pods` or `pods/log`.
    pub resource: String,
}

/// The rights in the namespace that the [provider](crate::K8sProvider) uses and the client's credentials lack. The right
/// to run commands in pods (`pods/exec`) is optional and not among them.
///
/// # Errors
/// [`ProviderError`] if the cluster does not answer.
pub async fn missing_rights(client: Client, namespace: &str) -> Result<Vec<MissingRight>, ProviderError> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client);
    let mut missing = Vec::new();
    for (resource, subresource, verb) in USED {
        let attributes = ResourceAttributes {
            namespace: Some(namespace.to_owned()),
            resource: Some(resource.to_owned()),
            subresource: Some(subresource.to_owned()).filter(|name| !name.is_empty()),
            verb: Some(verb.to_owned()),
            ..ResourceAttributes::default()
        };
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(attributes),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let reviewed = reviews
            .create(&PostParams::default(), &review)
            .await
            .map_err(|error| ProviderError::failed("ask the cluster for its rights", error))?;
        if !reviewed.status.is_some_and(|status| status.allowed) {
            let resource = match subresource {
                "" => resource.to_owned(),
                subresource => format!("{resource}/{subresource}"),
            };
            missing.push(MissingRight { verb, resource });
        }
    }
    Ok(missing)
}

/// The cluster's time; `None` if it does not tell it.
///
/// # Errors
/// [`ProviderError`] if the cluster does not answer.
pub async fn cluster_time(client: Client) -> Result<Option<DateTime<Utc>>, ProviderError> {
    let failed = |error| ProviderError::failed("ask the cluster for its time", error);
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = Uri::from_static("/version");
    let response = client.send(request).await.map_err(failed)?;
    let date = response.headers().get(DATE).and_then(|date| date.to_str().ok());
    Ok(date.and_then(|date| Some(DateTime::parse_from_rfc2822(date).ok()?.to_utc())))
}
