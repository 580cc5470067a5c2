//! `make bench`: runs the benchmarks side by side, and writes `RESULTS.md`.
//!
//! With names (`make bench BENCH="protocol log"`) it runs only these, and writes no file.

use kernelmux_benches::report::{self, Section};
use kernelmux_benches::setup::{Setup, root};
use kernelmux_benches::{Result, log, protocol, recorder};

const NAMES: [&str; 3] = ["protocol", "log", "recorder"];

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = wanted.iter().find(|name| !NAMES.contains(&name.as_str())) {
        return Err(format!("no benchmark named {unknown:?}; there are: {}", NAMES.join(", ")).into());
    }
    let setup = Setup::make()?;
    let mut sections = Vec::new();
    for name in NAMES {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == name) {
            continue;
        }
        eprintln!("{name}");
        let section = run(name, &setup)?;
        println!("{}", section.markdown());
        sections.push(section);
    }
    if wanted.is_empty() {
        report::write(&root().join("benches/RESULTS.md"), &sections, &setup.versions)?;
    }
    Ok(())
}

fn run(name: &str, setup: &Setup) -> Result<Section> {
    match name {
        "protocol" => protocol::run(),
        "log" => log::run(),
        _ => async_run(recorder::run(setup)),
    }
}

/// On one thread: what the benchmarks' own client costs is to be little.
fn async_run<T>(benchmark: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(benchmark)
}
