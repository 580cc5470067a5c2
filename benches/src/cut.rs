//! Messages lost by a client whose connection is cut three times while a cell prints, compared with other gateways.

use std::time::Duration;

use gateway_client::resume::client::{Event, ResumeClient, ResumeOptions};
use jupyter_protocol::content::ExecuteRequest;
use jupyter_protocol::{Channel, Message, WireMessage};
use kernel_manager::fold::Fold;
use serde_json::Value;
use tokio::time::timeout;

use crate::Result;
use crate::measure::count;
use crate::peers::Gateway;
use crate::report::Section;
use crate::setup::{PYTHON, Setup, scaled};
use crate::wire::WebSocket;

/// Messages of the cell, and its paced rate in messages per second, which is below jupyter_server's default limit of
/// 1,000.
const MESSAGES: usize = 10_000;
const RATE: usize = 700;
/// Tenths of the messages after which the connection is cut, and how long the client is away.
const CUTS: [usize; 3] = [2, 5, 8];
const AWAY: Duration = Duration::from_millis(500);
/// Timeout for the next message after the execution has ended, and before that.
const AFTER_END: Duration = Duration::from_secs(2);
const QUIET: Duration = Duration::from_secs(10);
const SESSION: &str = "cut";

/// Runs the benchmark.
///
/// # Errors
/// If a gateway or a kernel fails.
pub async fn run(setup: &Setup) -> Result<Section> {
    let messages = scaled(MESSAGES);
    let cuts = CUTS.map(|part| messages * part / 10);
    let mut section = Section::new(
        "Cut connections: the same cell through kernelmux and its peers",
        format!(
            "A cell in ipykernel writes the numbers below {} to stdout, each in a separate message, {RATE} per \
             second or without pause (more than the 1,000 per second that jupyter_server lets through by default). \
             The client drops its connection once it has read number {}, {} and {}, and opens the next one {} ms \
             later with the same session_id; other settings are the server's defaults. \"By number\" counts each \
             number in all received messages: after a reconnect, kernelmux sends a plain client the outputs so far \
             again, after a `clear_output`. \"Shown\" counts it in the outputs that JupyterLab would show. The client \
             of the resume protocol is `ResumeClient`. Losses in the rows with 0 cuts have other causes.",
            count(messages as u64),
            cuts[0],
            cuts[1],
            cuts[2],
            AWAY.as_millis()
        ),
    );
    section.table(&[
        "",
        "cut",
        "lost, by number",
        "doubled, by number",
        "lost, shown",
        "doubled, shown",
        "reply",
        "idle",
    ]);
    let ours = Gateway::kernelmux(setup, "cut").await?;
    let kernel_gateway = Gateway::kernel_gateway(setup).await?;
    let jupyter_server = Gateway::jupyter_server(setup).await?;
    for pace in [Some(RATE), None] {
        let named = |name: &str| match pace {
            Some(rate) => format!("{name}, {rate} per second"),
            None => format!("{name}, without pause"),
        };
        for (name, gateway) in [("Kernel Gateway", &kernel_gateway), ("jupyter_server", &jupyter_server)] {
            for cuts in [&[][..], &cuts] {
                plain_client(gateway, &cell(messages, pace), messages, cuts)
                    .await?
                    .row(&mut section, &named(name));
            }
        }
        plain_client(&ours, &cell(messages, pace), messages, &[])
            .await?
            .row(&mut section, &named("kernelmux, plain client"));
        let plain = plain_client(&ours, &cell(messages, pace), messages, &cuts).await?;
        plain.row(&mut section, &named("kernelmux, plain client"));
        let resumed = resume_client(&ours, &cell(messages, pace), messages, &cuts).await?;
        resumed.row(&mut section, &named("kernelmux, resume protocol"));
        for (name, got, (lost, doubled)) in [
            ("shown by a plain client of kernelmux", &plain, plain.shown()),
            ("by number, resume protocol", &resumed, resumed.by_number()),
        ] {
            if got.cuts != cuts.len() {
                return Err("too few messages arrived to cut the connection as often as planned".into());
            }
            let measured = format!("{} and {}", count(lost), count(doubled));
            section.target(
                format!("lost and doubled, {}", named(name)),
                "0 and 0",
                measured,
                lost + doubled == 0,
            );
            let ended = if got.ended() { "came" } else { "did not come" };
            section.target(format!("reply and idle, {}", named(name)), "came", ended, got.ended());
        }
    }
    for gateway in [ours, kernel_gateway, jupyter_server] {
        gateway.end()?;
    }
    Ok(section)
}

/// The cell's messages that a client received.
struct Outcome {
    request: String,
    /// How often each number was received.
    times: Vec<u64>,
    /// The highest received number plus one.
    reached: usize,
    fold: Fold,
    reply: bool,
    idle: bool,
    /// How often the connection was cut.
    cuts: usize,
}

impl Outcome {
    fn new(request: &Message, messages: usize) -> Self {
        Self {
            request: request.header.msg_id.clone(),
            times: vec![0; messages],
            reached: 0,
            fold: Fold::default(),
            reply: false,
            idle: false,
            cuts: 0,
        }
    }

