//! The program: its flags, what it sets up, what it says at its start, and how it ends.

mod announce;
mod data_dir;
mod flags;
mod kubernetes;
mod run;

use std::io::Write;
use std::process::ExitCode;

use flags::{Flags, Parsed};

/// What the shell is told where a flag is wrong.
const WRONG_FLAGS: u8 = 2;

pub(crate) fn main() -> ExitCode {
    let flags = match Flags::parse(std::env::args_os()) {
        Ok(Parsed::Flags(flags)) => flags,
        Ok(Parsed::Answer(text)) => {
            // Whoever closed the pipe does not want to read it.
            let _ = write!(std::io::stdout(), "{text}");
            return ExitCode::SUCCESS;
        }
        Err(message) => return complain(&message, WRONG_FLAGS),
    };
    match run::run(*flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error.to_string(), 1),
    }
}

fn complain(message: &str, status: u8) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "kernelmux-gateway: {message}");
    ExitCode::from(status)
}
