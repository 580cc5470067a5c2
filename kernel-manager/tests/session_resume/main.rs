//! Clients that reconnect: repeated requests run once, executions are listed with their status, and a client that knows
//! only its session shows the same outputs as without the interruption.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod execution_list;
mod fixture;
mod follow;
mod kernel_end;
mod replay;
mod requests;
mod restore;
mod retention;
mod unrecorded;
