//! Kernelspecs that restrict their users: `authorized_users`, `unauthorized_users`, `authorized_groups` and
//! `unauthorized_groups` in `metadata.kernelmux`, and the first two in the `config` of `metadata.process_proxy`
//! (Enterprise Gateway) or `metadata.kernel_provisioner` (`jupyter_client`).

use std::sync::Arc;

use jupyter_protocol::InstalledKernelspec;
use serde_json::Value;

use crate::GatewayOptions;
use crate::error::ApiError;
use crate::group_rules::Memberships;
use crate::identity::Identity;

/// The user whose kernel a request concerns, with the rules of their groups.
pub(crate) struct KernelUser {
    /// `None` if the request names none.
    pub(crate) name: Option<String>,
    options: Arc<GatewayOptions>,
    groups: Vec<String>,
}

impl KernelUser {
    /// The user that a request of the caller is for. The groups of another user are known if the file of users has them.
    pub(crate) fn new(options: Arc<GatewayOptions>, caller: &Identity, name: Option<String>) -> Self {
        let groups = match &name {
            Some(name) if !caller.is(Some(name)) => {
                let users = options.users.as_ref();
                users.and_then(|users| users.groups_of(name)).unwrap_or_default()
            }
            _ => caller.groups.clone(),
        };
        Self { name, options, groups }
    }

    /// The user's groups that have rules.
    pub(crate) fn memberships(&self) -> Memberships<'_> {
        Memberships::new(&self.options.groups, &self.groups)
    }

    /// Whether the user may use the kernelspec with this name.
    pub(crate) fn may_use(&self, name: &str, spec: &InstalledKernelspec) -> bool {
        let only = &self.options.kernelspecs;
        let is_offered = only.is_empty() || only.iter().any(|offered| offered == name);
        let may_start = |user: &str| allows(&self.options, spec, user, &self.groups);
        is_offered && self.name.as_deref().is_none_or(may_start) && self.memberships().allow_spec(name)
    }

    /// The refusal of this kernelspec.
    pub(crate) fn refusal(&self, spec: &str) -> ApiError {
        let name = self.name.as_deref().unwrap_or("the user");
        ApiError::forbidden(format!("{name} may not use the kernelspec {spec}"))
    }
}

/// Whether this user, who is in these groups, may use the kernelspec: by its own rules, and by the options. If the
/// kernelspec authorizes users, those that the options authorize do not count. Names are compared exactly.
fn allows(options: &GatewayOptions, spec: &InstalledKernelspec, user: &str, groups: &[String]) -> bool {
    let is_in = |names: &[String]| names.iter().any(|name| name == user);
    if is_in(&options.unauthorized_users) {
        return false;
    }
    let metadata = &spec.spec.metadata;
    let config = |stanza: &str| metadata.get(stanza)?.get("config");
    let mut authorizes = false;
    let allowed = [
        metadata.get("kernelmux"),
        config("process_proxy"),
        config("kernel_provisioner"),
    ]
    .into_iter()
    .flatten()
    .all(|rules| {
        let is_named = |users: &str, groups_key: &str| {
            let (users, of_groups) = (names(rules.get(users)), names(rules.get(groups_key)));
            let is_in_group = || groups.iter().any(|group| of_groups.contains(&group.as_str()));
            (!users.is_empty() || !of_groups.is_empty()).then(|| users.contains(&user) || is_in_group())
        };
        let is_unauthorized = is_named("unauthorized_users", "unauthorized_groups").unwrap_or(false);
        let is_authorized = is_named("authorized_users", "authorized_groups");
        authorizes |= is_authorized.is_some();
        !is_unauthorized && is_authorized.unwrap_or(true)
    });
    let is_known = authorizes || options.authorized_users.is_empty() || is_in(&options.authorized_users);
    allowed && is_known
}

/// The names in a list or in a comma-separated text.
fn names(value: Option<&Value>) -> Vec<&str> {
    match value {
        Some(Value::String(names)) => names
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .collect(),
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Access;

    fn may_with(options: GatewayOptions, metadata: Value, user: &str) -> bool {
        let spec = serde_json::from_value(json!({"metadata": metadata})).unwrap();
        let installed = InstalledKernelspec {
            name: "x".into(),
            spec,
            resource_dir: "/".into(),
        };
        allows(&options, &installed, user, &["staff".to_owned()])
    }

    #[test]
    fn a_kernelspec_can_allow_and_deny_users() {
        let may = |metadata: Value, user: &str| may_with(GatewayOptions::new(Access::Open), metadata, user);
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        for (user, own, expected) in [
            ("ada", json!({}), true),
            ("bob", json!({}), false),
            ("bob", json!({"authorized_users": "bob"}), true),
            ("ada", json!({"authorized_users": "bob"}), false),
            ("eve", json!({"authorized_users": "eve"}), false),
        ] {
            let mut options = GatewayOptions::new(Access::Open);
            options.authorized_users = names(&["ada", "eve"]);
            options.unauthorized_users = names(&["eve"]);
            assert_eq!(
                may_with(options, json!({"kernelmux": own}), user),
                expected,
                "{user} {own}"
            );
        }
        for stanza in ["process_proxy", "kernel_provisioner"] {
            let config = |config: Value| json!({stanza: {"config": config}});
            let only = config(json!({"authorized_users": "ada, bob"}));
            assert!(may(only.clone(), "ada") && may(only.clone(), "bob"));
            assert!(!may(only.clone(), "eve") && !may(only, "Ada"));
            let list = config(json!({"authorized_users": ["ada"], "unauthorized_users": ["eve"]}));
            assert!(may(list.clone(), "ada") && !may(list.clone(), "eve") && !may(list, "bob"));
            let not = config(json!({"unauthorized_users": "eve"}));
            assert!(may(not.clone(), "ada") && !may(not, "eve"));
            let both = config(json!({"authorized_users": "eve", "unauthorized_users": "eve"}));
            assert!(!may(both, "eve"));
            for open in [
                json!({}),
                json!({"authorized_users": ""}),
                json!({"authorized_users": []}),
                json!(null),
            ] {
                assert!(may(config(open), "eve"));
            }
        }
        for (rules, expected) in [
            (json!({"authorized_groups": ["staff"]}), true),
            (json!({"authorized_groups": ["other"]}), false),
            (json!({"authorized_groups": ["other"], "authorized_users": "eve"}), true),
            (
                json!({"unauthorized_groups": "staff", "authorized_users": "eve"}),
                false,
            ),
            (json!({"unauthorized_groups": "other"}), true),
        ] {
            assert_eq!(may(json!({"kernelmux": rules}), "eve"), expected, "{rules}");
        }
        assert!(may(json!({}), "eve") && may(json!({"process_proxy": 7}), "eve"));
    }
}
