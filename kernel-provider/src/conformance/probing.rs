//! Tests that run code in kernels.

use jupyter_protocol::KernelId;
use jupyter_protocol::client::{Client, Execution, ExecutionEvent};
use jupyter_protocol::content::{Content, ExecuteRequest};

use super::{
    Failure, Outcome, Probe, Subject, check_answers, check_nothing_left, ensure, expect, launch, launch_request,
    shutdown, step,
};
use crate::{Interrupt, KernelHandle, Progress};

/// A variable that the suite sets.
const VARIABLE: &str = "KERNELMUX_CONFORMANCE";
/// A value with characters that a shell would interpret.
const VALUE: &str = "two words, a $HOME, 'quotes\", =, \\ and ü";

/// Starts code, and returns its execution and the client, which must live as long as the execution.
async fn start(subject: &dyn Subject, kernel: &dyn KernelHandle, code: String) -> Result<(Client, Execution), Failure> {
    // The kernel is ready once it has answered.
    check_answers(subject, kernel).await?;
    let connection = expect(subject, "connection", subject.connection(kernel)).await?;
    let client = expect(subject, "connect to the kernel", Client::connect(&connection)).await?;
    let execution = expect(subject, "execute", client.execute(ExecuteRequest::new(code))).await?;
    Ok((client, execution))
}

/// Reads the execution's output until `done` returns true for the text so far, or the execution ends.
async fn read(
    subject: &dyn Subject,
    execution: &mut Execution,
    done: impl Fn(&str) -> bool,
) -> Result<String, Failure> {
    let reading = async {
        let mut text = String::new();
        while !done(&text) {
            match execution.next().await {
                Some(Ok(ExecutionEvent::Output(message))) => match message.content {
                    Content::Stream(stream) => text.push_str(&stream.text),
                    Content::Error(error) => text.push_str(&format!("{}: {}", error.ename, error.evalue)),
                    _ => {}
                },
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(Failure::new(format!("the execution failed: {error}"))),
                None => break,
            }
        }
        Ok(text)
    };
    step(subject, "the output", reading).await?
}

/// The kernel gets the environment variables of the request unchanged.
pub async fn passes_environment_variables(subject: &dyn Subject) -> Outcome {
    let Some(code) = subject.code(&Probe::PrintVariable(VARIABLE.to_owned())) else {
        return Ok(());
    };
    let provider = subject.open().await;
    let mut request = launch_request(subject, KernelId::random());
    request.env.insert(VARIABLE.to_owned(), VALUE.to_owned());
    let kernel = expect(subject, "launch", provider.launch(request, Progress::ignored())).await?;
    let (_client, mut execution) = start(subject, &*kernel, code).await?;
    let seen = read(subject, &mut execution, |_| false).await?;
    ensure!(seen == VALUE, "the kernel's variable is {seen:?}");
    shutdown(subject, &*kernel).await.map(drop)
}

/// The kernel starts in the working directory of the request.
pub async fn starts_in_the_working_directory(subject: &dyn Subject) -> Outcome {
    let (Some(code), Some(dir)) = (subject.code(&Probe::PrintWorkingDir), subject.working_dir()) else {
        return Ok(());
    };
    let provider = subject.open().await;
    let mut request = launch_request(subject, KernelId::random());
    request.working_dir = Some(dir.clone());
    let kernel = expect(subject, "launch", provider.launch(request, Progress::ignored())).await?;
    let (_client, mut execution) = start(subject, &*kernel, code).await?;
    let seen = read(subject, &mut execution, |_| false).await?;
    ensure!(Some(&*seen) == dir.to_str(), "the kernel runs in {seen}");
    shutdown(subject, &*kernel).await.map(drop)
}

/// An interrupt ends the running code, and the kernel runs more code afterwards.
pub async fn an_interrupt_ends_the_code(subject: &dyn Subject) -> Outcome {
    let Some(code) = subject.code(&Probe::WaitForInterrupt) else {
        return Ok(());
    };
    let provider = subject.open().await;
    let kernel = launch(subject, &*provider, KernelId::random()).await?;
    let (client, mut execution) = start(subject, &*kernel, code).await?;
    read(subject, &mut execution, |text| text.contains("running")).await?;
    if expect(subject, "interrupt", kernel.interrupt()).await? == Interrupt::ByMessage {
        expect(subject, "interrupt by message", client.interrupt()).await?;
    }
    // Waits for the execution's end, however the kernel's language reports the interrupt.
    read(subject, &mut execution, |_| false).await?;
    check_answers(subject, &*kernel).await?;
    shutdown(subject, &*kernel).await.map(drop)
}

/// A shutdown also ends the processes that the kernel has started.
pub async fn a_shutdown_ends_processes_of_the_kernel(subject: &dyn Subject) -> Outcome {
    let Some(code) = subject.code(&Probe::StartProcess) else {
        return Ok(());
    };
    let provider = subject.open().await;
    let kernel = launch(subject, &*provider, KernelId::random()).await?;
    let (_client, mut execution) = start(subject, &*kernel, code).await?;
    let seen = read(subject, &mut execution, |_| false).await?;
    ensure!(seen == "started", "the code printed {seen:?}");
    shutdown(subject, &*kernel).await?;
    check_nothing_left(subject, &*provider).await
}
