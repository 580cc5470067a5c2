use std::time::Duration;

/// How a [`Client`](super::Client) behaves. The default suits most programs.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// The longest that connecting to each of the kernel's sockets may take. Default: 30 seconds.
    pub connect_deadline: Duration,
    /// The longest to wait for a sign that the subscription to iopub is in force, so that no output is missed; `None`
    /// does not wait. Default: 30 seconds.
    pub iopub_deadline: Option<Duration>,
    /// The longest to wait for a reply, other than that of an execution, which may take for ever. A shell request waits
    /// behind running code. Default: 60 seconds.
    pub request_deadline: Duration,
    /// How many messages wait to be read for each [`Execution`](super::Execution) and each
    /// [`Iopub`](super::Iopub); more are dropped, which the reader is told. Default: 10,000.
    pub queue: usize,
    /// How many bytes of messages wait to be read for each execution, as `queue`. Default: 256 MiB.
    pub queue_bytes: usize,
    /// Identifies the client to the kernel, at most 255 bytes. Two clients at once must not have the same.
    /// Default: a random UUID.
    pub session: Option<String>,
    /// The user's name in the messages' headers. Default: that of [`Header::new`](crate::Header::new).
    pub username: Option<String>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            connect_deadline: Duration::from_secs(30),
            iopub_deadline: Some(Duration::from_secs(30)),
            request_deadline: Duration::from_secs(60),
            queue: 10_000,
            queue_bytes: 256 << 20,
            session: None,
            username: None,
        }
    }
}
