//! Kernelspecs that restrict their users: `authorized_users` and `unauthorized_users` in the `config` of
//! `metadata.process_proxy` (Enterprise Gateway) or `metadata.kernel_provisioner` (`jupyter_client`).

use jupyter_protocol::InstalledKernelspec;
use serde_json::Value;

/// Whether the kernelspec allows this user. Names are compared exactly.
pub(crate) fn may_use(spec: &InstalledKernelspec, user: &str) -> bool {
    ["process_proxy", "kernel_provisioner"].iter().all(|stanza| {
        let Some(config) = spec.spec.metadata.get(*stanza).and_then(|stanza| stanza.get("config")) else {
            return true;
        };
        let authorized = names(config.get("authorized_users"));
        let unauthorized = names(config.get("unauthorized_users"));
        !unauthorized.contains(&user) && (authorized.is_empty() || authorized.contains(&user))
    })
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

    #[test]
    fn a_kernelspec_can_allow_and_deny_users() {
        let may = |metadata: Value, user: &str| {
            let spec = serde_json::from_value(json!({"metadata": metadata})).unwrap();
            let installed = InstalledKernelspec {
                name: "x".into(),
                spec,
                resource_dir: "/".into(),
            };
            may_use(&installed, user)
        };
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
        assert!(may(json!({}), "eve") && may(json!({"process_proxy": 7}), "eve"));
    }
}
