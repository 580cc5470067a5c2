//! The configuration file: TOML whose keys are the names of flags, and tables `groups.NAME` with the rules of groups.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use clap::Arg;
use clap::builder::Resettable;
use kernelmux_gateway::GroupRules;
use serde::Deserialize;
use toml::{Table, Value};

use super::settings::{self, Given, Layer, Source};

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// The permissions that a file with a secret may not have: those of others, and writing by its group.
pub(super) const TOO_OPEN: u32 = 0o037;
/// How similar a known key must be to be suggested, from 0 to 1.
const SIMILAR: f64 = 0.7;

/// The table of groups.
const GROUPS: &str = "groups";

/// What a configuration file contains.
#[derive(Debug, Default)]
pub(super) struct ConfigFile {
    pub(super) layer: Layer,
    /// In the order of the file.
    pub(super) groups: Vec<(String, GroupRules)>,
}

/// Reads the file; an error is one line and names the file.
pub(super) fn read(path: &Path) -> Result<ConfigFile, String> {
    let failed = |what: String| format!("--config {}: {what}", path.display());
    let text = text(path).map_err(failed)?;
    let mut table: Table = text.parse().map_err(|error| failed(parse_error(&text, &error)))?;
    let groups = match table.remove(GROUPS) {
        Some(groups) => self::groups(groups).map_err(failed)?,
        None => Vec::new(),
    };
    let definition = settings::definition();
    let mut layer = Layer::new();
    for (key, value) in &table {
        let Some(arg) = settings::keys(&definition).find(|arg| settings::key(arg) == key) else {
            let known = settings::keys(&definition).map(settings::key).chain([GROUPS]);
            return Err(failed(format!("there is no setting {}", suggestion(key, known))));
        };
        let values = values(arg, value).map_err(|what| failed(format!("{key}: {what}")))?;
        let source = Source::File(path.to_owned());
        layer.insert(key.clone(), Given { values, source });
    }
    if let Some(secret) = settings::keys(&definition)
        .filter(|arg| arg.is_hide_env_values_set())
        .find(|arg| layer.contains_key(settings::key(arg)))
    {
        check_private(path)
            .map_err(|what| failed(format!("it contains the secret {}, and {what}", settings::key(secret))))?;
    }
    check_values(&layer).map_err(failed)?;
    Ok(ConfigFile { layer, groups })
}

/// The rules of groups.
fn groups(groups: Value) -> Result<Vec<(String, GroupRules)>, String> {
    let Value::Table(groups) = groups else {
        return Err("groups must be tables, such as [groups.students]".to_owned());
    };
    let read = |(name, rules): (String, Value)| {
        let Value::Table(rules) = rules else {
            return Err(format!("groups.{name} must be a table, such as [groups.students]"));
        };
        if let Some(rule) = rules.keys().find(|rule| !GroupRules::NAMES.contains(&rule.as_str())) {
            return Err(format!(
                "groups.{name}: there is no rule {}",
                suggestion(rule, GroupRules::NAMES)
            ));
        }
        let rules = GroupRules::deserialize(rules)
            .map_err(|error| format!("groups.{name}: {}", error.message().lines().next().unwrap_or_default()))?;
        Ok((name, rules))
    };
    groups.into_iter().map(read).collect()
}

/// The content of a file.
pub(super) fn text(path: &Path) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => "there is no such file".to_owned(),
        _ => format!("it cannot be read: {error}"),
    })?;
    let mut text = String::new();
    let read = std::io::Read::read_to_string(&mut std::io::Read::take(file, MAX_FILE + 1), &mut text);
    read.map_err(|error| format!("it cannot be read: {error}"))?;
    if text.len() as u64 > MAX_FILE {
        return Err(format!("it has more than {MAX_FILE} bytes"));
    }
    Ok(text)
}

/// The error with its line. The offending text is not repeated, because it may be a secret.
fn parse_error(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    let message = error.message().lines().next().unwrap_or_default();
    match before {
        Some(before) => format!("line {}: {message}", before.matches('\n').count() + 1),
        None => message.to_owned(),
    }
}

/// The unknown name, with the nearest known one or all of them.
fn suggestion<'a>(unknown: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    let scored = known
        .iter()
        .map(|known| (strsim::jaro_winkler(known, &unknown.replace('_', "-")), *known));
    let nearest = scored
        .filter(|(score, _)| *score >= SIMILAR)
        .max_by(|(one, _), (other, _)| one.total_cmp(other));
    let shown: String = unknown.chars().take(64).collect();
    match nearest {
        Some((_, nearest)) => format!("{shown:?}; the nearest name is {nearest:?}"),
        None => format!("{shown:?}; there are {}", known.join(", ")),
    }
}

/// The value of a key as text, or the texts of a list.
fn values(arg: &Arg, value: &Value) -> Result<Vec<String>, String> {
    if settings::is_switch(arg) {
        return match value {
            Value::Boolean(value) => Ok(vec![value.to_string()]),
            other => Err(format!("it must be true or false, not {}", kind(other))),
        };
    }
    match value {
        Value::Array(items) if settings::is_list(arg) => items
            .iter()
            .map(|item| match scalar(item) {
                Some(item) if item.contains(',') => Err("an item of the list contains a comma".to_owned()),
                Some(item) => Ok(item),
                None => Err(format!("the list must contain texts, not {}", kind(item))),
            })
            .collect(),
        value => match scalar(value) {
            Some(value) => Ok(vec![value]),
            None => Err(format!("it must be one value, not {}", kind(value))),
        },
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        _ => None,
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number with a point",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

/// Refuses a file that other users can read.
fn check_private(path: &Path) -> Result<(), String> {
    let metadata = path.metadata().map_err(|error| format!("it cannot be read: {error}"))?;
    if metadata.permissions().mode() & TOO_OPEN == 0 {
        return Ok(());
    }
    Err("others can read or change it; run chmod 600 on it, or put the token into a file of its own and name that with \
         token-file"
        .to_owned())
}

/// Parses the values as the flags do, without the command line and the environment, so that an error is the file's.
fn check_values(layer: &Layer) -> Result<(), String> {
    let without_env = settings::definition().mut_args(|arg| arg.env(Resettable::Reset));
    let args = layer
        .iter()
        .flat_map(|(key, given)| given.values.iter().map(move |value| format!("--{key}={value}")));
    let args = std::iter::once("kernelmux-gateway".to_owned()).chain(args);
    without_env
        .try_get_matches_from(args)
        .map(drop)
        .map_err(|error| settings::one_line(&error))
}
