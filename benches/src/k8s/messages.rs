//! Round trips and floods of messages.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jupyter_protocol::content::{ExecuteRequest, KernelInfoRequest};
use jupyter_protocol::zmq::IopubSubscriber;
use jupyter_protocol::{Channel, ConnectionInfo, Message};
use kernel_log::Origin;
use kernel_manager::{AtClose, Attachment, Kernel, StartRequest};
use provider_k8s::Reach;
use serde_json::json;

use super::DEADLINE;
use super::namespace::BenchNamespace;
use crate::Result;
use crate::by_hand::Direct;
use crate::measure::{Times, per_second, ratio, time};
use crate::report::Section;
use crate::round_trip::Shell;
use crate::setup::scaled;

const REQUESTS: usize = 1_000;

const MESSAGES: usize = 50_000;

/// A client that reads a kernel's log through the manager.
struct LogClient {
    attachment: Attachment,
}

impl LogClient {
    async fn ask(&mut self) -> Result<Duration> {
        let request = Message::new(KernelInfoRequest::default(), "bench");
        let begun = Instant::now();
        self.attachment.client().send(Channel::Shell, request.to_wire()).await?;
        loop {
            let block = self.attachment.next().await?.ok_or("the log has ended")?;
            for entry in block.entries().filter(|entry| entry.channel() == Channel::Shell) {
                if entry.origin() == Origin::Kernel && *entry.message().parent_ref()?.msg_id == *request.header.msg_id {
                    return Ok(begun.elapsed());
                }
            }
        }
    }
}

pub(super) async fn messages(ns: &BenchNamespace, section: &mut Section) -> Result<()> {
    ns.install_python(json!({}))?;
    let wanted = scaled(MESSAGES);
    section.table(&[
        "one pod, three ways",
        "round trip p50",
        "p99",
        "p50 ÷ direct p50, measured alternately",
        "messages",
        "arrived",
    ]);
    let mut known = None;
    // One after the other: a kernel has one recorder.
    for (reach, name) in [
        (Reach::PodAddress, "kernelmux by address"),
        (Reach::PortForward, "kernelmux by port-forward"),
    ] {
        let manager = ns.manager(reach).await?;
        let kernel = match &known {
            None => manager.start(StartRequest::new("bench")).await?,
            Some((id, _)) => {
                manager.restore().await;
                manager.get(*id).ok_or("the restored kernel is not found")?
            }
        };
        if known.is_none() {
            known = Some((kernel.id(), kernel.handle().connection().await?));
        }
        let (_, info) = known.as_ref().ok_or("there is no kernel")?;
        let mut direct = Shell::Direct(Box::new(Direct::to_shell(info).await?));
        let mut logged = LogClient {
            attachment: kernel.attach("bench"),
        };
        let mut times: [Vec<Duration>; 2] = Default::default();
        for round in 0..scaled(REQUESTS) + 50 {
            let measured = [direct.ask().await?, logged.ask().await?];
            if round >= 50 {
                times
                    .iter_mut()
                    .zip(measured)
                    .for_each(|(times, time)| times.push(time));
            }
        }
        let [direct, logged] = times.map(Times::new);
        let mut row = |name: &str, times: &Times, (seconds, arrived): (f64, usize)| {
            section.row([
                name.to_owned(),
                time(times.median()),
                time(times.percentile(99)),
                ratio(times.median().as_secs_f64() / direct.median().as_secs_f64()),
                per_second(arrived as u64, seconds),
                format!("{arrived} of {wanted}"),
            ]);
        };
        if reach == Reach::PodAddress {
            let rate = flood(&kernel, wanted, CountFrom::Iopub(info)).await?;
            row("direct ZeroMQ to the pod's address", &direct, rate);
        }
        row(name, &logged, flood(&kernel, wanted, CountFrom::Log(&kernel)).await?);
        if reach == Reach::PodAddress {
            manager.close(AtClose::LeaveKernels).await?;
        } else {
            manager.close(AtClose::EndKernels).await?;
        }
    }
    section.note(
        "The messages are sent by jupyter_client's session in the kernel, one by one, while kernelmux records them. \
         The kernel limits the rate, unless a reader is slower. In the direct row, a bare subscriber counts the \
         messages, and kernelmux also records them.",
    );
    Ok(())
}

/// Where messages are counted.
enum CountFrom<'a> {
    Iopub(&'a ConnectionInfo),
    Log(&'a Arc<Kernel>),
}

/// Makes the kernel send `wanted` messages. Returns the seconds between the first and the last one that arrived, and
/// how many arrived.
async fn flood(kernel: &Arc<Kernel>, wanted: usize, source: CountFrom<'_>) -> Result<(f64, usize)> {
    let code = format!(
        "k = get_ipython().kernel\nfor i in range({wanted}):\n    k.session.send(k.iopub_socket, 'stream', {{'name': \
         'stdout', 'text': 'x' * 200}}, parent=k.get_parent())\nprint('the last')"
    );
    let (mut arrived, mut first) = (0, None);
    // Counts the messages before the last one.
    let mut count = |message: &jupyter_protocol::WireMessage| -> Result<Option<f64>> {
        if message.header_ref()?.msg_type != "stream" {
            return Ok(None);
        }
        let begun = *first.get_or_insert_with(Instant::now);
        if message.content().windows(8).any(|text| text == b"the last") {
            return Ok(Some(begun.elapsed().as_secs_f64()));
        }
        arrived += 1;
        Ok(None)
    };
    let seconds = match source {
        CountFrom::Iopub(info) => {
            let signer = info.signer()?;
            let mut iopub = IopubSubscriber::connect(&info.address(Channel::Iopub), DEADLINE).await?;
            let mut execution = kernel.execute(ExecuteRequest::new(code)).await?;
            let seconds = loop {
                let message = iopub.recv().await?;
                message.verify(&signer)?;
                if let Some(seconds) = count(&message)? {
                    break seconds;
                }
            };
            // Waits until all messages are recorded, so that the next run does not count them.
            while execution.next().await.is_some() {}
            seconds
        }
        CountFrom::Log(logged) => {
            let mut reader = logged.log().reader(logged.log().head());
            kernel.execute(ExecuteRequest::new(code)).await?;
            'reading: loop {
                let block = reader.next().await?.ok_or("the log has ended")?;
                for entry in block.entries().filter(|entry| entry.channel() == Channel::Iopub) {
                    if entry.origin() == Origin::Kernel
                        && let Some(seconds) = count(&entry.message())?
                    {
                        break 'reading seconds;
                    }
                }
            }
        }
    };
    Ok((seconds, arrived))
}
