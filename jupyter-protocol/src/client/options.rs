use std::time::Duration;

/// Options of a [`Client`](super::Client). The defaults suit most programs.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Deadline for connecting to each of the kernel's sockets. Default: 30 seconds.
    pub connect_deadline: Duration,
    /// Deadline for the subscription to iopub to take effect; until it does, output would be missed. `None` does not
    /// wait. Default: 30 seconds.
    pub iopub_deadline: Option<Duration>,
    /// Deadline for replies, except those of executions, which have none. A request on shell waits until running code
    /// completes. Default: 60 seconds.
    pub request_deadline: Duration,
    /// Maximum number of unread messages of each [`Execution`](super::Execution) and each [`Iopub`](super::Iopub). An
    /// `Iopub` rounds the number up to a power of two.
    ///
    /// At the maximum, an `Execution` drops further outputs, and an `Iopub` its oldest messages. Both report the number
    /// of dropped messages as [`ClientError::Lagged`](super::ClientError::Lagged). Default: 10,000.
    pub queue: usize,
    /// Maximum size in bytes of the unread outputs of each execution, which drops further outputs as with `queue`.
    /// Default: 256 MiB.
    pub queue_bytes: usize,
    /// Session id that identifies the client to the kernel, at most 255 bytes. It must be unique among the connected
    /// clients. Default: a random UUID.
    pub session: Option<String>,
    /// Username in message headers. Default: that of [`Header::new`](crate::Header::new).
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
