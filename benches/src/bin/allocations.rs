//! Counts the allocations of the protocol benchmark's cases, in a separate program because counting costs time.
//!
//! Prints a JSON array for each case: the number and bytes of the allocations of `splice`, then those of `typed`.

use std::alloc::System;
use std::hint::black_box;

use bytes::Bytes;
use kernelmux_benches::Result;
use kernelmux_benches::protocol::{CASES, frames, signer, splice, typed};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() -> Result<()> {
    let signer = signer()?;
    for case in CASES {
        let frames = frames(case, &signer);
        let (spliced, spliced_bytes) = count(&frames, |frames| splice(frames, &signer))?;
        let (parsed, parsed_bytes) = count(&frames, |frames| typed(frames, &signer))?;
        println!("[{spliced},{spliced_bytes},{parsed},{parsed_bytes}]");
    }
    Ok(())
}

fn count(frames: &[Bytes], pass: impl Fn(Vec<Bytes>) -> Result<Bytes>) -> Result<(usize, usize)> {
    // The first pass may make one-time allocations.
    black_box(pass(frames.to_vec())?);
    let incoming = frames.to_vec();
    let region = Region::new(ALLOCATOR);
    black_box(pass(incoming)?);
    let change = region.change();
    let number = change.allocations + change.reallocations;
    Ok((
        number,
        change
            .bytes_allocated
            .saturating_add_signed(change.bytes_reallocated.max(0)),
    ))
}
