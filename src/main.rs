//! `recovery`: hand the command line over, and exit with what came of it.

use std::process::ExitCode;

fn main() -> ExitCode {
    recovery::cli::run()
}
