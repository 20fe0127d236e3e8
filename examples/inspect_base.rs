//! Lists the tensors of a base model: a Hugging Face folder or a GGUF file, under the same names.
//!
//! ```sh
//! cargo run --release --example inspect_base -- examples/gene_ontology/base
//! ```
//!
//! Only headers are read. Weights stay on the disk.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that speaks to people")]

use equipoise::Result;
use equipoise::weights::Base;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

fn inspect(path: &Path) -> Result<()> {
    let base = Base::open(path)?;
    println!("{}: {}, {} bytes of weights", path.display(), base.model_type(), base.stored_bytes());
    let mut types: BTreeMap<String, usize> = BTreeMap::new();
    for name in base.tensor_names() {
        let Some((shape, dtype)) = base.tensor(name) else { continue };
        println!("{name:<56} {:<8} {shape:?}", format!("{dtype:?}"));
        *types.entry(format!("{dtype:?}")).or_default() += 1;
    }
    for (dtype, count) in types {
        println!("{count} tensors of {dtype}");
    }
    println!("chat template: {}", if base.chat_template().is_some() { "yes" } else { "no" });
    Ok(())
}

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("usage: inspect_base FOLDER-OR-GGUF-FILE");
        return ExitCode::from(2);
    };
    match inspect(Path::new(&path)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}
