//! The kernel, which outlives the gateway's process.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use jupyter_protocol::{Channel, WireMessage};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::world::{World, message};

/// How long the kernel waits for input.
const INPUT_TIMEOUT: Duration = Duration::from_secs(100);

/// Handles requests one after another until the socket closes.
pub(crate) async fn run(world: Rc<World>, number: u64, requests: mpsc::Receiver<(Channel, WireMessage)>) {
    let mut kernel = Kernel {
        world,
        number,
        sent: 0,
        requests,
        waiting: VecDeque::new(),
    };
    let mut count = 0;
    while let Some(request) = kernel.next_request().await {
        let header = request.header_ref().unwrap();
        kernel
            .publish(&request, "status", json!({"execution_state": "busy"}))
            .await;
        let reply = if header.msg_type == "execute_request" {
            count += 1;
            *kernel
                .world
                .runs
                .borrow_mut()
                .entry(header.msg_id.to_string())
                .or_default() += 1;
            kernel.world.trace(format_args!("kernel runs {}", header.msg_id));
            let content: Value = serde_json::from_slice(request.content()).unwrap();
            let code = content["code"].as_str().unwrap();
            kernel
                .publish(
                    &request,
                    "execute_input",
                    json!({"code": code, "execution_count": count}),
                )
                .await;
            for line in code.lines() {
                kernel.line(&request, line).await;
            }
            json!({"status": "ok", "execution_count": count})
        } else {
            json!({"status": "ok"})
        };
        let reply_first = kernel.world.one_in(2);
        let idle = json!({"execution_state": "idle"});
        if reply_first {
            kernel.reply(&request, &reply).await;
        }
        kernel.publish(&request, "status", idle).await;
        if !reply_first {
            kernel.reply(&request, &reply).await;
        }
    }
}

struct Kernel {
    world: Rc<World>,
    number: u64,
    sent: u64,
    requests: mpsc::Receiver<(Channel, WireMessage)>,
    /// Requests that arrived while the kernel waited for input.
    waiting: VecDeque<WireMessage>,
}

impl Kernel {
    async fn next_request(&mut self) -> Option<WireMessage> {
        if let Some(request) = self.waiting.pop_front() {
            return Some(request);
        }
        loop {
            match self.requests.recv().await? {
                // The answer to an input request that timed out.
                (Channel::Stdin, _) => {}
                (_, request) => return Some(request),
            }
        }
    }

    /// Asks for input and prints the answer, or continues without one after a timeout. Like ipykernel, the kernel takes
    /// the first input reply after its request. A reply that answers another request counts as no answer.
    async fn ask(&mut self, request: &WireMessage, prompt: &str) {
        while let Ok((channel, request)) = self.requests.try_recv() {
            if channel != Channel::Stdin {
                self.waiting.push_back(request);
            }
        }
        let question = self.make(request, "input_request", &json!({"prompt": prompt, "password": false}));
        self.answer(Channel::Stdin, question.clone()).await;
        let question = question.header_ref().unwrap().msg_id;
        let answered = timeout(INPUT_TIMEOUT, async {
            loop {
                match self.requests.recv().await {
                    Some((Channel::Stdin, reply)) => return Some(reply),
                    Some((_, request)) => self.waiting.push_back(request),
                    None => return None,
                }
            }
        });
        let answer = answered.await.ok().flatten();
        let meant = answer.filter(|answer| answer.parent_ref().unwrap().msg_id == question);
        let Some(answer) = meant else {
            let id = request.header_ref().unwrap().msg_id.to_string();
            self.world.trace(format_args!("kernel has no answer for {id}"));
            self.world.unanswered.borrow_mut().insert(id);
            return;
        };
        let id = answer.header_ref().unwrap().msg_id.to_string();
        self.world.answers.borrow_mut().insert(question.to_string(), id);
        let content: Value = serde_json::from_slice(answer.content()).unwrap();
        let text = format!("answered {}\n", content["value"].as_str().unwrap());
        self.publish(request, "stream", json!({"name": "stdout", "text": text}))
            .await;
    }

    async fn line(&mut self, request: &WireMessage, line: &str) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (msg_type, content) = match word {
            "ask" => return self.ask(request, rest).await,
            "print" => ("stream", json!({"name": "stdout", "text": format!("{rest}\n")})),
            "bar" => ("stream", json!({"name": "stdout", "text": format!("\r{rest}")})),
            "clear" => ("clear_output", json!({"wait": rest == "later"})),
            "show" | "change" => {
                let msg_type = if word == "show" {
                    "display_data"
                } else {
                    "update_display_data"
                };
                let content = json!({
                    "data": {"text/plain": rest}, "metadata": {},
                    "transient": {"display_id": request.header_ref().unwrap().msg_id},
                });
                (msg_type, content)
            }
            other => panic!("{other}"),
        };
        self.publish(request, msg_type, content).await;
        let pause = self.world.choose(&[1, 1, 1, 20, 500, 5000]);
        self.world.pause(pause).await;
    }

    fn make(&mut self, parent: &WireMessage, msg_type: &str, content: &Value) -> WireMessage {
        self.sent += 1;
        let id = format!("k{}-{}", self.number, self.sent);
        message(&id, msg_type, &format!("kernel{}", self.number), Some(parent), content)
    }

    /// Publishes a message, which is lost while there is no process.
    async fn publish(&mut self, parent: &WireMessage, msg_type: &str, content: Value) {
        let message = self.make(parent, msg_type, &content);
        let iopub = self
            .world
            .process
            .borrow()
            .as_ref()
            .map(|process| process.iopub.clone());
        if let Some(iopub) = iopub {
            let _ = iopub.send(message).await;
        }
    }

    async fn reply(&mut self, parent: &WireMessage, content: &Value) {
        let msg_type = parent.header_ref().unwrap().msg_type.replace("_request", "_reply");
        let message = self.make(parent, &msg_type, content);
        self.answer(Channel::Shell, message).await;
    }

    /// Sends a reply, which is lost while there is no process.
    async fn answer(&mut self, channel: Channel, message: WireMessage) {
        let replies = self
            .world
            .process
            .borrow()
            .as_ref()
            .map(|process| process.replies.clone());
        if let Some(replies) = replies {
            let _ = replies.send((channel, message)).await;
        }
    }
}
