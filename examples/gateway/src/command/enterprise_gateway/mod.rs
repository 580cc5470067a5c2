//! Reads the settings of Enterprise Gateway, for `--from-enterprise-gateway`.

mod python;
mod table;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::config_file::{TOO_OPEN, text};
use super::settings::{Given, Layer, Source};
use table::{APP, Here, OLD_VARIABLES, OTHER_CLASSES, Row, VARIABLES};

/// Where Enterprise Gateway's settings are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Only in its environment variables.
    Environment,
    /// Also in this file, whose values override the variables.
    File(PathBuf),
}

/// The value of `--from-enterprise-gateway` for [`Origin::Environment`].
pub(super) const ENVIRONMENT: &str = "env";

impl From<&str> for Origin {
    fn from(text: &str) -> Self {
        match text {
            ENVIRONMENT => Self::Environment,
            path => Self::File(path.into()),
        }
    }
}

/// The classes that inherit the traits of another one.
const SUBCLASSES: [(&str, &str); 6] = [
    ("EnterpriseGatewayConfigMixin", "EnterpriseGatewayApp"),
    ("JupyterApp", "EnterpriseGatewayApp"),
    ("Application", "EnterpriseGatewayApp"),
    ("MultiKernelManager", "RemoteMappingKernelManager"),
    ("MappingKernelManager", "RemoteMappingKernelManager"),
    ("AsyncMappingKernelManager", "RemoteMappingKernelManager"),
];

/// Reads the environment and the file. Settings that are not used are named in `warnings`.
pub(super) fn read(origin: &Origin, warnings: &mut Vec<String>) -> Result<Layer, String> {
    let variables = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let variables = variables.map(|(name, value)| (name, value.to_string_lossy().into_owned()));
    let mut settings = of_environment(variables, warnings);
    if let Origin::File(path) = origin {
        settings.extend(of_file(path, warnings)?);
    }
    Ok(layer(settings, warnings))
}

/// A setting of Enterprise Gateway with its value.
struct Found {
    row: &'static Row,
    /// The name under which it was found.
    name: String,
    value: Value,
}

fn of_environment(variables: impl Iterator<Item = (String, String)>, warnings: &mut Vec<String>) -> Vec<Found> {
    let mut found = Vec::new();
    for (name, value) in variables {
        let is_old = OLD_VARIABLES.contains(&name.as_str());
        let current = if is_old {
            name.replacen("KG_", "EG_", 1)
        } else {
            name.clone()
        };
        let row = rows().find(|row| row.variables.contains(&current.as_str()));
        match row {
            Some(row) => found.push(Found {
                row,
                name,
                value: Value::String(value),
            }),
            None if name.starts_with("EG_") || name.starts_with("KG_") => {
                warnings.push(format!("{name} is no variable of Enterprise Gateway and has no effect"));
            }
            None => {}
        }
    }
    // A newer name overrides an older one.
    found.sort_by_key(|found| std::cmp::Reverse(found.name.starts_with("KG_")));
    found
}

fn of_file(path: &Path, warnings: &mut Vec<String>) -> Result<Vec<Found>, String> {
    let failed = |what: String| format!("--from-enterprise-gateway={}: {what}", path.display());
    let text = text(path).map_err(failed)?;
    let classes: Map<String, Value> = if path.extension().is_some_and(|extension| extension == "py") {
        let (classes, other) = python::read(&text);
        for line in other {
            warnings.push(format!(
                "line {line} of {} is not used: only assignments such as c.EnterpriseGatewayApp.port = 8888 are",
                path.display()
            ));
        }
        classes
    } else {
        serde_json::from_str(&text)
            .map_err(|error| failed(format!("line {}: it is not a JSON object", error.line())))?
    };
    let mut found = Vec::new();
    for (class, traits) in classes {
        let traits = match traits {
            Value::Object(traits) => traits,
            // The version of the file's format.
            Value::Number(_) if class == "version" => continue,
            _ => return Err(failed(format!("{class} must be an object with traits"))),
        };
        let known = SUBCLASSES.iter().find(|(subclass, _)| *subclass == class);
        let known = known.map_or(class.as_str(), |(_, known)| known);
        for (name, value) in traits {
            match of_trait(known, &name) {
                Some(row) => found.push(Found {
                    row,
                    name: format!("{class}.{name}"),
                    value,
                }),
                None => warnings.push(format!(
                    "{class}.{name} is no trait of Enterprise Gateway and has no effect"
                )),
            }
        }
    }
    let has_token = found.iter().any(|found| found.row.here == Here::Key("token"));
    let mode = path.metadata().map_or(0, |metadata| metadata.permissions().mode());
    if has_token && mode & TOO_OPEN != 0 {
        warnings.push(format!(
            "{} contains the token, and others can read or change it; run chmod 600 on it",
            path.display()
        ));
    }
    Ok(found)
}

