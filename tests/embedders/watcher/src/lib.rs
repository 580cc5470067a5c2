//! Shows what a kernel of a remote gateway is running, from the beginning of the cell to its end.
use std::error::Error;

use gateway_client::GatewayClient;
use gateway_client::rest::{ExecutionQuery, ExecutionStatus};
use gateway_client::resume::Start;
use gateway_client::resume::client::{Event, ResumeClient};
use jupyter_protocol::Message;
use jupyter_protocol::content::{Content, ExecutionState};

/// Follows the first running execution of a kernel of this kernelspec. Returns whether there was one.
pub async fn watch(gateway: &GatewayClient, spec: &str, mut show: impl FnMut(&str)) -> Result<bool, Box<dyn Error>> {
    let running = ExecutionQuery::new()
        .with_status(ExecutionStatus::Running)
        .with_limit(1);
    for kernel in gateway.find_kernels(spec).await? {
        let page = gateway.list_executions(kernel.id, &running).await?;
        let Some(execution) = page.executions.first() else {
            continue;
        };
        let so_far = gateway.execution(kernel.id, &execution.msg_id).await?;
        show(&so_far.text());
        if so_far.execution.status.has_ended() {
            return Ok(true);
        }
        let start = Start::After(so_far.cursor);
        let mut client = ResumeClient::connect(gateway.resume(kernel.id).with_start(start)).await?;
        while let Some(event) = client.next().await? {
            let Event::Entry(entry) = event else { continue };
            let message = Message::from_wire(&entry.message)?;
            if message
                .parent_header
                .as_ref()
                .is_none_or(|parent| parent.msg_id != execution.msg_id)
            {
                continue;
            }
            match message.content {
                Content::Stream(stream) => show(&stream.text),
                Content::Status(status) if status.execution_state == ExecutionState::Idle => break,
                _ => {}
            }
        }
        return Ok(true);
    }
    Ok(false)
}
