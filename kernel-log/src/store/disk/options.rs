/// Options of a [`DiskStore`](super::DiskStore).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DiskOptions {
    /// Bytes at which a file of a log is complete and the next one begins, at least 64 KiB. Space is freed by whole
    /// files, so a log that is [acknowledged](crate::Log::acknowledge) soon after it is written takes about this much.
    pub segment_bytes: u64,
}

impl DiskOptions {
    /// Sets the size at which a file of a log is complete.
    #[must_use]
    pub fn with_segment_bytes(mut self, segment_bytes: u64) -> Self {
        self.segment_bytes = segment_bytes;
        self
    }
}

impl Default for DiskOptions {
    /// 8 MiB.
    fn default() -> Self {
        Self { segment_bytes: 8 << 20 }
    }
}
