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
    return_large_memory();
    ExitCode::from(equipoise::cli::main())
}

/// Lets large pieces of memory go back to the system as soon as they are freed. By itself glibc begins to keep them, each thread
/// for itself: a run then takes up to a fifth more than it holds, and how much is chance.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn return_large_memory() {
    // The threshold that glibc begins with; once it is set, it stays.
    // SAFETY: it takes two numbers, and no other thread runs yet.
    #[expect(unsafe_code, reason = "only glibc can be asked for it")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
const fn return_large_memory() {}
