//! The program: its flags, setup, first output and end.

mod announce;
mod data_dir;
mod flags;
#[cfg(test)]
mod flags_page;
mod kubernetes;
mod run;
mod sign_in;
mod user;

use std::io::Write;
use std::process::ExitCode;

use flags::{Flags, Parsed};

/// Exit code for invalid flags.
const WRONG_FLAGS: u8 = 2;

pub(crate) fn main() -> ExitCode {
    let flags = match Flags::parse(std::env::args_os()) {
        Ok(Parsed::Flags(flags)) => flags,
        Ok(Parsed::Answer(text)) => {
            // The reader may have closed the pipe.
            let _ = write!(std::io::stdout(), "{text}");
            return ExitCode::SUCCESS;
        }
        Ok(Parsed::User(command, users_file)) => {
            let text = user::run(command, users_file.as_deref());
            // The token is shown only once, so a failure to print it is an error.
            let printed = text.and_then(|text| {
                write!(std::io::stdout(), "{text}").map_err(|error| format!("cannot print the answer: {error}"))
            });
            return printed.map_or_else(|message| fail(&message, 1), |()| ExitCode::SUCCESS);
        }
        Err(message) => return fail(&message, WRONG_FLAGS),
    };
    match run::run(*flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string(), 1),
    }
}

fn fail(message: &str, status: u8) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "kernelmux-gateway: {message}");
    ExitCode::from(status)
}
