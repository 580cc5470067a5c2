//! The program: its flags, setup, first output and end.

mod announce;
mod config_command;
mod config_file;
mod data_dir;
mod doctor;
mod enterprise_gateway;
mod flags;
#[cfg(test)]
mod flags_page;
mod kubernetes;
mod reload;
mod run;
mod settings;
mod sign_in;
mod tls;
#[cfg(feature = "otlp")]
mod traces;
mod user;

use std::io::Write;
use std::process::ExitCode;

use settings::Request;

/// Exit code for invalid settings.
const WRONG_SETTINGS: u8 = 2;

pub(crate) fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    let ended = match settings::read(&args) {
        Err(message) => return fail(&message, WRONG_SETTINGS),
        Ok(Request::Print(text)) => {
            // The reader may have closed the pipe.
            let _ = write!(std::io::stdout(), "{text}");
            Ok(())
        }
        Ok(Request::User(command, users_file)) => {
            user::run(command, users_file.as_deref()).and_then(|text| print(&text))
        }
        Ok(Request::Config(command, settings)) => match config_command::run(command, &settings) {
            Ok(text) => print(&text),
            Err(message) => return fail(&message, WRONG_SETTINGS),
        },
        Ok(Request::Doctor(settings)) => {
            let report = doctor::run(&settings);
            match print(&report.text) {
                Ok(()) if report.has_problem => return ExitCode::FAILURE,
                printed => printed,
            }
        }
        Ok(Request::Run(settings)) => run::run(settings, args).map_err(|error| error.to_string()),
    };
    ended.map_or_else(|message| fail(&message, 1), |()| ExitCode::SUCCESS)
}

/// Prints a text that is not shown again, so a failure is an error.
fn print(text: &str) -> Result<(), String> {
    write!(std::io::stdout(), "{text}").map_err(|error| format!("cannot print the answer: {error}"))
}

fn fail(message: &str, status: u8) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "kernelmux-gateway: {message}");
    ExitCode::from(status)
}
