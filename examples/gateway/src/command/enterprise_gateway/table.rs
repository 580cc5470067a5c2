//! The settings of Enterprise Gateway (its main branch after 3.3.0) and what takes their place.

use Here::{InPods, Key, LogLevel, Nothing, Opposite, WorkingDirs};

/// A setting of Enterprise Gateway.
#[derive(Debug)]
pub(super) struct Row {
    /// Its names as a trait, with the class unless that is `EnterpriseGatewayApp`.
    pub(super) traits: &'static [&'static str],
    /// Its names as an environment variable.
    pub(super) variables: &'static [&'static str],
    pub(super) here: Here,
    /// What to know about it, as Markdown.
    pub(super) note: &'static str,
}

/// What takes the place of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Here {
    /// The setting with this key and the same value.
    Key(&'static str),
    /// The switch with this key and the opposite value.
    Opposite(&'static str),
    /// The setting with this key, which is used only if kernels are pods.
    InPods(&'static str),
    /// `log`, whose levels have other names.
    LogLevel,
    /// An item of `kubernetes-user-inputs`.
    WorkingDirs,
    /// No setting.
    Nothing,
}

const fn row(
    traits: &'static [&'static str],
    variables: &'static [&'static str],
    here: Here,
    note: &'static str,
) -> Row {
    Row {
        traits,
        variables,
        here,
        note,
    }
}

