//! What is written of the figures: to the terminal as they come, and into `RESULTS.md` in the end.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use crate::Result;

/// A benchmark's figures.
pub struct Section {
    /// What was measured.
    pub title: &'static str,
    /// How.
    pub how: String,
    tables: Vec<Table>,
    marks: Vec<Mark>,
    notes: Vec<String>,
}

/// How a mark's row ends.
const MET: &str = " | met |";
const MISSED: &str = " | **not met** |";

struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

struct Mark {
    what: String,
    wanted: String,
    measured: String,
    met: bool,
}

impl Section {
    /// One without figures yet.
    #[must_use]
    pub fn new(title: &'static str, how: impl Into<String>) -> Self {
        Self {
            title,
            how: how.into(),
            tables: Vec::new(),
            marks: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Starts a table with these columns.
    pub fn table(&mut self, head: &[&str]) {
        self.tables.push(Table {
            head: head.iter().map(|&name| name.to_owned()).collect(),
            rows: Vec::new(),
        });
    }

    /// Adds a row to the last table, and shows it.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        let cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        eprintln!("  {}", cells.join(" | "));
        if let Some(table) = self.tables.last_mut() {
            table.rows.push(cells);
        }
    }

    /// A mark that was to be met.
    pub fn mark(&mut self, what: impl Into<String>, wanted: impl Into<String>, measured: impl Into<String>, met: bool) {
        self.marks.push(Mark {
            what: what.into(),
            wanted: wanted.into(),
            measured: measured.into(),
            met,
        });
    }

    /// Explains the figures.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// The section in Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut out = format!("## {}\n\n{}\n", self.title, self.how);
        for table in &self.tables {
            out.push('\n');
            line(&mut out, &table.head);
            line(&mut out, &vec!["---".to_owned(); table.head.len()]);
            for row in &table.rows {
                line(&mut out, row);
            }
        }
        if !self.marks.is_empty() {
            out.push_str("\n| Mark | Wanted | Measured | |\n| --- | --- | --- | --- |\n");
            for mark in &self.marks {
                let met = if mark.met { MET } else { MISSED };
                let _ = writeln!(out, "| {} | {} | {}{met}", mark.what, mark.wanted, mark.measured);
            }
        }
        for note in &self.notes {
            let _ = write!(out, "\n{note}\n");
        }
        out
    }
}

fn line(out: &mut String, cells: &[String]) {
    let _ = writeln!(out, "| {} |", cells.join(" | "));
}

/// Puts sections into the file of results, each with its name, in place of what was measured before of the same name.
/// `names` are those of all benchmarks, in the file's order.
///
/// # Errors
/// Where the file cannot be read or written.
pub fn write(path: &Path, names: &[&str], measured: &[(&str, Section)], versions: &str) -> Result<()> {
    let before = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        before => before?,
    };
    let machine = machine();
    let sections: Vec<String> = names
        .iter()
        .filter_map(|name| match measured.iter().find(|(measured, _)| measured == name) {
            Some((_, section)) => Some(format!(
                "{}\n{}\n{machine}\n{versions}\n",
                begin(name),
                section.markdown()
            )),
            None => kept(&before, name),
        })
        .collect();
    let count = |what: &str| {
        sections
            .iter()
            .map(|section| section.matches(what).count())
            .sum::<usize>()
    };
    let (met, missed) = (count(MET), count(MISSED));
    let mut out = format!(
        "# Results\n\nWritten by `make bench`; not by hand. {met} of {} marks are met. Each section ends with when and on what \
         it was measured.\n",
        met + missed
    );
    for section in sections {
        out.push('\n');
        out.push_str(&section);
    }
    std::fs::write(path, out)?;
    Ok(())
}

/// The line before a section of this name.
fn begin(name: &str) -> String {
    format!("<!-- {name} -->")
}

/// The section of this name as it is in the file.
fn kept(file: &str, name: &str) -> Option<String> {
    let start = file.find(&begin(name))?;
    let section = &file[start..];
    let end = section.find("\n<!-- ").unwrap_or(section.len());
    Some(section[..end].to_owned())
}

/// When, on what, of what.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        text.lines()
            .find(|line| line.starts_with(name))
            .and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    };
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    format!(
        "{}, commit {}{}. {} ({cores} cores), {} of memory, Linux {}, {}.",
        chrono::Utc::now().format("%Y-%m-%d %H:%M UTC"),
        said("git", &["rev-parse", "--short", "HEAD"]),
        if said("git", &["status", "--porcelain", "--untracked-files=no"]).is_empty() {
            ""
        } else {
            " with changes"
        },
        field(&read("/proc/cpuinfo"), "model name"),
        field(&read("/proc/meminfo"), "MemTotal"),
        read("/proc/sys/kernel/osrelease").trim(),
        said("rustc", &["--version"]),
    )
}

fn said(program: &str, arguments: &[&str]) -> String {
    Command::new(program)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default()
}
