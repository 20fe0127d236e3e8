//! `equipoise export`: an adapter in the forms that servers take.

use super::interrupt::Interrupt;
use super::output::{Stdout, Table, bytes, duration, printable, quoted};
use super::progress::Progress;
use super::verify;
use crate::adapter::vllm_rank;
use crate::error::Result;
use crate::export::{ExportOptions, FloatType, GgufType, Prefix, TARGETS};
use crate::nn::QuantizationType;
use crate::run::{self, ExportRequest, ExportSummary, ExportedTarget, Verified};
use clap::Args;
use clap::builder::PossibleValuesParser;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(super) struct ExportArgs {
    /// The adapter: a folder that `train` wrote, PEFT's or mlx-lm's folder, or llama.cpp's .gguf file.
    adapter: PathBuf,
    /// What to write; several with commas.
    #[arg(long, value_name = "TARGET", value_delimiter = ',', required = true, ignore_case = true,
          value_parser = PossibleValuesParser::new(TARGETS.iter().map(|target| {
              clap::builder::PossibleValue::new(target.name).help(target.about)
          })))]
    to: Vec<String>,
    /// Where to; with several targets, the folder of their folders [default: exports/ADAPTER/TARGET]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// What to merge into: `trained` (the weights as they were held in training), `original` (unquantized), `original:MODEL`,
    /// or MODEL, another place of the base than the adapter names.
    #[arg(long, value_name = "BASE")]
    base: Option<String>,
    /// The type of floating weights: f32, f16 or bf16 [default: f32 for adapters; as the base, or bf16, for `merged`]
    #[arg(long, value_name = "TYPE", value_parser = float_type)]
    dtype: Option<FloatType>,
    /// The type of a GGUF file's matrices: `q4_k`, `q8_0`, `bf16` and so on [default: `q8_0`; what the adapter leaves alone stays as it is in a GGUF base]
    #[arg(long, value_name = "TYPE", value_parser = gguf_type)]
    quantize: Option<GgufType>,
    /// The module names of `peft`: those of a text-only model (`model.layers…`) or of a multimodal one
    /// (`model.language_model.layers…`) [default: those of the base's own class]
    #[arg(long, value_name = "PREFIX", value_parser = prefix)]
    prefix: Option<Prefix>,
    /// Replace an earlier export.
    #[arg(long)]
    overwrite: bool,
    /// Do not compare what was written with base and adapter.
    #[arg(long)]
    no_verify: bool,
    /// Use only what is on this machine; fetch nothing.
    #[arg(long)]
    offline: bool,
    /// Show no progress.
    #[arg(short, long)]
    quiet: bool,
    /// Print JSON on stdout, one object a line.
    #[arg(long)]
    pub json: bool,
}

fn float_type(text: &str) -> Result<FloatType, String> {
    match text.to_ascii_lowercase().as_str() {
        "f32" | "float32" | "fp32" => Ok(FloatType::F32),
        "f16" | "float16" | "fp16" => Ok(FloatType::F16),
        "bf16" | "bfloat16" => Ok(FloatType::BF16),
        _ => Err("expected f32, f16 or bf16".into()),
    }
}

fn prefix(text: &str) -> Result<Prefix, String> {
    match text.to_ascii_lowercase().as_str() {
        "text" => Ok(Prefix::Text),
        "multimodal" => Ok(Prefix::Multimodal),
        _ => Err("expected text or multimodal".into()),
    }
}

fn gguf_type(text: &str) -> Result<GgufType, String> {
    if let Ok(float) = float_type(text) {
        return Ok(GgufType::Float(float));
    }
    let name = serde_json::Value::String(text.to_ascii_lowercase());
    match serde_json::from_value::<QuantizationType>(name) {
        Ok(kind) if kind.weight_type().is_some() && kind != QuantizationType::Auto => Ok(GgufType::Blocks(kind)),
        _ if ["_s", "_m", "_l"].iter().any(|end| text.to_ascii_lowercase().ends_with(end)) => Err(format!(
            "llama.cpp's mixes of types are not made; the nearest is {}",
            &text.to_ascii_lowercase()[..text.len() - 2]
        )),
        _ => Err("expected f32, f16, bf16, q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1, q4_0, q3_k or q2_k".into()),
    }
}

