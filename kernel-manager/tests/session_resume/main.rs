//! What clients find after a reconnect: repeated requests ran once, executions are listed with their status, and a
//! client that only knows its session shows what it would have shown without the interruption.
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