/// The traits of `EnterpriseGatewayApp`.
#[rustfmt::skip]
pub(super) const APP: &[Row] = &[
    row(&["allow_credentials"], &["EG_ALLOW_CREDENTIALS"], Key("allow-credentials"), ""),
    row(&["allow_headers"], &["EG_ALLOW_HEADERS"], Key("allow-headers"), ""),
    row(&["allow_methods"], &["EG_ALLOW_METHODS"], Key("allow-methods"), ""),
    row(&["allow_origin"], &["EG_ALLOW_ORIGIN"], Key("allow-origin"), "may name several"),
    row(&["alt_yarn_endpoint"], &["EG_ALT_YARN_ENDPOINT"], Nothing, "no counterpart: there is no provider for YARN"),
    row(&["answer_yes"], &[], Nothing, "no counterpart: the program asks no questions"),
    row(&["auth_token"], &["EG_AUTH_TOKEN"], Key("token"), "or, not to show it in the list of processes, `--token-file` or `KERNELMUX_TOKEN`. Without a token, the gateway generates one and prints it; `--no-auth` disables authentication"),
    row(&["authorized_origin"], &["EG_AUTHORIZED_ORIGIN"], Nothing, "no counterpart: [certificates](tls.md#certificates-of-clients) authenticate clients, not their host names"),
    row(&["authorized_users"], &["EG_AUTHORIZED_USERS"], Key("authorized-users"), ""),
    row(&["authorizer_class"], &["EG_AUTHORIZER_CLASS"], Nothing, "no counterpart: [roles](users.md) decide what users may do. For other rules, embed the crate `kernelmux-gateway` and wrap its router"),
    row(&["availability_mode"], &["EG_AVAILABILITY_MODE"], Nothing, "no counterpart: a restarted gateway always finds its kernels, as with `standalone`. Replicas cannot share kernels, because only one gateway at a time uses the log"),
    row(&["base_url"], &["EG_BASE_URL"], Key("base-url"), ""),
    row(&["certfile"], &["EG_CERTFILE"], Key("tls-cert"), ""),
    row(&["client_ca"], &["EG_CLIENT_CA"], Key("tls-client-ca"), "the certificate names a user, who needs no token then"),
    row(&["client_envs"], &["EG_CLIENT_ENVS"], Key("client-envs"), ""),
    row(&["conductor_endpoint"], &["EG_CONDUCTOR_ENDPOINT"], Nothing, "no counterpart: there is no provider for Spectrum Conductor"),
    row(&["config_file", "config_file_name"], &[], Nothing, "`--config` takes a file of the gateway's own; see [its page](configuration.md)"),
    row(&["default_kernel_name"], &["EG_DEFAULT_KERNEL_NAME"], Key("default-kernel"), ""),
    row(&["dynamic_config_interval"], &["EG_DYNAMIC_CONFIG_INTERVAL"], Nothing, "always: the gateway notices changes of its [configuration file](configuration.md) and of kernelspecs"),
    row(&["env_process_whitelist"], &["EG_ENV_PROCESS_WHITELIST"], Key("inherited-envs"), ""),
    row(&["env_whitelist"], &["EG_ENV_WHITELIST"], Key("client-envs"), ""),
    row(&["expose_headers"], &["EG_EXPOSE_HEADERS"], Key("expose-headers"), ""),
    row(&["generate_config"], &[], Nothing, "`kernelmux-gateway config show` prints a file with all settings"),
    row(&["impersonation_enabled"], &["EG_IMPERSONATION_ENABLED"], Nothing, "no counterpart: all kernels run as the gateway's user, or as the user id of their pod"),
    row(&["inherited_envs"], &["EG_INHERITED_ENVS"], Key("inherited-envs"), "kernels always get `PATH`, `HOME` and the like"),
    row(&["ip"], &["EG_IP"], Key("ip"), ""),
    row(&["kernel_headers"], &["EG_KERNEL_HEADERS"], Nothing, "no counterpart: request headers do not reach kernels"),
    row(&["kernel_manager_class"], &[], Nothing, "no counterpart as a setting: embed the crates and use your own types"),
    row(&["kernel_session_manager_class"], &[], Nothing, "no counterpart as a setting: embed the crates and use your own types"),
    row(&["kernel_spec_cache_class"], &[], Nothing, "no counterpart as a setting: embed the crates and use your own types"),
    row(&["kernel_spec_manager_class"], &[], Nothing, "no counterpart as a setting: embed the crates and use your own types"),
    row(&["keyfile"], &["EG_KEYFILE"], Key("tls-key"), ""),
    row(&["list_kernels"], &["EG_LIST_KERNELS"], Opposite("no-list"), "kernels are listed by default"),
    row(&["load_balancing_algorithm"], &["EG_LOAD_BALANCING_ALGORITHM"], Nothing, "no counterpart: Kubernetes chooses the node of a pod"),
    row(&["log_datefmt", "log_format"], &[], Nothing, "no counterpart: the format is fixed"),
    row(&["log_level"], &["EG_LOG_LEVEL"], LogLevel, "also takes a filter by module"),
    row(&["max_age"], &["EG_MAX_AGE"], Key("cors-max-age"), ""),
    row(&["max_kernels"], &["EG_MAX_KERNELS"], Key("max-kernels"), ""),
    row(&["max_kernels_per_user"], &["EG_MAX_KERNELS_PER_USER"], Key("max-kernels-per-user"), "without the flag there is no limit"),
    row(&["port"], &["EG_PORT"], Key("port"), ""),
    row(&["port_range"], &["EG_PORT_RANGE"], Key("port-range"), "any range of five ports or more. In pods the ports are fixed"),
    row(&["port_retries"], &["EG_PORT_RETRIES"], Nothing, "no counterpart: a taken port is an error; `--port 0` picks a free one"),
    row(&["remote_hosts"], &["EG_REMOTE_HOSTS"], Nothing, "no counterpart: there is no provider for SSH"),
    row(&["show_config", "show_config_json"], &[], Nothing, "`kernelmux-gateway config show`"),
    row(&["ssl_version"], &["EG_SSL_VERSION"], Nothing, "`--tls-min-version`, whose values are others: `1.2` or `1.3`"),
    row(&["trust_xheaders"], &["EG_TRUST_XHEADERS"], Nothing, "no counterpart: the gateway uses clients' addresses only to count wrong tokens"),
    row(&["unauthorized_users"], &["EG_UNAUTHORIZED_USERS"], Key("unauthorized-users"), "not replaced by those of a kernelspec"),
    row(&["ws_ping_interval"], &["EG_WS_PING_INTERVAL_SECS"], Nothing, "no counterpart: the gateway also pings after data, because the answer shows which messages have arrived"),
    row(&["yarn_endpoint"], &["EG_YARN_ENDPOINT"], Nothing, "no counterpart: there is no provider for YARN"),
    row(&["yarn_endpoint_security_enabled"], &["EG_YARN_ENDPOINT_SECURITY_ENABLED"], Nothing, "no counterpart: there is no provider for YARN"),
];

