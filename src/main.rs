//! The binary: an exit code around [`equipoise::cli::main`].

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(equipoise::cli::main())
}
