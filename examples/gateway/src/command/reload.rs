//! Applies changes of files and of settings in them while the gateway runs.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use kernel_manager::Manager;
use kernelmux_gateway::{FileChanges, Gateway, GroupRoles};
use tokio::signal::unix::Signal;
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};
use tracing_subscriber::{EnvFilter, Registry, reload};

use super::enterprise_gateway::Origin;
use super::flags::Flags;
use super::run::{gateway_options, manager_options};
use super::settings::{self, Request, Settings};

/// The settings that take effect without a restart, and `groups`.
const RELOADED: [&str; 29] = [
    "token",
    "token-file",
    "allow-origin",
    "allow-credentials",
    "allow-headers",
    "allow-methods",
    "expose-headers",
    "cors-max-age",
    "no-list",
    "no-shares",
    "default-kernel",
    "kernelspecs",
    "authorized-users",
    "unauthorized-users",
    "cull-idle-timeout",
    "cull-interval",
    "cull-connected",
    "cull-busy",
    "cull-max-age",
    "cull-warning",
    "max-kernels",
    "max-kernels-per-user",
    "user-starts-per-minute",
    "user-requests-per-minute",
    "user-connections-per-minute",
    "client-envs",
    "log-retention",
    "group-roles",
    "log",
];

/// Reads the settings again on SIGHUP and when one of their files changes.
pub(super) struct Reloader {
    pub(super) args: Vec<OsString>,
    pub(super) settings: Box<Settings>,
    pub(super) manager: Manager,
    pub(super) gateway: Arc<Gateway>,
    pub(super) filter: reload::Handle<EnvFilter, Registry>,
    /// The error of the last attempt.
    pub(super) last_error: Option<String>,
}

/// What the settings of a reload change.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    /// What takes effect now.
    now: BTreeSet<String>,
    /// What takes effect after a restart.
    later: BTreeSet<String>,
}

impl Reloader {
    /// Runs until it is dropped.
    pub(super) async fn run(mut self, mut hang_up: Signal) {
        loop {
            let files = files(&self.settings.flags);
            let mut changes = FileChanges::new(files.clone()).await;
            // A file may have changed since it was read.
            loop {
                self.reload().await;
                if self::files(&self.settings.flags) != files {
                    break;
                }
                tokio::select! {
                    () = changes.next() => {}
                    received = hang_up.recv() => match received {
                        Some(()) => info!("SIGHUP: reading the settings again"),
                        None => return,
                    },
                }
            }
        }
    }

    async fn reload(&mut self) {
        let (args, token_file, token) = (
            self.args.clone(),
            self.settings.flags.token_file.clone(),
            self.settings.flags.token.clone(),
        );
        let reading = spawn_blocking(move || settings::read_again(&args, token_file.zip(token)));
        let Ok(read) = reading.await else {
            // The async runtime is shutting down.
            return;
        };
        let applied = read.and_then(|request| match request {
            Request::Run(settings) => self.apply(settings),
            _ => Ok(String::new()),
        });
        match applied {
            Ok(changed) => {
                self.last_error = None;
                if !changed.is_empty() {
                    self.gateway.settings_changed(&changed).await;
                }
            }
            Err(error) if self.last_error.as_ref() == Some(&error) => {}
            Err(error) => {
                error!("the settings stay as they were: {error}");
                self.last_error = Some(error);
            }
        }
    }

    /// Applies the settings and returns the names of those that have changed and take effect now.
    fn apply(&mut self, settings: Box<Settings>) -> Result<String, String> {
        let mut changes = changes(&self.settings, &settings);
        if changes == Changes::default() {
            return Ok(String::new());
        }
        let flags = &settings.flags;
        let mut options = (*self.gateway.options()).clone();
        match (&self.settings.flags.token, &flags.token) {
            (Some(_), Some(_)) => options.access = flags.access()?,
            (None, None) => {}
            // A gateway without a configured token has a random one, which must stay.
            _ => {
                for key in ["token", "token-file"] {
                    changes.later.extend(changes.now.take(key));
                }
            }
        }
        gateway_options(&settings, &mut options)?;
        options.group_roles = GroupRoles::new(flags.sign_in.group_roles.clone());
        let mut manager = (*self.manager.options()).clone();
        manager_options(&settings, &mut manager);
        // It fails only at the end of the program.
        drop(self.filter.reload(flags.log_filter()?));
        self.manager.set_options(manager);
        self.gateway.set_options(options);
        let list = |keys: &BTreeSet<String>| keys.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let changed = list(&changes.now);
        if !changed.is_empty() {
            info!(changed, "the settings were reloaded");
        }
        if !changes.later.is_empty() {
            warn!(
                changed = list(&changes.later),
                "these settings take effect after a restart of the gateway"
            );
        }
        for warning in settings
            .warnings
            .iter()
            .filter(|warning| !self.settings.warnings.contains(warning))
        {
            warn!("{warning}");
        }
        self.settings = settings;
        Ok(changed)
    }
}

/// The files that the settings come from.
fn files(flags: &Flags) -> Vec<PathBuf> {
    let of_enterprise_gateway = match &flags.from_enterprise_gateway {
        Some(Origin::File(path)) => Some(path.clone()),
        _ => None,
    };
    let files = [flags.config.clone(), of_enterprise_gateway, flags.token_file.clone()];
    files.into_iter().flatten().collect()
}

fn changes(before: &Settings, now: &Settings) -> Changes {
    let mut changes = Changes::default();
    for (before, now) in before.all.iter().zip(&now.all) {
        if before.values == now.values {
            continue;
        }
        let takes_effect = RELOADED.contains(&now.key.as_str());
        let kind = if takes_effect {
            &mut changes.now
        } else {
            &mut changes.later
        };
        kind.insert(now.key.clone());
    }
    if before.groups != now.groups {
        changes.now.insert("groups".to_owned());
    }
    if before.flags.token != now.flags.token {
        changes.now.insert("token".to_owned());
    }
    changes
}
