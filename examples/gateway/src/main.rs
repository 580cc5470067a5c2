//! `kernelmux-gateway`: serves the kernels of this machine or of a cluster.

mod command;

fn main() -> std::process::ExitCode {
    command::main()
}
