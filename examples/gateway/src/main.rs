//! `kernelmux-gateway`: the gateway over this machine's kernels.

mod command;

fn main() -> std::process::ExitCode {
    command::main()
}
