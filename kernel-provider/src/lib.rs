//! kernel-provider (in construction).
