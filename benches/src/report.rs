//! What is written of the figures: to the terminal as they come, and to `RESULTS.md` in the end.

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

    /// What is to be known beside the figures.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// How many marks are not met.
    #[must_use]
    pub fn missed(&self) -> usize {
        self.marks.iter().filter(|mark| !mark.met).count()
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
                let met = if mark.met { "met" } else { "**not met**" };
                line(
                    &mut out,
                    &[
                        mark.what.clone(),
                        mark.wanted.clone(),
                        mark.measured.clone(),
                        met.to_owned(),
                    ],
                );
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

/// Writes all sections to a file, with the machine and the date.
///
/// # Errors
/// Where the file cannot be written.
pub fn write(path: &Path, sections: &[Section], versions: &str) -> Result<()> {
    let missed: usize = sections.iter().map(Section::missed).sum();
    let marks: usize = sections.iter().map(|section| section.marks.len()).sum();
    let mut out = format!(
        "# Results\n\nWritten by `make bench`; not by hand. {} of {marks} marks are met.\n\n{}\n{versions}\n",
        marks - missed,
        machine()
    );
    for section in sections {
        out.push('\n');
        out.push_str(&section.markdown());
    }
    std::fs::write(path, out)?;
    Ok(())
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
