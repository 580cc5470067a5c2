use std::num::NonZeroUsize;
use std::time::Duration;

use kernel_manager::{CullingRules, GroupOptions};
use serde::Deserialize;
use serde_json::json;

use crate::error::ApiError;

/// Rules for the members of a group. If a user is in several groups with rules, the first one that has a rule decides.
///
/// ```
/// use kernelmux_gateway::GroupRules;
///
/// let rules: GroupRules = serde_json::from_str(r#"{"max-kernels-per-user": 2, "kernelspecs": ["python3"]}"#)?;
/// assert_eq!(rules.kernelspecs, Some(vec!["python3".to_owned()]));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct GroupRules {
    /// The most kernels of the group at a time.
    pub max_kernels: Option<NonZeroUsize>,
    /// The most kernels of each member, in place of the limit for all users.
    pub max_kernels_per_user: Option<NonZeroUsize>,
    /// The only kernelspecs that members may start.
    pub kernelspecs: Option<Vec<String>>,
    /// The only resource profiles that members may choose. They must choose one, and cannot set resources in another
    /// way, such as `KERNEL_CPUS`.
    pub profiles: Option<Vec<String>>,
    /// The only images that members may name with `KERNEL_IMAGE`; a final `*` matches any rest. The provider's own
    /// rules apply too.
    pub images: Option<Vec<String>>,
    /// After how many idle seconds members' kernels are ended; 0 for never.
    pub cull_idle_timeout: Option<u64>,
    /// At which age in seconds members' kernels are ended; 0 for never.
    pub cull_max_age: Option<u64>,
    /// Whether members' idle kernels with connected clients are ended too.
    pub cull_connected: Option<bool>,
    /// Whether members' busy kernels are ended too.
    pub cull_busy: Option<bool>,
}

impl GroupRules {
    /// The names of all rules.
    pub const NAMES: [&str; 9] = [
        "max-kernels",
        "max-kernels-per-user",
        "kernelspecs",
        "profiles",
        "images",
        "cull-idle-timeout",
        "cull-max-age",
        "cull-connected",
        "cull-busy",
    ];

    /// The names of the rules that are given, with their values as JSON, which is also TOML.
    pub fn given(&self) -> impl Iterator<Item = (&'static str, serde_json::Value)> {
        let values = [
            json!(self.max_kernels),
            json!(self.max_kernels_per_user),
            json!(self.kernelspecs),
            json!(self.profiles),
            json!(self.images),
            json!(self.cull_idle_timeout),
            json!(self.cull_max_age),
            json!(self.cull_connected),
            json!(self.cull_busy),
        ];
        Self::NAMES
            .into_iter()
            .zip(values)
            .filter(|(_, value)| !value.is_null())
    }

    /// The rules that the manager applies.
    #[must_use]
    pub fn for_manager(&self) -> GroupOptions {
        let mut culling = CullingRules::default();
        culling.idle_timeout = self.cull_idle_timeout.map(Duration::from_secs);
        culling.max_age = self.cull_max_age.map(Duration::from_secs);
        culling.connected = self.cull_connected;
        culling.busy = self.cull_busy;
        let mut options = GroupOptions::default().with_culling(culling);
        options.max_kernels = self.max_kernels.map(usize::from);
        options.max_kernels_per_owner = self.max_kernels_per_user.map(usize::from);
        options
    }
}

/// The groups with rules that a user is in.
pub(crate) struct Memberships<'a>(Vec<(&'a str, &'a GroupRules)>);

impl<'a> Memberships<'a> {
    /// Those of a user in `groups`.
    pub(crate) fn new(rules: &'a [(String, GroupRules)], groups: &[String]) -> Self {
        let own = rules.iter().filter(|(name, _)| groups.contains(name));
        Self(own.map(|(name, rules)| (name.as_str(), rules)).collect())
    }

    /// The groups' names.
    pub(crate) fn names(&self) -> Vec<String> {
        self.0.iter().map(|(name, _)| (*name).to_owned()).collect()
    }

