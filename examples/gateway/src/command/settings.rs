//! Collects the settings of the command line, the environment and files. [`Flags`] defines them all.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches};
use kernelmux_gateway::GroupRules;

use super::announce::TokenSource;
use super::config_command::ConfigCommand;
use super::config_file::{self, ConfigFile};
use super::enterprise_gateway;
use super::flags::{Flags, Subcommands};
use super::user::UserCommand;

/// Settings that say where others come from. They are no keys of the file.
const WHERE: [&str; 2] = ["config", "from-enterprise-gateway"];
/// Settings that are useless without another one.
const NEEDS: [(&str, &str); 12] = [
    ("oidc-issuer", "oidc-audience"),
    ("oidc-audience", "oidc-issuer"),
    ("jupyterhub-service", "jupyterhub-api"),
    ("trusted-groups-header", "trusted-header"),
    ("trusted-proxy", "trusted-header"),
    ("trusted-proxy-cert", "trusted-header"),
    ("trusted-proxy-cert", "tls-client-ca"),
    ("tls-cert", "tls-key"),
    ("tls-key", "tls-cert"),
    ("tls-client-ca", "tls-cert"),
    ("kubernetes-image", "kubernetes-namespace"),
    ("agent-image", "kubernetes-namespace"),
];
/// Settings that exclude each other.
const EXCLUDE: [(&str, &str); 3] = [
    ("token", "token-file"),
    ("log-quota", "log-nats"),
    ("log-quota-per-user", "log-nats"),
];

/// What the command line asks for.
#[derive(Debug)]
pub(super) enum Request {
    /// Run with these settings.
    Run(Box<Settings>),
    /// Print this text, such as the help.
    Print(String),
    /// Change the users in this file, or list them.
    User(UserCommand, Option<PathBuf>),
    /// Check or show these settings.
    Config(ConfigCommand, Box<Settings>),
    /// Check what a gateway with these settings needs.
    Doctor(Box<Settings>),
}

/// All settings, each with its source.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) flags: Flags,
    /// In the order of [`Flags`].
    pub(super) all: Vec<Setting>,
    /// The rules of groups in the configuration file.
    pub(super) groups: Vec<(String, GroupRules)>,
    /// What the operator should know about the sources.
    pub(super) warnings: Vec<String>,
}

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// The flag's name without dashes, which is also the key in the file.
    pub(super) key: String,
    /// Its values as text; `None` if it is not set. Several are those of a list.
    pub(super) values: Option<Vec<String>>,
    pub(super) is_list: bool,
    /// Whether it is true or false.
    pub(super) is_switch: bool,
    /// Whether the values must not be shown.
    pub(super) is_secret: bool,
    pub(super) source: Source,
}

/// Where the value of a setting comes from, the strongest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    CommandLine,
    /// The environment variable of the flag.
    Variable(String),
    /// The configuration file.
    File(PathBuf),
    /// This setting of Enterprise Gateway.
    EnterpriseGateway(String),
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine => f.write_str("command line"),
            Self::Variable(name) | Self::EnterpriseGateway(name) => f.write_str(name),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// The values of a key that a file or Enterprise Gateway's settings contain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) values: Vec<String>,
    pub(super) source: Source,
}

/// Such values by key.
pub(super) type Layer = BTreeMap<String, Given>;

/// The definition of all flags. A flag without a value is true, and `--flag=false` overrides the environment and files.
pub(super) fn definition() -> Command {
    Flags::command().mut_args(|arg| match arg.get_action() {
        ArgAction::SetTrue => arg
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_value("false")
            .default_missing_value("true")
            .value_name("BOOL")
            .hide_possible_values(true)
            .hide_default_value(true),
        _ => arg,
    })
}

/// The flags that are keys of the configuration file.
pub(super) fn keys(definition: &Command) -> impl Iterator<Item = &Arg> {
    definition
        .get_arguments()
        .filter(|arg| arg.get_env().is_some() && !WHERE.contains(&key(arg)))
}

/// The key of a flag in the configuration file.
pub(super) fn key(arg: &Arg) -> &str {
    arg.get_long().unwrap_or_default()
}

/// Whether a flag takes a list.
pub(super) fn is_list(arg: &Arg) -> bool {
    arg.get_value_delimiter().is_some()
}

/// Whether a flag is true or false.
pub(super) fn is_switch(arg: &Arg) -> bool {
    arg.get_num_args().is_some_and(|number| number.min_values() == 0)
}

/// Reads the settings for this command line; an error is one line.
pub(super) fn read(args: &[OsString]) -> Result<Request, String> {
    read_again(args, None)
}