/// The traits of other classes.
#[rustfmt::skip]
pub(super) const OTHER_CLASSES: &[Row] = &[
    row(&["KernelSpecCache.cache_enabled"], &["EG_KERNELSPEC_CACHE_ENABLED"], Nothing, "always: kernelspecs are kept in memory, and their folders are watched"),
    row(&["FileKernelSessionManager.enable_persistence", "WebhookKernelSessionManager.enable_persistence"], &["EG_KERNEL_SESSION_PERSISTENCE"], Nothing, "always: a gateway finds its kernels again"),
    row(&["FileKernelSessionManager.persistence_root", "WebhookKernelSessionManager.persistence_root"], &["EG_PERSISTENCE_ROOT", "EG_KERNEL_SESSION_LOCATION"], Key("data-dir"), ""),
    row(&["WebhookKernelSessionManager.webhook_url"], &["EG_WEBHOOK_URL"], Nothing, "no counterpart: state is in the data directory, in NATS (`--log-nats`, logs only) and in the cluster"),
    row(&["WebhookKernelSessionManager.webhook_username"], &["EG_WEBHOOK_USERNAME"], Nothing, "no counterpart: state is in the data directory, in NATS (`--log-nats`, logs only) and in the cluster"),
    row(&["WebhookKernelSessionManager.webhook_password"], &["EG_WEBHOOK_PASSWORD"], Nothing, "no counterpart: state is in the data directory, in NATS (`--log-nats`, logs only) and in the cluster"),
    row(&["WebhookKernelSessionManager.auth_type"], &["EG_AUTH_TYPE"], Nothing, "no counterpart: state is in the data directory, in NATS (`--log-nats`, logs only) and in the cluster"),
    row(&["RemoteMappingKernelManager.allowed_message_types"], &[], Nothing, "no counterpart: all messages pass"),
    row(&["RemoteMappingKernelManager.buffer_offline_messages"], &[], Nothing, "always, and on disk"),
    row(&["RemoteMappingKernelManager.cull_busy"], &[], Key("cull-busy"), ""),
    row(&["RemoteMappingKernelManager.cull_connected"], &["EG_CULL_CONNECTED"], Key("cull-connected"), ""),
    row(&["RemoteMappingKernelManager.cull_idle_timeout"], &["EG_CULL_IDLE_TIMEOUT"], Key("cull-idle-timeout"), ""),
    row(&["RemoteMappingKernelManager.cull_interval"], &["EG_CULL_INTERVAL"], Key("cull-interval"), ""),
    row(&["RemoteMappingKernelManager.default_kernel_name"], &[], Key("default-kernel"), ""),
    row(&["RemoteMappingKernelManager.kernel_info_timeout"], &["EG_KERNEL_INFO_TIMEOUT"], Nothing, "included in the timeout of a start: 60 s, or `KERNEL_LAUNCH_TIMEOUT`"),
    row(&["RemoteMappingKernelManager.kernel_manager_class"], &[], Nothing, "no counterpart as a setting"),
    row(&["RemoteMappingKernelManager.root_dir"], &[], Nothing, "the directory in which the gateway is started"),
    row(&["RemoteMappingKernelManager.shared_context"], &[], Nothing, "no counterpart: there is no ZeroMQ library"),
    row(&["KernelSpecManager.whitelist", "KernelSpecManager.allowed_kernelspecs"], &["EG_ALLOWED_KERNELS", "EG_KERNEL_WHITELIST"], Key("kernelspecs"), ""),
];

