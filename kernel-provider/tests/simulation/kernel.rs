//! The kernel, which lives on while the gateway's process comes and goes.

use std::rc::Rc;

use jupyter_protocol::{Channel, WireMessage};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::world::{World, message};

/// Does what requests say, one after another, until its socket is closed.
pub(crate) async fn run(world: Rc<World>, number: u64, mut requests: mpsc::Receiver<(Channel, WireMessage)>) {
    let mut kernel = Kernel { world, number, said: 0 };
    let mut count = 0;
    while let Some((_, request)) = requests.recv().await {
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
    said: u64,
}

impl Kernel {
    async fn line(&mut self, request: &WireMessage, line: &str) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (msg_type, content) = match word {
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
        let pause = self.world.of(&[1, 1, 1, 20, 500, 5000]);
        self.world.pause(pause).await;
    }

    fn make(&mut self, parent: &WireMessage, msg_type: &str, content: &Value) -> WireMessage {
        self.said += 1;
        let id = format!("k{}-{}", self.number, self.said);
        message(&id, msg_type, &format!("kernel{}", self.number), Some(parent), content)
    }

    /// Nobody hears it where there is no process.
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
        let replies = self
            .world
            .process
            .borrow()
            .as_ref()
            .map(|process| process.replies.clone());
        if let Some(replies) = replies {
            let _ = replies.send((Channel::Shell, message)).await;
        }
    }
}
