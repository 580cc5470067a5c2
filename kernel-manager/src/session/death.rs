use kernel_log::Lifecycle;

/// Why executions ended together with the kernel.
#[derive(Clone, Debug)]
pub(super) struct Death {
    /// The error name that clients receive.
    pub(super) ename: &'static str,
    pub(super) reason: String,
}

impl Death {
    /// The cause of death, if this event ends all unfinished executions.
    pub(super) fn by(event: &Lifecycle) -> Option<Self> {
        // nbclient raises an exception of this name for a dead kernel.
        let died = |reason: &str| Self {
            ename: "DeadKernelError",
            reason: reason.to_owned(),
        };
        match event {
            Lifecycle::Restarted => Some(Self {
                ename: "KernelRestarted",
                reason: "the kernel was restarted".to_owned(),
            }),
            // A new kernel has started with the id of an earlier one, whose executions end.
            Lifecycle::Started => Some(died("the kernel ended while it was not recorded")),
            Lifecycle::RestartingByItself { reason, .. } | Lifecycle::Dead { reason, .. } => Some(died(reason)),
            _ => None,
        }
    }
}
