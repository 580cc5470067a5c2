use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use jupyter_protocol::ConnectionInfo;
use jupyter_protocol::kernel::{Kernel, ServeError, Server};
use jupyter_protocol::kernelspec::{InterruptMode, Kernelspec};

use super::echo::Echo;
use crate::LaunchError;

type Binding = Pin<Box<dyn Future<Output = Result<Server, ServeError>> + Send>>;

/// A kernelspec of a [`FakeProvider`](super::FakeProvider) and the outcome of launching it.
#[derive(Clone)]
pub struct FakeSpec {
    pub(super) spec: Kernelspec,
    pub(super) behaviour: Behaviour,
}

#[derive(Clone)]
pub(super) enum Behaviour {
    Serves(Arc<dyn Fn(ConnectionInfo) -> Binding + Send + Sync>),
    Fails(LaunchError),
    IsSilent(String),
}

impl FakeSpec {
    /// A kernel that prints the code that it is to execute.
    #[must_use]
    pub fn echo() -> Self {
        Self::kernel(|| Echo)
    }

    /// A kernel made by `make` at each start. It runs as a task of this process and speaks the protocol over TCP.
    pub fn kernel<K: Kernel>(make: impl Fn() -> K + Send + Sync + 'static) -> Self {
        Self::new(Behaviour::Serves(Arc::new(move |connection| {
            Box::pin(Server::bind(connection, make()))
        })))
    }

    /// A kernelspec whose launches report that the kernel starts, and then fail with this error.
    #[must_use]
    pub fn failing(error: LaunchError) -> Self {
        Self::new(Behaviour::Fails(error))
    }

    /// A kernel that writes `output` and never opens its sockets.
    pub fn silent(output: impl Into<String>) -> Self {
        Self::new(Behaviour::IsSilent(output.into()))
    }

    /// Replaces the content of `kernel.json`, which by default has the display name `Fake` and the language `echo`.
    #[must_use]
    pub fn with_kernelspec(mut self, spec: Kernelspec) -> Self {
        self.spec = spec;
        self
    }

    /// Sets the interrupt mode, which is `signal` by default.
    #[must_use]
    pub fn with_interrupt_mode(mut self, mode: InterruptMode) -> Self {
        self.spec.interrupt_mode = mode;
        self
    }

    fn new(behaviour: Behaviour) -> Self {
        let spec = Kernelspec {
            argv: vec!["fake".to_owned()],
            display_name: "Fake".to_owned(),
            language: "echo".to_owned(),
            ..Kernelspec::default()
        };
        Self { spec, behaviour }
    }
}

impl fmt::Debug for FakeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let behaviour = match &self.behaviour {
            Behaviour::Serves(_) => "serves".to_owned(),
            Behaviour::Fails(error) => format!("fails: {error}"),
            Behaviour::IsSilent(_) => "is silent".to_owned(),
        };
        f.debug_struct("FakeSpec")
            .field("spec", &self.spec)
            .field("behaviour", &behaviour)
            .finish()
    }
}
