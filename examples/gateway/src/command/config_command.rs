//! `kernelmux-gateway config`: checks and shows the settings.

use std::fmt::Write;

use clap::Subcommand;

use super::settings::{Setting, Settings, Source};

/// What to do with the settings.
#[derive(Clone, Copy, Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Check the settings of the command line, the environment and the configuration file
    Check,
    /// Print all settings as a configuration file, with the source of each; secrets are not shown
    Show,
}

/// Returns the text to print.
pub(super) fn run(command: ConfigCommand, settings: &Settings) -> Result<String, String> {
    match command {
        ConfigCommand::Check => check(settings),
        ConfigCommand::Show => Ok(show(settings)),
    }
}

fn check(settings: &Settings) -> Result<String, String> {
    let flags = &settings.flags;
    let mut options = kernelmux_gateway::GatewayOptions::new(flags.access()?);
    flags.sign_in.apply(&mut options).map_err(|error| error.to_string())?;
    flags.tls.apply(&mut options)?;
    let mut text = String::new();
    for warning in &settings.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    text.push_str("the settings are valid\n");
    Ok(text)
}

/// A configuration file with all settings. Lines that would not change anything are comments.
fn show(settings: &Settings) -> String {
    let lines: Vec<(String, &Source)> = settings
        .all
        .iter()
        .map(|setting| (line(setting), &setting.source))
        .collect();
    let width = lines
        .iter()
        .map(|(line, _)| line.chars().count())
        .filter(|width| *width <= 48)
        .max();
    let width = width.unwrap_or_default();
    let mut text = String::new();
    for (line, source) in lines {
        let _ = match source {
            Source::Default if line.starts_with('#') => writeln!(text, "{line}"),
            source => writeln!(text, "{line:width$}  # {source}"),
        };
    }
    for (name, rules) in &settings.groups {
        let _ = writeln!(text, "\n[groups.{}]", self::text(name));
        for (rule, value) in rules.given() {
            let _ = writeln!(text, "{rule} = {value}");
        }
    }
    text
}

fn line(setting: &Setting) -> String {
    let key = &setting.key;
    match &setting.values {
        None => format!("# {key} is not set"),
        Some(_) if setting.is_secret => format!("# {key} is not shown"),
        Some(values) if setting.is_list => {
            let items: Vec<String> = values.iter().map(|value| text(value)).collect();
            format!("{key} = [{}]", items.join(", "))
        }
        Some(values) => {
            let value = values.first().map(String::as_str).unwrap_or_default();
            format!("{key} = {}", scalar(value, setting.is_switch))
        }
    }
}

/// A value in TOML, as a number if it is one.
fn scalar(value: &str, is_switch: bool) -> String {
    let is_number = value.parse::<i64>().is_ok_and(|number| number.to_string() == value);
    if is_number || is_switch {
        value.to_owned()
    } else {
        text(value)
    }
}

fn text(value: &str) -> String {
    let mut text = String::from('"');
    for c in value.chars() {
        match c {
            '"' | '\\' => {
                text.push('\\');
                text.push(c);
            }
            c if c.is_control() => {
                let _ = write!(text, "\\u{:04X}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text.push('"');
    text
}