    fn take(&mut self, channel: Channel, message: &WireMessage) -> Result<()> {
        if !message.parent_ref().is_ok_and(|parent| parent.msg_id == self.request) {
            return Ok(());
        }
        self.fold.apply(channel, message);
        let content = || serde_json::from_slice::<Value>(message.content());
        match (channel, &*message.header_ref()?.msg_type) {
            (Channel::Iopub, "stream") => {
                tally(content()?["text"].as_str().unwrap_or_default(), &mut self.times);
                let highest = self.times[self.reached..].iter().rposition(|&times| times > 0);
                self.reached += highest.map_or(0, |number| number + 1);
            }
            (Channel::Iopub, "status") if content()?["execution_state"] == "idle" => self.idle = true,
            (Channel::Shell, "execute_reply") => self.reply = true,
            _ => {}
        }
        Ok(())
    }

    fn ended(&self) -> bool {
        self.reply && self.idle
    }

    fn next_timeout(&self) -> Duration {
        if self.ended() { AFTER_END } else { QUIET }
    }

    /// Lost and duplicated numbers among all received messages.
    fn by_number(&self) -> (u64, u64) {
        lost_and_doubled(&self.times)
    }

    /// Lost and duplicated numbers in the outputs shown at the end.
    fn shown(&self) -> (u64, u64) {
        let mut times = vec![0; self.times.len()];
        for output in self.fold.outputs() {
            let output = serde_json::to_value(&output).unwrap_or_default();
            tally(output["text"].as_str().unwrap_or_default(), &mut times);
        }
        lost_and_doubled(&times)
    }

    fn row(&self, section: &mut Section, name: &str) {
        let ((lost, doubled), (lost_shown, doubled_shown)) = (self.by_number(), self.shown());
        let came = |came| if came { "came" } else { "lost" }.to_owned();
        section.row([
            name.to_owned(),
            format!("{}×", self.cuts),
            count(lost),
            count(doubled),
            count(lost_shown),
            count(doubled_shown),
            came(self.reply),
            came(self.idle),
        ]);
    }
}

fn tally(text: &str, times: &mut [u64]) {
    let numbers = text.lines().filter_map(|line| line.parse::<usize>().ok());
    for number in numbers {
        if let Some(times) = times.get_mut(number) {
            *times += 1;
        }
    }
}

fn lost_and_doubled(times: &[u64]) -> (u64, u64) {
    let lost = times.iter().filter(|&&times| times == 0).count() as u64;
    (lost, times.iter().map(|times| times.saturating_sub(1)).sum())
}

fn cell(messages: usize, pace: Option<usize>) -> Message {
    let pause = pace.map_or_else(
        || "pass".to_owned(),
        |rate| format!("time.sleep(max(0, begun + (number + 1) / {rate} - time.perf_counter()))"),
    );
    let code = format!(
        "import sys, time\n\
         begun = time.perf_counter()\n\
         for number in range({messages}):\n    \
             sys.stdout.write(f'{{number}}\\n')\n    \
             sys.stdout.flush()\n    \
             {pause}\n"
    );
    Message::new(ExecuteRequest::new(code), SESSION)
}

/// Runs a client of the v1 subprotocol, which sends only its session id when it reconnects.
async fn plain_client(gateway: &Gateway, request: &Message, messages: usize, cuts: &[usize]) -> Result<Outcome> {
    let kernel = gateway.address.start_kernel(PYTHON).await?;
    let connect = async || -> Result<WebSocket> { gateway.address.channels(&kernel, SESSION).await };
    let mut client = connect().await?;
    client.send(Channel::Shell, &request.to_wire()).await?;
    let mut got = Outcome::new(request, messages);
    let mut cuts = cuts.iter().copied().peekable();
    while let Ok(received) = timeout(got.next_timeout(), client.receive_message()).await {
        // If a server closes the connection, the rest is lost.
        let Ok((channel, message)) = received else { break };
        got.take(channel, &message)?;
        if cuts.next_if(|&cut| got.reached > cut).is_some() {
            got.cuts += 1;
            drop(client);
            tokio::time::sleep(AWAY).await;
            client = connect().await?;
        }
    }
    drop(client);
    gateway.address.end_kernel(&kernel).await?;
    Ok(got)
}

/// Runs a client of the resume protocol.
async fn resume_client(gateway: &Gateway, request: &Message, messages: usize, cuts: &[usize]) -> Result<Outcome> {
    let kernel = gateway.address.start_kernel(PYTHON).await?;
    let url = format!("http://127.0.0.1:{}", gateway.address.port);
    let options = ResumeOptions::new(url, kernel.parse()?)
        .with_token(&gateway.address.token)
        .with_session(SESSION);
    let mut client = ResumeClient::connect(options).await?;
    client.send(Channel::Shell, request.to_wire())?;
    let mut got = Outcome::new(request, messages);
    let mut cuts = cuts.iter().copied().peekable();
    while let Ok(event) = timeout(got.next_timeout(), client.next()).await {
        let Some(event) = event? else { break };
        let Event::Entry(entry) = event else { continue };
        got.take(entry.channel, &entry.message)?;
        if cuts.next_if(|&cut| got.reached > cut).is_some() {
            got.cuts += 1;
            client.disconnect();
            tokio::time::sleep(AWAY).await;
        }
    }
    drop(client);
    gateway.address.end_kernel(&kernel).await?;
    Ok(got)
}
