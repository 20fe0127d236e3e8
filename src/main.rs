//! The binary: an exit code around [`equipoise::cli::main`].

use std::process::ExitCode;

fn main() -> ExitCode {
    let environment = equipoise::hub::settled(&|name| std::env::var(name).ok());
    // Downloads from the Hub's storage would otherwise report transfer statistics to it; its client reads only this.
    // SAFETY: no other thread runs yet.
    #[expect(unsafe_code, reason = "the environment is changed before any thread could read it")]
    unsafe {
        std::env::set_var("HF_HUB_DISABLE_TELEMETRY", "1");
        for (name, value) in environment {
            match value {
                Some(value) => std::env::set_var(name, value),
                None => std::env::remove_var(name),
            }
        }
    }
    ExitCode::from(equipoise::cli::main())
}
