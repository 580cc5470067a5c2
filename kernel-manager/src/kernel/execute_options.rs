use jupyter_protocol::content::ExecuteRequest;
use serde_json::{Map, Value};

/// How code is executed: the request with its session and metadata, and whether dropping the execution interrupts it.
///
/// Options made from code have the defaults of Jupyter's front ends: outputs are shown, the code goes to the history,
/// and it may request input.
///
/// ```
/// use kernel_manager::ExecuteOptions;
///
/// let options = ExecuteOptions::new("fit(model)").with_cell_id("a1b2").with_stdin(false).with_interrupt_on_drop(true);
/// assert_eq!(options.request.code, "fit(model)");
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ExecuteOptions {
    /// The content of the `execute_request`.
    pub request: ExecuteRequest,
    /// The session that sends the request and receives its replies; `None` for a new one.
    pub session: Option<String>,
    /// Metadata of the request, such as `cellId` (JEP 95).
    pub metadata: Map<String, Value>,
    /// Whether dropping the [`Execution`](super::Execution) before its end interrupts the kernel.
    pub interrupt_on_drop: bool,
}

impl ExecuteOptions {
    /// Creates the default options for executing `code`.
    #[must_use]
    pub fn new(code: impl Into<String>) -> Self {
        ExecuteRequest::new(code).into()
    }

    /// Sets the session. A client of the same session that attaches later gets the replies, too.
    #[must_use]
    pub fn with_session(mut self, session: impl Into<String>) -> Self {
        self.session = Some(session.into());
        self
    }

    /// Sets the id of the notebook cell (JEP 95), by which [`Executions`](crate::Executions) finds the execution.
    #[must_use]
    pub fn with_cell_id(self, cell_id: impl Into<String>) -> Self {
        self.with_metadata("cellId", cell_id.into())
    }

    /// Adds a member to the request's metadata.
    #[must_use]
    pub fn with_metadata(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.metadata.insert(name.into(), value.into());
        self
    }

    /// Sets whether the code may request input. If not, Python's `input()` fails at once.
    #[must_use]
    pub fn with_stdin(mut self, allowed: bool) -> Self {
        self.request.allow_stdin = allowed;
        self
    }

    /// Sets whether dropping the [`Execution`](super::Execution) before its end interrupts the kernel.
    #[must_use]
    pub fn with_interrupt_on_drop(mut self, interrupt: bool) -> Self {
        self.interrupt_on_drop = interrupt;
        self
    }
}

impl From<ExecuteRequest> for ExecuteOptions {
    fn from(request: ExecuteRequest) -> Self {
        Self {
            request,
            session: None,
            metadata: Map::new(),
            interrupt_on_drop: false,
        }
    }
}

impl From<&str> for ExecuteOptions {
    fn from(code: &str) -> Self {
        Self::new(code)
    }
}

impl From<String> for ExecuteOptions {
    fn from(code: String) -> Self {
        Self::new(code)
    }
}