fn rows() -> impl Iterator<Item = &'static Row> {
    APP.iter().chain(OTHER_CLASSES).chain(VARIABLES)
}

fn of_trait(class: &str, name: &str) -> Option<&'static Row> {
    if class == "EnterpriseGatewayApp" {
        return APP.iter().find(|row| row.traits.contains(&name));
    }
    let name = format!("{class}.{name}");
    OTHER_CLASSES.iter().find(|row| row.traits.contains(&name.as_str()))
}

/// The gateway's settings for those of Enterprise Gateway. Later ones override earlier ones.
fn layer(found: Vec<Found>, warnings: &mut Vec<String>) -> Layer {
    let in_pods = found
        .iter()
        .any(|found| found.row.here == Here::Key("kubernetes-namespace"));
    let mut layer = Layer::new();
    for Found { row, name, value } in found {
        let Some(values) = texts(&value) else {
            warnings.push(format!(
                "{name} is neither a text, a number nor a list and has no effect"
            ));
            continue;
        };
        if is_unset(row.here, &values) {
            continue;
        }
        let (key, values) = match row.here {
            Here::Key(key) => (key, values),
            Here::Opposite(key) => (key, vec![(!is_true(&values)).to_string()]),
            Here::InPods(key) if in_pods => (key, values),
            Here::InPods(key) => {
                warnings.push(format!(
                    "{name} has no effect without EG_NAMESPACE, which stands for {key}'s cluster"
                ));
                continue;
            }
            Here::LogLevel => ("log", vec![log_level(&values[0]).to_owned()]),
            Here::WorkingDirs if !is_true(&values) => continue,
            Here::WorkingDirs => {
                let inputs = ["cpus", "memory", "gpus", "working-dir"];
                ("kubernetes-user-inputs", inputs.map(str::to_owned).to_vec())
            }
            Here::Nothing => {
                warnings.push(format!("{name} has no effect: {}", row.note));
                continue;
            }
        };
        let source = Source::EnterpriseGateway(name);
        layer.insert(key.to_owned(), Given { values, source });
    }
    layer
}

/// The value as text, or the texts of a list.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::String(text) => Some(vec![text.clone()]),
        Value::Number(number) => Some(vec![number.to_string()]),
        Value::Bool(value) => Some(vec![value.to_string()]),
        Value::Array(items) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
        Value::Object(_) => None,
    }
}

/// Whether the value is the one by which Enterprise Gateway says that there is none.
fn is_unset(here: Here, values: &[String]) -> bool {
    match values {
        [] => true,
        [value] => match here {
            Here::Key("max-kernels-per-user") => value.is_empty() || value.starts_with('-'),
            Here::Key("port-range") => value.is_empty() || value == "0..0",
            _ => value.is_empty(),
        },
        _ => false,
    }
}

fn is_true(values: &[String]) -> bool {
    matches!(values, [value] if value.eq_ignore_ascii_case("true") || value == "1")
}

/// The filter for a level of Python's `logging`, by name or number.
fn log_level(level: &str) -> &'static str {
    match level.to_ascii_uppercase().as_str() {
        "DEBUG" | "10" => "debug",
        "WARNING" | "WARN" | "30" => "warn",
        "ERROR" | "CRITICAL" | "FATAL" | "40" | "50" => "error",
        _ => "info",
    }
}