pub(super) fn run(args: &ExportArgs) -> Result<u8> {
    let mut targets: Vec<String> = Vec::new();
    for target in args.to.iter().map(|target| target.to_ascii_lowercase()) {
        if !targets.contains(&target) {
            targets.push(target);
        }
    }
    let request = ExportRequest {
        adapter: args.adapter.clone(),
        targets,
        out: args.out.clone(),
        base: args.base.clone(),
        options: ExportOptions { dtype: args.dtype, quantize: args.quantize, prefix: args.prefix },
        overwrite: args.overwrite,
        verify: !args.no_verify,
        offline: args.offline,
    };
    let mut progress = Progress::new(args.json, args.quiet).interruptible(Interrupt::listen_to_leave);
    let outcome = run::export(&request, &mut progress);
    let written = progress.finish();
    let summary = outcome?;
    written?;
    let mut stdout = Stdout::new();
    if args.json {
        stdout.json("summary", &summary);
    } else {
        stdout.text(&render(&summary));
    }
    stdout.finish()?;
    Ok(verify::exit_code(&verified(&summary), None))
}

fn render(summary: &ExportSummary) -> String {
    let mut table = Table::default();
    for export in &summary.exports {
        let manifest = &export.manifest;
        let total = manifest.files.iter().map(|file| file.bytes).sum();
        table.row(
            &manifest.target,
            format!("{} ({} in {})", export.folder.display(), bytes(total), duration(export.seconds)),
        );
        let files: Vec<String> =
            manifest.files.iter().map(|file| format!("{} ({})", printable(&file.name), bytes(file.bytes))).collect();
        table.row("", files.join("\n"));
        table.row("", types(&manifest.types));
    }
    let verified = verified(summary);
    if !verified.is_empty() {
        table.row("", " ");
        table.row("compared", verify::table(&verified));
    }
    for export in &summary.exports {
        table.row("next", next(export));
    }
    table.render()
}

fn verified(summary: &ExportSummary) -> Vec<Verified> {
    summary.exports.iter().filter_map(|export| export.verified.clone()).collect()
}

fn types(types: &[(String, usize)]) -> String {
    types.iter().map(|(name, count)| format!("{count} × {name}")).collect::<Vec<_>>().join(", ")
}

/// A command that serves the export.
fn next(export: &ExportedTarget) -> String {
    let folder = quoted(&export.folder.display().to_string());
    // A GGUF base serves llama.cpp only; the others want the folder that it was made from.
    let is_gguf = |name: &str| Path::new(name).extension().is_some_and(|extension| extension == "gguf");
    let (base, base_gguf) = match (export.manifest.base.as_str(), &export.base_id) {
        (base, Some(id)) if is_gguf(base) => (quoted(id), quoted(base)),
        (base, None) if is_gguf(base) && ["peft", "mlx"].contains(&export.manifest.target.as_str()) => {
            let adapter = quoted(&export.manifest.adapter.display().to_string());
            return format!(
                "vLLM, SGLang and mlx-lm cannot load the base, a GGUF file; for them: equipoise export {adapter} --to merged"
            );
        }
        (base, _) if is_gguf(base) => ("BASE".to_owned(), quoted(base)),
        (base, _) => (quoted(base), "BASE.gguf".to_owned()),
    };
    let file = export.manifest.files.iter().find(|file| is_gguf(&file.name));
    let file = file.map(|file| quoted(&export.folder.join(&file.name).display().to_string())).unwrap_or_default();
    match export.manifest.target.as_str() {
        "peft" => {
            let rank = vllm_rank(export.r).unwrap_or(export.r);
            let name = quoted(&export.name);
            format!("vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {name}={folder}")
        }
        "merged" => format!("vllm serve {folder}"),
        "gguf" => format!("llama-server -m {file}"),
        "gguf-adapter" => format!("llama-server -m {base_gguf} --lora {file}"),
        "mlx" => format!("mlx_lm.generate --model {base} --adapter-path {folder} --prompt PROMPT"),
        "ollama" | "ollama-adapter" => format!("cd {folder} && ollama create NAME -f Modelfile"),
        _ => folder,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_go_by_the_names_that_people_know() {
        assert_eq!(gguf_type("Q4_K").unwrap(), GgufType::Blocks(QuantizationType::Q4K));
        assert_eq!(gguf_type("bf16").unwrap(), GgufType::Float(FloatType::BF16));
        assert!(gguf_type("auto").is_err() && gguf_type("q9").is_err());
        assert!(gguf_type("Q4_K_M").unwrap_err().ends_with("the nearest is q4_k"));
    }
}
