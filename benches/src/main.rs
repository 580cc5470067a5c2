//! `make bench`: runs the benchmarks side by side, and writes `RESULTS.md`.
//!
//! With names (`make bench BENCH="protocol log"`) it runs only these, and writes no file.

use kernelmux_benches::report::{self, Section};
use kernelmux_benches::setup::{Setup, root};
use kernelmux_benches::{Result, idle, log, protocol, recorder, round_trip, start};

const NAMES: [&str; 6] = ["protocol", "log", "recorder", "round-trip", "start", "idle"];

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let [child, what, rest @ ..] = &wanted[..]
        && child == "child"
    {
        return run_child(what, rest);
    }
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
        "recorder" => async_run(recorder::run(setup)),
        "round-trip" => async_run(round_trip::run(setup)),
        "start" => async_run(start::run(setup)),
        _ => async_run(idle::run(setup)),
    }
}

/// What this program is started as by its own benchmarks.
fn run_child(what: &str, arguments: &[String]) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match (what, arguments) {
        ("idle-kernels", [folder]) => runtime.block_on(idle::kernels(folder.as_ref())),
        ("idle-gateway", [port, folder]) => runtime.block_on(idle::gateway(port.parse()?, folder.as_ref())),
        _ => Err(format!("no child process named {what:?}").into()),
    }
}

/// On one thread: what the benchmarks' own client costs is to be little.
fn async_run<T>(benchmark: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(benchmark)
}
