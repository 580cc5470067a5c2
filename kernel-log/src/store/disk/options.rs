/// Options of a [`DiskStore`](super::DiskStore).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DiskOptions {
    /// Bytes at which a file of a log is complete and the next one begins, at least 64 KiB. Space is freed by whole
    /// files, so a log that is [acknowledged](crate::Log::acknowledge) soon after it is written takes about this much.
    pub segment_bytes: u64,
    /// Whether opening and closing the store are synced to the disk, which takes some milliseconds. Set this to `false`
    /// for logs that are useless after a failure of the machine: such a failure may then go unnoticed.
    pub detects_machine_failure: bool,
}

impl DiskOptions {
    /// Sets the size at which a file of a log is complete.
    #[must_use]
    pub fn with_segment_bytes(mut self, segment_bytes: u64) -> Self {
        self.segment_bytes = segment_bytes;
        self
    }

    /// Sets whether opening and closing the store are synced to the disk.
    #[must_use]
    pub fn with_detects_machine_failure(mut self, detects_machine_failure: bool) -> Self {
        self.detects_machine_failure = detects_machine_failure;
        self
    }
}

impl Default for DiskOptions {
    /// Segments of 8 MiB, and detection of machine failures.
    fn default() -> Self {
        Self {
            segment_bytes: 8 << 20,
            detects_machine_failure: true,
        }
    }
}
