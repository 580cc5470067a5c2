//! The manager with real Python kernels: their lifecycle, and the messages that clients receive.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod clients;
mod comms;
mod culling;
mod fixture;
mod ipykernel;
mod lifecycle;
mod restarts;
mod restore;
mod start_requests;