    fn first<T>(&self, rule: impl Fn(&'a GroupRules) -> Option<T>) -> Option<(&'a str, T)> {
        self.0.iter().find_map(|(name, rules)| Some((*name, rule(rules)?)))
    }

    /// Whether the user may start kernels of this kernelspec.
    pub(crate) fn allow_spec(&self, spec: &str) -> bool {
        let allowed = self.first(|rules| rules.kernelspecs.as_deref());
        allowed.is_none_or(|(_, allowed)| allowed.iter().any(|name| name == spec))
    }

    /// Checks the profile that a start names.
    ///
    /// # Errors
    /// 403 if the user may not choose it, or may not do without.
    pub(crate) fn check_profile(&self, chosen: Option<&str>) -> Result<(), ApiError> {
        match self.first(|rules| rules.profiles.as_deref()) {
            Some((group, allowed)) if !chosen.is_some_and(|chosen| allowed.iter().any(|name| name == chosen)) => {
                Err(ApiError::forbidden(format!(
                    "the group {group} must choose one of these resource profiles with KERNEL_PROFILE: {}",
                    allowed.join(", ")
                )))
            }
            _ => Ok(()),
        }
    }

    /// Whether the user can only choose among profiles.
    pub(crate) fn has_profiles(&self) -> bool {
        self.first(|rules| rules.profiles.as_deref()).is_some()
    }

    /// Checks the image that a start names.
    ///
    /// # Errors
    /// 403 if the user may not choose it.
    pub(crate) fn check_image(&self, image: &str) -> Result<(), ApiError> {
        let matches = |pattern: &str| match pattern.strip_suffix('*') {
            Some(prefix) => image.starts_with(prefix),
            None => image == pattern,
        };
        match self.first(|rules| rules.images.as_deref()) {
            Some((group, allowed)) if !allowed.iter().any(|pattern| matches(pattern)) => Err(ApiError::forbidden(
                format!("the group {group} may use these images only: {}", allowed.join(", ")),
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::StatusCode;

    fn rules(groups: serde_json::Value) -> Vec<(String, GroupRules)> {
        let serde_json::Value::Object(groups) = groups else {
            unreachable!()
        };
        let rules = |rules| serde_json::from_value(rules).unwrap();
        groups.into_iter().map(|(name, given)| (name, rules(given))).collect()
    }

    #[test]
    fn the_first_group_with_a_rule_decides() {
        let rules = rules(json!({
            "staff": {"kernelspecs": ["python3", "gpu"], "images": ["lab/*", "other:1"]},
            "students": {"kernelspecs": ["python3"], "profiles": ["small"]},
        }));
        let groups = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let student = groups(&["students", "unknown"]);
        let student = Memberships::new(&rules, &student);
        assert_eq!(student.names(), ["students"]);
        assert!(student.allow_spec("python3") && !student.allow_spec("gpu"));
        assert!(student.check_profile(Some("small")).is_ok() && student.has_profiles());
        for profile in [None, Some("large")] {
            assert_eq!(
                student.check_profile(profile).unwrap_err().status(),
                StatusCode::FORBIDDEN
            );
        }
        assert!(student.check_image("any").is_ok());
        let both = groups(&["students", "staff"]);
        let both = Memberships::new(&rules, &both);
        assert_eq!(both.names(), ["staff", "students"]);
        assert!(both.allow_spec("gpu") && both.has_profiles());
        for (image, allowed) in [
            ("lab/x:2", true),
            ("other:1", true),
            ("other:12", false),
            ("evil/lab/x", false),
        ] {
            assert_eq!(both.check_image(image).is_ok(), allowed, "{image}");
        }
        let nobody = Memberships::new(&rules, &[]);
        assert!(nobody.allow_spec("gpu") && !nobody.has_profiles() && nobody.check_profile(None).is_ok());
    }

    #[test]
    fn all_rules_are_named() {
        let all: serde_json::Map<_, _> = GroupRules::NAMES
            .iter()
            .map(|name| ((*name).to_owned(), json!(null)))
            .collect();
        let read: GroupRules = serde_json::from_value(all.into()).unwrap();
        assert_eq!(read, GroupRules::default());
        let error = serde_json::from_value::<GroupRules>(json!({"x": 1}))
            .unwrap_err()
            .to_string();
        assert_eq!(error.matches('`').count(), 2 * (1 + GroupRules::NAMES.len()), "{error}");
    }
}
