//! Forwarding of frames as WebSocket v1 messages after verification, compared with parsing to a typed message and
//! writing it again.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jupyter_protocol::codec::websocket_v1;
use jupyter_protocol::{Channel, Message, Signer, WireMessage};
use serde_json::json;

use crate::measure::{Times, bytes, ratio, time};
use crate::report::Section;
use crate::{Result, setup};

/// Duration of a round, and number of rounds.
const ROUND: Duration = Duration::from_millis(20);
const ROUNDS: usize = 15;

/// A message to forward.
#[derive(Clone, Copy)]
pub struct Case {
    /// Bytes of text in its content.
    pub text: usize,
    /// Number of buffers of 64 KiB.
    pub buffers: usize,
}

/// The measured cases: 64 B to 1 MiB of text, and 0 to 8 buffers.
pub const CASES: [Case; 9] = [
    Case { text: 64, buffers: 0 },
    Case {
        text: 1 << 10,
        buffers: 0,
    },
    Case {
        text: 16 << 10,
        buffers: 0,
    },
    Case {
        text: 128 << 10,
        buffers: 0,
    },
    Case {
        text: 1 << 20,
        buffers: 0,
    },
    Case { text: 64, buffers: 1 },
    Case { text: 64, buffers: 2 },
    Case { text: 64, buffers: 4 },
    Case { text: 64, buffers: 8 },
];

/// Returns the signer of the messages.
///
/// # Errors
/// Never; the scheme exists.
pub fn signer() -> Result<Signer> {
    Ok(Signer::new("hmac-sha256", b"a0436f6c-1916-498b-8eb9-e81ab9368e84")?)
}

/// Makes the frames of the case's message, as a kernel sends them on iopub.
#[must_use]
pub fn frames(case: Case, signer: &Signer) -> Vec<Bytes> {
    let header = |msg_type: &str, number: u32| {
        json!({
            "msg_id": format!("d3f9c3c2-6d1f1b2a5a9b4f1e8c7d_4711_{number}"), "msg_type": msg_type, "username": "user",
            "session": "d3f9c3c2-6d1f1b2a5a9b4f1e8c7d", "date": "2026-01-01T12:34:56.789012Z", "version": "5.4",
        })
    };
    let text: String = "All work and no play, said \"Jack\".\n"
        .chars()
        .cycle()
        .take(case.text)
        .collect();
    let (msg_type, content) = if case.buffers == 0 {
        ("stream", json!({"name": "stdout", "text": text}))
    } else {
        let data = json!({"method": "update", "state": {"text": text}});
        ("comm_msg", json!({"comm_id": "c7d8e9f0a1b24c3d", "data": data}))
    };
    let json = |value: serde_json::Value| Bytes::from(value.to_string());
    let parts = [
        json(header(msg_type, 7)),
        json(header("execute_request", 6)),
        json(json!({})),
        json(content),
    ];
    let buffer = Bytes::from(vec![7_u8; 64 << 10]);
    let message = WireMessage::from_parts(parts, std::iter::repeat_n(buffer, case.buffers)).signed(signer);
    let frames = message.with_identities([Bytes::from(msg_type)]).into_frames();
    // The first clone of `Bytes` allocates. Later clones only count references, as with frames from a socket.
    let _ = frames.clone();
    frames
}

/// Forwards a message as the recorder and the gateway do, without parsing it.
///
/// # Errors
/// If the frames are not a message or are signed with another key.
pub fn splice(frames: Vec<Bytes>, signer: &Signer) -> Result<Bytes> {
    let message = WireMessage::from_frames(frames)?;
    message.verify(signer)?;
    Ok(websocket_v1::encode(Channel::Iopub, &message))
}

/// Forwards a message by parsing all of it and serializing it again.
///
/// # Errors
/// Those of [`splice`], and an invalid header.
pub fn typed(frames: Vec<Bytes>, signer: &Signer) -> Result<Bytes> {
    let message = WireMessage::from_frames(frames)?;
    message.verify(signer)?;
    let message = Message::from_wire(&message)?;
    Ok(websocket_v1::encode(Channel::Iopub, &message.to_wire()))
}

/// The work that both ways share: the HMAC over all signed bytes, and one copy of all bytes.
fn floor(all: &Bytes, signed: usize, signer: &Signer) -> Bytes {
    black_box(signer.sign([&all[..signed], b"", b"", b""]));
    Bytes::copy_from_slice(all)
}

/// Allocations for one message.
#[derive(Clone, Copy)]
struct Allocations {
    number: u64,
    bytes: u64,
}

