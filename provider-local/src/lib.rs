//! provider-local (in construction).
