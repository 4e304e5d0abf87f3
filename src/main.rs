//! `recovery`: hand the command line over, and exit with what came of it.

use std::process::ExitCode;

fn main() -> ExitCode {
    // A panic is a failure to look at, as any other: Rust's own 101 is in nobody's table of exit codes.
    std::panic::catch_unwind(recovery::cli::run).unwrap_or(ExitCode::FAILURE)
}
