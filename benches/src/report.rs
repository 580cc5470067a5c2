//! Reports of the benchmarks, printed as results arrive and written to `RESULTS.md` at the end.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use crate::Result;

/// The results of a benchmark.
pub struct Section {
    /// Heading of the section.
    pub title: &'static str,
    /// How the benchmark measures.
    pub how: String,
    tables: Vec<Table>,
    marks: Vec<Mark>,
    notes: Vec<String>,
}

/// Ends of a target's row.
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
    /// A section without results.
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

    /// Adds a row to the last table and prints it.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        let cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        eprintln!("  {}", cells.join(" | "));
        if let Some(table) = self.tables.last_mut() {
            table.rows.push(cells);
        }
    }

    /// Adds a target, with the measured value and whether it is met.
    pub fn mark(&mut self, what: impl Into<String>, wanted: impl Into<String>, measured: impl Into<String>, met: bool) {
        self.marks.push(Mark {
            what: what.into(),
            wanted: wanted.into(),
            measured: measured.into(),
            met,
        });
    }

    /// Adds a note after the tables.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Formats the section as Markdown.
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

/// Writes sections to the file of results, each in place of the previous section of the same benchmark. `names` are all
/// benchmarks in the file's order.
///
/// # Errors
/// If the file cannot be read or written.
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
            None => previous(&before, name),
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

/// The line before the section of a benchmark.
fn begin(name: &str) -> String {
    format!("<!-- {name} -->")
}

/// Returns a benchmark's section from the file.
fn previous(file: &str, name: &str) -> Option<String> {
    let start = file.find(&begin(name))?;
    let section = &file[start..];
    let end = section.find("\n<!-- ").unwrap_or(section.len());
    Some(section[..end].to_owned())
}

/// Describes time, commit, machine and compiler.
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
        output_of("git", &["rev-parse", "--short", "HEAD"]),
        if output_of("git", &["status", "--porcelain", "--untracked-files=no"]).is_empty() {
            ""
        } else {
            " with changes"
        },
        field(&read("/proc/cpuinfo"), "model name"),
        field(&read("/proc/meminfo"), "MemTotal"),
        read("/proc/sys/kernel/osrelease").trim(),
        output_of("rustc", &["--version"]),
    )
}

fn output_of(program: &str, arguments: &[&str]) -> String {
    Command::new(program)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default()
}
