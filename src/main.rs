//! The binary: an exit code around [`equipoise::cli::main`].

use std::process::ExitCode;

fn main() -> ExitCode {
    // Downloads from the Hub's storage would otherwise report transfer statistics to it; its client reads only this.
    // SAFETY: no other thread runs yet.
    #[expect(unsafe_code, reason = "the environment is changed before any thread could read it")]
    unsafe {
        std::env::set_var("HF_HUB_DISABLE_TELEMETRY", "1");
    }
    ExitCode::from(equipoise::cli::main())
}
