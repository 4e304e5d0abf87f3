//! `recovery`: passes the command line on, and exits with the result.

use std::process::ExitCode;

fn main() -> ExitCode {
    // A panic is a failure like any other: Rust's own exit code 101 is not a documented one.
    std::panic::catch_unwind(recovery::cli::run).unwrap_or(ExitCode::FAILURE)
}
