//! `make bench`: runs the benchmarks one after another and writes `RESULTS.md`.
//!
//! With names (`make bench BENCH="protocol log"`), it runs only those and replaces only their sections. With
//! `KERNELMUX_BENCH_DIVIDE=100`, the large benchmarks run at a hundredth of their size, as a functional test, and no
//! file is written.

use std::cell::OnceCell;

use kernelmux_benches::report::{self, Section};
use kernelmux_benches::setup::{Setup, root};
use kernelmux_benches::{
    Result, agent, clients, cut, fold, idle, k8s, log, notebook, protocol, recorder, replay, round_trip, setup, start,
};

const NAMES: [&str; 13] = [
    "protocol",
    "log",
    "replay",
    "fold",
    "recorder",
    "cut",
    "clients",
    "round-trip",
    "start",
    "idle",
    "agent",
    "notebook",
    "k8s",
];

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
    // Created on first use, because some benchmarks, such as the one of kernels in pods, need no setup.
    let created = OnceCell::new();
    let setup = || -> Result<&Setup> {
        match created.get() {
            Some(setup) => Ok(setup),
            None => {
                let setup = Setup::make()?;
                Ok(created.get_or_init(|| setup))
            }
        }
    };
    let mut sections = Vec::new();
    for name in NAMES {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == name) {
            continue;
        }
        eprintln!("{name}");
        let section = run(name, &setup)?;
        println!("{}", section.markdown());
        sections.push((name, section));
    }
    if !setup::is_scaled() {
        let versions = created.get().map_or("", |setup| &setup.versions);
        report::write(&root().join("benches/RESULTS.md"), &NAMES, &sections, versions)?;
    }
    Ok(())
}

fn run<'a>(name: &str, setup: &dyn Fn() -> Result<&'a Setup>) -> Result<Section> {
    match name {
        "protocol" => protocol::run(),
        "log" => log::run(),
        "replay" => async_run(replay::run(setup()?)),
        "cut" => async_run(cut::run(setup()?)),
        "clients" => async_run(clients::run(setup()?)),
        "fold" => fold::run(),
        "recorder" => async_run(recorder::run(setup()?)),
        "round-trip" => async_run(round_trip::run(setup()?)),
        "start" => async_run(start::run(setup()?)),
        "idle" => async_run(idle::run(setup()?)),
        "agent" => async_run(agent::run(setup()?)),
        "notebook" => notebook::run(),
        _ => async_run(k8s::run()),
    }
}

/// Runs as a child process of a benchmark.
fn run_child(what: &str, arguments: &[String]) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match (what, arguments) {
        ("idle-kernels", [folder]) => runtime.block_on(idle::kernels(folder.as_ref())),
        ("idle-kernel", [file]) => runtime.block_on(agent::idle_kernel(file.as_ref())),
        ("idle-gateway", [port, folder]) => runtime.block_on(idle::gateway(port.parse()?, folder.as_ref())),
        _ => Err(format!("no child process named {what:?}").into()),
    }
}

/// Runs a benchmark on one thread, so that its client uses little CPU.
fn async_run<T>(benchmark: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(benchmark)
}
