//! Random combinations of all faults.

use std::time::Duration;

use futures::FutureExt;
use gateway_client::resume::Hello;
use gateway_client::resume::client::ResumeClient;
use jupyter_protocol::content::ExecuteRequest;
use jupyter_protocol::{Channel, Message};
use kernel_log::{Epoch, Seq};

use super::gateway::{Fault, Gateway, Refuse, Script};
use super::view::View;

/// SplitMix64, a generator whose output depends only on the seed.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    fn choose<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize].clone()
    }
}

fn script(random: &mut Random) -> Script {
    let mut script = Script {
        window: random.choose(&[0, 16, 100, 1000, 10_000]),
        ..Script::default()
    };
    match random.below(10) {
        0 => script.refuse = Some(random.choose(&[Refuse::Unreachable, Refuse::Mute, Refuse::Status(503)])),
        1..=3 => script.cut_after_written = Some(random.below(6000) as usize),
        4 | 5 => script.cut_after_read = Some(random.below(3000) as usize),
        _ => {
            let elsewhere = Hello {
                epoch: Epoch::random(),
                earliest: Seq(1),
                head: Seq(5),
                from: Seq(2),
                recovered: true,
                reason: None,
            };
            let fault = random.choose(&[
                Fault::Cut,
                Fault::Close(None),
                Fault::Close(Some(1000)),
                Fault::Close(Some(1001)),
                Fault::Close(Some(1011)),
                Fault::Twice,
                Fault::Swapped,
                Fault::Missing,
                Fault::Binary(b"\x01\0\0\0\0\0\0\0"),
                Fault::Text("no JSON"),
                Fault::Text(r#"{"type":"alive"}"#),
                Fault::Hello(elsewhere),
                Fault::Silence,
            ]);
            script.fault = Some((1 + random.below(20) as usize, fault));
        }
    }
    script
}

/// Acts as the kernel: appends entries, drops some, loses some, and rarely replaces the whole log.
async fn kernel(gateway: Gateway, mut random: Random) {
    for number in 0..30 + random.below(80) {
        match random.below(100) {
            0 => gateway.replace_log(),
            1..=5 => {
                let range = gateway.range();
                gateway.trim(range.start() + random.below(10));
            }
            6..=10 => gateway.lose_one(),
            _ => drop(gateway.append_output(number)),
        }
        if random.one_in(4) {
            tokio::time::sleep(Duration::from_millis(random.below(2000))).await;
        }
    }
}

async fn schedule(seed: u64) {
    let mut random = Random(seed);
    let gateway = Gateway::new();
    for _ in 0..random.below(8) {
        gateway.script([script(&mut random)]);
        // Connections without faults in between keep repeated violations below the limit, which another test covers.
        gateway.script((0..2).map(|_| Script::default()).take(random.below(3) as usize));
    }
    let kernel = tokio::spawn(kernel(gateway.clone(), Random(random.next())));
    let mut client = ResumeClient::new(gateway.options()).unwrap();
    let mut view = View::default();
    let mut sent = Vec::new();
    let mut ending = false;
    loop {
        if sent.len() < 10 && random.one_in(10) {
            let message = Message::new(ExecuteRequest::new("code"), client.session());
            sent.push(message.header.msg_id.clone());
            client.send(Channel::Shell, message.to_wire()).unwrap();
        }
        if random.one_in(50) {
            client.disconnect();
        }
        if random.one_in(50) {
            tokio::time::sleep(Duration::from_secs(random.below(200))).await;
        }
        if kernel.is_finished() && !ending && sent.len() == 10 && sent.iter().all(|id| gateway.count(id) == 1) {
            gateway.end();
            ending = true;
        }
        let event = match random.below(3) {
            // Cancelled after one poll.
            0 => match client.next().now_or_never() {
                Some(event) => event,
                None => {
                    tokio::task::yield_now().await;
                    continue;
                }
            },
            1 => {
                let limit = Duration::from_millis(random.below(500));
                match tokio::time::timeout(limit, client.next()).await {
                    Ok(event) => event,
                    Err(_) => continue,
                }
            }
            _ => match tokio::time::timeout(Duration::from_secs(1), client.next()).await {
                Ok(event) => event,
                Err(_) => continue,
            },
        };
        match event.unwrap() {
            Some(event) => view.take(event, &client),
            None => break,
        }
    }
    view.check(&gateway);
    // A message that was in flight at a gap may be among the missing entries.
    assert!(client.unconfirmed().len() == 0 || view.has_gaps());
    for id in sent {
        assert_eq!(gateway.count(&id), 1, "{id}");
    }
}

/// Prints the seed on a panic.
struct PrintSeed(u64);

impl Drop for PrintSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("failed with KERNELMUX_SEED={}", self.0);
        }
    }
}

#[test]
fn random_faults_neither_lose_nor_duplicate_messages() {
    let given = std::env::var("KERNELMUX_SEED").ok().map(|seed| seed.parse().unwrap());
    let first = given.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().1);
    let count = if given.is_some() { 1 } else { 1000 };
    println!("testing {count} seeds from {first}");
    for seed in (0..count).map(|number| first.wrapping_add(number)) {
        let _print = PrintSeed(seed);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        // Tokio's clock is paused, so this deadline costs no real time.
        runtime.block_on(async {
            let deadline = Duration::from_secs(24 * 3600);
            tokio::time::timeout(deadline, schedule(seed))
                .await
                .expect("the schedule does not end");
        });
    }
}
