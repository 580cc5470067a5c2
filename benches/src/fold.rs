//! Folding an execution's messages into outputs.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jupyter_protocol::codec::websocket_v1;
use jupyter_protocol::{Channel, WireMessage};
use kernel_manager::fold::{Fold, FoldLimits};
use serde_json::{Value, json};

use crate::measure::{Times, bytes, count, per_second, time};
use crate::report::Section;
use crate::{Result, process};

/// Approximate bytes of text in a message.
const TEXT: usize = 200;
/// Different messages of a case, messages folded per round, and rounds.
const DIFFERENT: usize = 10_000;
const MESSAGES: usize = 1_000_000;
const ROUNDS: usize = 5;
/// Messages of the run that shows whether the cost per message stays constant.
const MANY: usize = 10_000_000;
/// Target in messages per second.
const WANTED: f64 = 1e6;

/// Runs the benchmark.
///
/// # Errors
/// If the memory in use cannot be read.
pub fn run() -> Result<Section> {
    let mut section = Section::new(
        "Fold: an execution's messages into outputs",
        format!(
            "{} messages with about {TEXT} B of text each, on one core, from frames as they come out of the log to a \
             `Fold` with the usual limit (64 MiB). Processor time; median of {ROUNDS} rounds.",
            count(MESSAGES as u64)
        ),
    );
    section.table(&[
        "messages",
        "folded",
        "outputs",
        "text and data",
        "time to make outputs",
        "time to make replay",
    ]);
    let mut slowest = f64::INFINITY;
    for (what, messages) in cases()? {
        let mut times = Vec::new();
        let mut fold = Fold::default();
        for _ in 0..ROUNDS {
            fold = Fold::new(FoldLimits::default());
            times.push(one_round(&mut fold, &messages, MESSAGES));
        }
        let median = Times::new(times).median();
        slowest = slowest.min(MESSAGES as f64 / median.as_secs_f64());
        let begun = Instant::now();
        let outputs = black_box(fold.outputs());
        let made = begun.elapsed();
        let begun = Instant::now();
        black_box(fold.messages());
        let replayed = begun.elapsed();
        section.row([
            what.to_owned(),
            per_second(MESSAGES as u64, median.as_secs_f64()),
            count(outputs.len() as u64),
            bytes(serde_json::to_vec(&outputs)?.len() as u64),
            time(made),
            time(replayed),
        ]);
    }
    section.target(
        "stream messages per second, slowest case",
        "≥ 1 M/s",
        per_second(slowest as u64, 1.0),
        slowest >= WANTED,
    );
    ten_million(&mut section)?;
    Ok(section)
}

/// Compares the time of the last million messages with that of the first million, and measures the peak memory.
fn ten_million(section: &mut Section) -> Result<()> {
    section.table(&[
        "10 million messages",
        "the first million",
        "the last million",
        "peak memory growth",
    ]);
    let own = std::process::id();
    for (what, messages) in cases()? {
        process::reset_peak_memory(own)?;
        let before = process::memory(own)?;
        let mut fold = Fold::default();
        let first = one_round(&mut fold, &messages, MESSAGES);
        for _ in 2..MANY / MESSAGES {
            one_round(&mut fold, &messages, MESSAGES);
        }
        let last = one_round(&mut fold, &messages, MESSAGES);
        let grown = process::peak_memory(own)?.saturating_sub(before);
        section.row([what.to_owned(), time(first), time(last), bytes(grown)]);
    }
    Ok(())
}

fn one_round(fold: &mut Fold, messages: &[WireMessage], number: usize) -> Duration {
    let begun = process::thread_cpu();
    for message in messages.iter().cycle().take(number) {
        fold.apply(Channel::Iopub, black_box(message));
    }
    process::thread_cpu().saturating_sub(begun)
}

fn cases() -> Result<Vec<(&'static str, Vec<WireMessage>)>> {
    let many = |text: &dyn Fn(usize) -> Value| -> Result<Vec<WireMessage>> {
        (0..DIFFERENT).map(|number| message("stream", &text(number))).collect()
    };
    let stdout = |text: String| json!({"name": "stdout", "text": text});
    let words = "All work and no play makes Jack a dull boy. ".repeat(TEXT / 44 + 1);
    Ok(vec![
        (
            "lines",
            many(&|number| stdout(format!("{number:8} {}\n", &words[..TEXT - 10])))?,
        ),
        (
            "lines with quotes and colours",
            many(&|number| {
                let text = format!("\x1b[32m{number}\x1b[0m \"{}\"\n", &words[..TEXT - 30]);
                stdout(text)
            })?,
        ),
        (
            "a progress bar",
            many(&|number| stdout(format!("\r{number:6} |{:160}| 3.14 it/s", "#".repeat(number % 160))))?,
        ),
        (
            "a progress bar, █",
            many(&|number| stdout(format!("\r{number:6} |{:60}| 3.14 it/s", "█".repeat(number % 60))))?,
        ),
        (
            "stdout and stderr in turn",
            many(&|number| {
                let name = if number % 2 == 0 { "stdout" } else { "stderr" };
                json!({"name": name, "text": format!("{}\n", &words[..TEXT - 1])})
            })?,
        ),
    ])
}

/// Makes a message like ipykernel's, with its frames in one piece of memory, as a log returns it.
fn message(msg_type: &str, content: &Value) -> Result<WireMessage> {
    let header = |msg_type: &str, number: u32| {
        json!({
            "msg_id": format!("d3f9c3c2-6d1f1b2a5a9b4f1e8c7d_4711_{number}"), "msg_type": msg_type, "username": "user",
            "session": "d3f9c3c2-6d1f1b2a5a9b4f1e8c7d", "date": "2026-01-01T12:34:56.789012Z", "version": "5.4",
        })
    };
    let json = |value: &Value| Bytes::from(value.to_string());
    let parts = [
        json(&header(msg_type, 7)),
        json(&header("execute_request", 6)),
        json(&json!({})),
        json(content),
    ];
    let stored = websocket_v1::encode(Channel::Iopub, &WireMessage::from_parts(parts, []));
    Ok(websocket_v1::decode(&stored)?.1)
}