/// The variables that belong to no trait.
#[rustfmt::skip]
pub(super) const VARIABLES: &[Row] = &[
    row(&[], &["EG_ALTERNATE_SIGINT"], Nothing, "no counterpart: an interrupt is SIGINT, or a message with `\"interrupt_mode\": \"message\"`"),
    row(&[], &["EG_DEFAULT_KERNEL_SERVICE_ACCOUNT_NAME"], Nothing, "`service_account` in the kernelspec"),
    row(&[], &["EG_DOCKER_LOG_LEVEL", "EG_DOCKER_MODE", "EG_DOCKER_NETWORK", "EG_REMOVE_CONTAINER"], Nothing, "no counterpart: there is no provider for Docker"),
    row(&[], &["EG_ENABLE_TUNNELING"], Nothing, "no counterpart: a gateway outside the cluster uses port-forwards by itself"),
    row(&[], &["EG_HOST_IP"], Nothing, "no counterpart: kernels do not call back"),
    row(&[], &["EG_KERNEL_CLUSTER_ROLE"], Nothing, "no counterpart: kernels' pods have no token for the cluster's API. For Spark, give the kernelspec a `service_account` and mount its token with `pod_template`"),
    row(&[], &["EG_KERNEL_EXECUTOR_IMAGE"], Nothing, "no counterpart: Spark works only as far as the image supports it"),
    row(&[], &["EG_KERNEL_IMAGE"], InPods("kubernetes-image"), ""),
    row(&[], &["EG_KERNEL_LAUNCH_TIMEOUT"], Nothing, "60 s; a client can request another timeout with `KERNEL_LAUNCH_TIMEOUT`"),
    row(&[], &["EG_KERNEL_LOG_DIR"], Nothing, "no counterpart: the end of a kernel's own output is in its log and in the error when it dies"),
    row(&[], &["EG_KUBERNETES_LOG_LEVEL"], Nothing, "`--log info,provider_k8s=debug`"),
    row(&[], &["EG_MAX_PORT_RANGE_RETRIES", "EG_MIN_PORT_RANGE_SIZE"], Nothing, "no counterpart: each kernel needs five ports, and a range of five is enough for one"),
    row(&[], &["EG_MIRROR_WORKING_DIRS"], WorkingDirs, "adds `working-dir`"),
    row(&[], &["EG_NAMESPACE"], Key("kubernetes-namespace"), ""),
    row(&[], &["EG_POD_TEMPLATE_DIR"], Nothing, "`pod_template` in the kernelspec"),
    row(&[], &["EG_POLL_INTERVAL", "EG_MAX_POLL_ATTEMPTS", "EG_RESTART_STATUS_POLL_INTERVAL", "EG_SOCKET_TIMEOUT"], Nothing, "no counterpart: the gateway does not poll"),
    row(&[], &["EG_PROHIBITED_GIDS", "EG_PROHIBITED_UIDS"], Nothing, "the id 0 is always prohibited, and no others can be; users may choose ids only with `user-id` in `--kubernetes-user-inputs`"),
    row(&[], &["EG_PROHIBITED_LOCAL_IPS", "EG_RESPONSE_ADDR_ANY", "EG_RESPONSE_IP", "EG_RESPONSE_PORT", "EG_RESPONSE_PORT_RETRIES", "EG_RESPONSE_ADDRESS", "EG_PUBLIC_KEY"], Nothing, "no counterpart: kernels do not call back"),
    row(&[], &["EG_REMOTE_GSS_SSH", "EG_REMOTE_PWD", "EG_REMOTE_USER", "EG_SSH_PORT", "EG_SSH_LOG_LEVEL"], Nothing, "no counterpart: there is no provider for SSH"),
    row(&[], &["EG_SENSITIVE_ENV_KEYS", "EG_REDACTION_MASK"], Nothing, "no counterpart: values of variables are never logged"),
    row(&[], &["EG_SHARED_NAMESPACE"], Nothing, "always: kernels run in the namespace of `--kubernetes-namespace`"),
    row(&[], &["EG_YARN_CERT_BUNDLE", "EG_YARN_LOG_LEVEL", "EG_YARN_MUTUAL_AUTHENTICATION", "EG_YARN_SHUTDOWN_WAIT_TIME"], Nothing, "no counterpart: there is no provider for YARN"),
    row(&[], &["EG_ZMQ_IO_THREADS", "EG_ZMQ_MAX_SOCKETS"], Nothing, "no counterpart: there is no ZeroMQ library"),
];