/// Runs the benchmark.
///
/// # Errors
/// If the program that counts allocations fails.
pub fn run() -> Result<Section> {
    let mut section = Section::new(
        "Protocol: frames in, verified, WebSocket v1 bytes out",
        format!(
            "Converts a kernel's frames to a WebSocket message of the v1 subprotocol and checks the signature: \
             spliced, as kernelmux does, against parsed to a typed `Message` and written again. Median of {ROUNDS} \
             rounds; allocations are counted in a separate process, without those of the received frames."
        ),
    );
    section.table(&[
        "text",
        "buffers of 64 KiB",
        "spliced",
        "allocations",
        "typed",
        "allocations",
        "typed ÷ spliced",
        "signature and copy alone",
        "typed ÷ signature and copy",
    ]);
    let signer = signer()?;
    let allocations = count_allocations()?;
    let mut speedups = Vec::new();
    for (case, (spliced_allocations, typed_allocations)) in CASES.into_iter().zip(&allocations) {
        let frames = frames(case, &signer);
        let message = WireMessage::from_frames(frames.clone())?;
        let all = Bytes::from(message.parts_and_buffers().concat());
        let signed = message.parts().map(Bytes::len).iter().sum();
        let (mut spliced, mut parsed, mut floors) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            floors.push(one_round(&frames, |_| Ok(floor(&all, signed, &signer)))?);
            spliced.push(one_round(&frames, |frames| splice(frames, &signer))?);
            parsed.push(one_round(&frames, |frames| typed(frames, &signer))?);
        }
        let [spliced, parsed, floor] = [spliced, parsed, floors].map(|times| Times::new(times).median());
        let speedup = parsed.as_secs_f64() / spliced.as_secs_f64();
        let max_speedup = parsed.as_secs_f64() / floor.as_secs_f64();
        speedups.push((case, speedup));
        let format_allocations =
            |allocations: &Allocations| format!("{} ({})", allocations.number, bytes(allocations.bytes));
        section.row([
            bytes(case.text as u64),
            case.buffers.to_string(),
            time(spliced),
            format_allocations(spliced_allocations),
            time(parsed),
            format_allocations(typed_allocations),
            ratio(speedup),
            time(floor),
            ratio(max_speedup),
        ]);
    }
    let block = Bytes::from(vec![b'x'; 1 << 20]);
    let signing = one_round(&[], |_| {
        Ok(Bytes::copy_from_slice(signer.sign([&block, b"", b"", b""]).as_bytes()))
    })?;
    section.note(format!(
        "Where \"typed ÷ signature and copy\" is below 5, the target cannot be met: both variants check the signature \
         and copy the message once, which alone takes more than a fifth of the typed variant's time. HMAC-SHA256 \
         cannot run in parallel: {:.2} GB/s on this processor, with its SHA instructions. Buffers are not signed, but \
         each byte of them is copied once, into the log's entry.",
        block.len() as f64 / signing.as_secs_f64() / 1e9
    ));
    let most = allocations.iter().map(|(spliced, _)| spliced.number).max().unwrap_or(0);
    section.target("allocations per message", "≤ 4", most.to_string(), most <= 4);
    let with_buffers: Vec<u64> = CASES
        .iter()
        .zip(&allocations)
        .filter(|(case, _)| case.text == 64)
        .map(|(_, (spliced, _))| spliced.number)
        .collect();
    let flat = with_buffers.windows(2).all(|pair| pair[0] == pair[1]);
    let numbers = with_buffers.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    section.target("allocations with 0, 1, 2, 4, 8 buffers", "the same", numbers, flat);
    for (case, speedup) in speedups {
        let what = match case.buffers {
            0 => format!("time against typed, {}", bytes(case.text as u64)),
            1 => format!("time against typed, {} and a buffer", bytes(case.text as u64)),
            buffers => format!("time against typed, {} and {buffers} buffers", bytes(case.text as u64)),
        };
        section.target(what, "≥ 5× less", format!("{} less", ratio(speedup)), speedup >= 5.0);
    }
    Ok(section)
}

/// Runs a round and returns the time per message.
fn one_round(frames: &[Bytes], pass: impl Fn(Vec<Bytes>) -> Result<Bytes>) -> Result<Duration> {
    let mut total = Duration::ZERO;
    let mut messages = 0;
    while total < ROUND {
        // Incoming frames are made outside the measured time.
        let incoming: Vec<_> = (0..64).map(|_| frames.to_vec()).collect();
        let begun = Instant::now();
        for frames in incoming {
            black_box(pass(black_box(frames))?);
            messages += 1;
        }
        total += begun.elapsed();
    }
    Ok(total / messages)
}

/// Counts allocations with a separate program, because counting costs time: see `bin/allocations.rs`.
fn count_allocations() -> Result<Vec<(Allocations, Allocations)>> {
    let output = std::process::Command::new(setup::binary("allocations")?).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let mut all = Vec::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let [spliced, spliced_bytes, typed, typed_bytes]: [u64; 4] = serde_json::from_str(line)?;
        let of = |number, bytes| Allocations { number, bytes };
        all.push((of(spliced, spliced_bytes), of(typed, typed_bytes)));
    }
    Ok(all)
}
