//! A chat service in which each user has a kernel.
use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

use kernelmux::prelude::*;
use tokio::sync::OnceCell;

/// One side of a chat: what is shown to the user, and what the user answers.
pub trait Conversation {
    fn show(&mut self, text: &str);
    fn ask(&mut self, prompt: &str) -> impl Future<Output = String>;
}

pub struct Chat {
    manager: Manager,
    spec: String,
    users: Mutex<HashMap<String, Arc<OnceCell<Arc<Kernel>>>>>,
}

impl Chat {
    pub fn new(manager: Manager, spec: impl Into<String>) -> Self {
        Self {
            manager,
            spec: spec.into(),
            users: Mutex::default(),
        }
    }

    /// Runs code in the user's kernel, which the first call starts.
    pub async fn run(&self, user: &str, code: &str, chat: &mut impl Conversation) -> Result<(), Box<dyn Error>> {
        let kernel = self.kernel(user).await?;
        let mut execution = kernel.execute(code).await?;
        while let Some(message) = execution.next().await {
            match message?.content {
                Content::Stream(stream) => chat.show(&stream.text),
                Content::ExecuteResult(result) => chat.show(&result.data.as_text("text/plain").unwrap_or_default()),
                Content::Error(error) => chat.show(&format!("{}: {}", error.ename, error.evalue)),
                Content::InputRequest(request) => execution.answer(chat.ask(&request.prompt).await).await?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Ends the user's kernel.
    pub async fn leave(&self, user: &str) -> Result<(), Box<dyn Error>> {
        let kernel = self.users.lock().unwrap_or_else(PoisonError::into_inner).remove(user);
        if let Some(kernel) = kernel.as_ref().and_then(|kernel| kernel.get()) {
            kernel.shutdown().await?;
        }
        Ok(())
    }

    async fn kernel(&self, user: &str) -> Result<Arc<Kernel>, Box<dyn Error>> {
        let cell = self
            .users
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(user.to_owned())
            .or_default()
            .clone();
        let request = StartRequest::new(&self.spec).with_owner(user);
        Ok(cell.get_or_try_init(|| self.manager.start(request)).await?.clone())
    }
}