/// The variables that are also known with `KG_` in place of `EG_`, from Kernel Gateway.
pub(super) const OLD_VARIABLES: [&str; 19] = [
    "KG_ALLOW_CREDENTIALS",
    "KG_ALLOW_HEADERS",
    "KG_ALLOW_METHODS",
    "KG_ALLOW_ORIGIN",
    "KG_AUTH_TOKEN",
    "KG_BASE_URL",
    "KG_CERTFILE",
    "KG_CLIENT_CA",
    "KG_DEFAULT_KERNEL_NAME",
    "KG_EXPOSE_HEADERS",
    "KG_IP",
    "KG_KEYFILE",
    "KG_LIST_KERNELS",
    "KG_MAX_AGE",
    "KG_MAX_KERNELS",
    "KG_PORT",
    "KG_PORT_RETRIES",
    "KG_SSL_VERSION",
    "KG_TRUST_XHEADERS",
];

/// The tables of `docs/src/enterprise-gateway.md`. If `KERNELMUX_WRITE_DOCS` is set, the test writes them.
#[cfg(test)]
mod tests {
    use super::super::super::settings::{definition, key, keys};
    use super::*;

    const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/src/enterprise-gateway.md");

    fn names(names: &[&str]) -> String {
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        names.join(", ")
    }

    fn here(row: &Row) -> String {
        let flag = match row.here {
            Key(key) | InPods(key) => format!("`--{key}`"),
            Opposite(key) => format!("`--{key}`, with the opposite value"),
            LogLevel => "`--log`".to_owned(),
            WorkingDirs => "`--kubernetes-user-inputs`".to_owned(),
            Nothing => return row.note.to_owned(),
        };
        match row.note {
            "" => flag,
            note => format!("{flag}; {note}"),
        }
    }

    fn table(rows: &[Row], has_traits: bool) -> String {
        let mut lines = String::new();
        for row in rows {
            let variables = names(row.variables);
            let cells = if has_traits {
                vec![names(row.traits), variables, here(row)]
            } else {
                vec![variables, here(row)]
            };
            let cells: Vec<String> = cells
                .into_iter()
                .map(|cell| if cell.is_empty() { cell } else { format!("{cell} ") })
                .collect();
            lines += &format!("| {}|\n", cells.join("| "));
        }
        lines
    }

    #[test]
    fn the_book_has_all_settings_of_enterprise_gateway() {
        let written = std::fs::read_to_string(PAGE).unwrap();
        let mut page = written.clone();
        for (heading, rows, has_traits) in [
            ("## Traits of `EnterpriseGatewayApp`\n", APP, true),
            ("## Traits of other classes\n", OTHER_CLASSES, true),
            ("## Other variables of the server\n", VARIABLES, false),
        ] {
            let section = page.find(heading).unwrap();
            let table_start = section + page[section..].find("|---|").unwrap();
            let body = table_start + page[table_start..].find('\n').unwrap() + 1;
            let end = body + page[body..].find("\n\n").unwrap() + 1;
            page.replace_range(body..end, &table(rows, has_traits));
        }
        if std::env::var_os("KERNELMUX_WRITE_DOCS").is_some() {
            std::fs::write(PAGE, &page).unwrap();
            return;
        }
        assert!(
            page == written,
            "docs/src/enterprise-gateway.md is out of date; run this test with KERNELMUX_WRITE_DOCS=1 to update it"
        );
        for name in OLD_VARIABLES {
            assert!(page.contains(&format!("`{name}`")), "{name}");
            assert!(
                APP.iter()
                    .any(|row| row.variables.contains(&name.replacen('K', "E", 1).as_str())),
                "{name}"
            );
        }
    }

    #[test]
    fn mapped_settings_are_keys_and_no_name_is_there_twice() {
        let definition = definition();
        let known: Vec<&str> = keys(&definition).map(key).collect();
        let (mut traits, mut variables): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
        for row in APP.iter().chain(OTHER_CLASSES).chain(VARIABLES) {
            if let Key(key) | Opposite(key) | InPods(key) = row.here {
                assert!(known.contains(&key), "{key}");
            }
            assert!(row.here != Nothing || !row.note.is_empty(), "{row:?}");
            traits.extend(row.traits);
            variables.extend(row.variables);
        }
        for names in [&mut traits, &mut variables] {
            let all = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), all);
        }
    }
}