/// As [`read`], with the token that was read from this file before, which may be a pipe.
pub(super) fn read_again(args: &[OsString], token: Option<(PathBuf, String)>) -> Result<Request, String> {
    let matches = match definition().try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            return Ok(Request::Print(error.render().to_string()));
        }
        Err(error) => return Err(with_hint(&error)),
    };
    let sources = Flags::from_arg_matches(&matches).map_err(|error| with_hint(&error))?;
    let mut warnings = Vec::new();
    let mut layer = match &sources.from_enterprise_gateway {
        Some(file) => enterprise_gateway::read(file, &mut warnings)?,
        None => Layer::new(),
    };
    let file = match &sources.config {
        Some(path) => config_file::read(path)?,
        None => ConfigFile::default(),
    };
    layer.extend(file.layer);
    let definition = over(&layer);
    let matches = definition
        .clone()
        .try_get_matches_from(args)
        .map_err(|error| with_hint(&error))?;
    let mut flags = Flags::from_arg_matches(&matches).map_err(|error| with_hint(&error))?;
    let all: Vec<Setting> = keys(&definition)
        .map(|arg| Setting::of(arg, &matches, &layer))
        .collect();
    let subcommand = flags.subcommand.take();
    if let Some(Subcommands::User(command)) = subcommand {
        return Ok(Request::User(command, flags.sign_in.users_file));
    }
    check_combinations(&all)?;
    flags.read_token_file(token)?;
    // Validates everything before anything is set up.
    flags.access()?;
    flags.allow_origin()?;
    flags.log_filter()?;
    let settings = Box::new(Settings {
        flags,
        all,
        groups: file.groups,
        warnings,
    });
    Ok(match subcommand {
        Some(Subcommands::Config(command)) => Request::Config(command, settings),
        Some(Subcommands::Doctor) => Request::Doctor(settings),
        _ => Request::Run(settings),
    })
}

/// The definition with the values of a file as defaults, which flags and variables override.
fn over(layer: &Layer) -> Command {
    definition().mut_args(|arg| match layer.get(key(&arg)) {
        Some(given) => arg.default_values(given.values.clone()),
        None => arg,
    })
}

impl Settings {
    /// The source of the token.
    pub(super) fn token_source(&self) -> TokenSource<'_> {
        if let Some(path) = &self.flags.token_file {
            return TokenSource::File(path);
        }
        let token = self.all.iter().find(|setting| setting.key == "token");
        match token.map(|token| &token.source) {
            Some(Source::Variable(_)) => TokenSource::Environment,
            Some(Source::File(_) | Source::EnterpriseGateway(_)) => TokenSource::Configuration,
            _ => TokenSource::Shown,
        }
    }
}

impl Setting {
    fn of(arg: &Arg, matches: &ArgMatches, layer: &Layer) -> Self {
        let id = arg.get_id().as_str();
        let is_switch = is_switch(arg);
        let values = if is_switch {
            // The environment has more words for true and false.
            matches.get_one::<bool>(id).map(|value| vec![value.to_string()])
        } else {
            let values = matches.get_raw(id);
            values.map(|values| values.map(|value| value.to_string_lossy().into_owned()).collect())
        };
        let source = match matches.value_source(id) {
            Some(ValueSource::CommandLine) => Source::CommandLine,
            Some(ValueSource::EnvVariable) => {
                Source::Variable(arg.get_env().unwrap_or_default().to_string_lossy().into_owned())
            }
            _ => layer
                .get(key(arg))
                .map_or(Source::Default, |given| given.source.clone()),
        };
        Self {
            key: key(arg).to_owned(),
            values,
            is_list: is_list(arg),
            is_switch,
            is_secret: arg.is_hide_env_values_set(),
            source,
        }
    }

    fn is_set(&self) -> bool {
        self.values.as_ref().is_some_and(|values| !values.is_empty())
    }
}

/// Refuses settings that do not fit together.
fn check_combinations(all: &[Setting]) -> Result<(), String> {
    let is_set = |key: &str| all.iter().any(|setting| setting.key == key && setting.is_set());
    if let Some((key, needed)) = NEEDS.iter().find(|(key, needed)| is_set(key) && !is_set(needed)) {
        return Err(format!("--{key} needs --{needed}; give both or neither"));
    }
    if is_set("trusted-header") && !is_set("trusted-proxy") && !is_set("trusted-proxy-cert") {
        return Err(
            "--trusted-header needs --trusted-proxy or --trusted-proxy-cert, by which the proxy is known".to_owned(),
        );
    }
    match EXCLUDE.iter().find(|(one, other)| is_set(one) && is_set(other)) {
        Some((one, other)) => Err(format!("--{one} and --{other} exclude each other; give one of them")),
        None => Ok(()),
    }
}

/// clap's error in one line, with a hint.
fn with_hint(error: &clap::Error) -> String {
    format!("{}; --help lists the flags", one_line(error))
}

/// The first paragraph of clap's error.
pub(super) fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = first.split_whitespace().collect();
    let line = words.join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}
