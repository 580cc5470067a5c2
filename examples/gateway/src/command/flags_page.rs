//! The book's table of all flags, `docs/src/flags.md`.
//!
//! The test below compares the page with the flags. If `KERNELMUX_WRITE_DOCS` is set, the test writes the page.

use std::fmt::Write;

use clap::Arg;

use super::settings::{definition, is_switch};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/src/flags.md");

const HEAD: &str = "\
<!-- Generated from examples/gateway/src/command/flags.rs; the test the_book_lists_every_flag says how. -->

# All flags

Each flag of `kernelmux-gateway` is also an environment variable, and a key of the [configuration file](configuration.md)
without its dashes. A flag overrides the variable, and both override the file. `kernelmux-gateway --help` prints the same
texts. [Running the gateway](gateway.md) explains the more important ones.
";

#[test]
fn the_book_lists_every_flag() {
    let page = page();
    if std::env::var_os("KERNELMUX_WRITE_DOCS").is_some() {
        std::fs::write(PAGE, &page).unwrap();
    }
    let written = std::fs::read_to_string(PAGE).unwrap();
    assert!(
        written == page,
        "docs/src/flags.md is out of date; run this test with KERNELMUX_WRITE_DOCS=1 to update it"
    );
}

fn page() -> String {
    let mut page = HEAD.to_owned();
    let mut heading = None;
    for arg in definition().get_arguments() {
        if page == HEAD || arg.get_help_heading() != heading {
            heading = arg.get_help_heading();
            let title = heading.map_or(String::new(), |heading| format!("\n## {heading}\n"));
            write!(page, "{title}\n| Flag | Variable | Default | |\n|---|---|---|---|\n").unwrap();
        }
        writeln!(page, "{}", row(arg)).unwrap();
    }
    page
}

fn row(arg: &Arg) -> String {
    let flag = arg.get_long().unwrap();
    let takes_value = !is_switch(arg);
    let values: Vec<_> = if takes_value {
        arg.get_possible_values()
    } else {
        Vec::new()
    };
    let value = match arg.get_value_names() {
        _ if !takes_value => String::new(),
        _ if !values.is_empty() => {
            let names: Vec<_> = values.iter().map(|value| value.get_name()).collect();
            format!(" {}", names.join("\\|"))
        }
        Some(names) => format!(" {}", names[0]),
        None => String::new(),
    };
    let defaults: Vec<_> = arg
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy())
        .collect();
    let default = match (takes_value, defaults.is_empty()) {
        (true, false) => format!("`{}`", defaults.join(",")),
        _ => String::new(),
    };
    let mut help = text(arg.get_help());
    for value in &values {
        write!(help, "<br>`{}`: {}", value.get_name(), text(value.get_help())).unwrap();
    }
    let variable = arg.get_env().unwrap().to_string_lossy();
    format!("| `--{flag}{value}` | `{variable}` | {default} | {help} |")
}

/// A help text as Markdown.
fn text(help: Option<&clap::builder::StyledStr>) -> String {
    let help = help.map(ToString::to_string).unwrap_or_default();
    let mut text = String::new();
    for c in help.chars() {
        if matches!(c, '*' | '_' | '<' | '>' | '|' | '[' | ']') {
            text.push('\\');
        }
        text.push(if c == '\n' { ' ' } else { c });
    }
    text
}
