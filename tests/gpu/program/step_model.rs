//! A model of a step's time, from the bytes and operations of each piece of work: what a measurement is held against. It runs a
//! step on a GPU that computes nothing, and adds up.

use crate::bench::{self, Arguments, with_trial};
use crate::support::null_gpu::NullGpu;
use crate::support::watch::{Kind, Line};
use crate::{Opened, Sort, print};
use equipoise::error::Result;
use std::fmt::Write as _;

/// A GPU's peaks: dense `bf16` products with `f32` sums, and its memory.
struct Card {
    name: &'static str,
    flop_per_second: f64,
    bytes_per_second: f64,
    /// Shares of the peak of products that attention reaches, forward and backward.
    attention: [f64; 2],
}

const CARDS: [Card; 4] = [
    Card { name: "H100 SXM", flop_per_second: 798e12, bytes_per_second: 3.0e12, attention: [0.31, 0.21] },
    Card { name: "RTX 5090", flop_per_second: 209.5e12, bytes_per_second: 1.792e12, attention: [0.6, 0.5] },
    Card { name: "RTX 4090", flop_per_second: 165.2e12, bytes_per_second: 1.008e12, attention: [0.6, 0.5] },
    Card { name: "RTX 3090", flop_per_second: 71e12, bytes_per_second: 0.936e12, attention: [0.6, 0.5] },
];

/// Shares of the peaks that large products, products with few columns, and kernels that move rows are assumed to reach.
const PRODUCTS: f64 = 0.85;
const ADAPTER_PRODUCTS: f64 = 0.6;
const ROWS: f64 = 0.85;
/// Seconds between two pieces of work.
const GAP: f64 = 1e-6;

impl Card {
    /// Seconds that the work takes at the peaks; with `expected`, at the shares that are assumed.
    fn seconds(&self, line: &Line, expected: bool) -> f64 {
        let shares = match line.part {
            "attention" => [self.attention[0], ROWS],
            "attention backward" => [self.attention[1], ROWS],
            "adapter products" => [PRODUCTS, ADAPTER_PRODUCTS],
            _ if line.kind == Kind::Product => [PRODUCTS, ROWS],
            _ => [1.0, ROWS],
        };
        let [flop, bytes] = if expected { shares } else { [1.0; 2] };
        let flop = line.work.flop as f64 / (flop * self.flop_per_second);
        let bytes = line.work.bytes as f64 / (bytes * self.bytes_per_second);
        flop.max(bytes) + if expected { GAP * line.count as f64 } else { 0.0 }
    }
}

/// Prints the model as Markdown.
pub fn run(arguments: &Arguments) -> Result<()> {
    let opened = Opened::new(Box::<NullGpu>::default(), Sort::Null, None, false);
    let (lines, kept, flops) = with_trial(&opened, arguments, |trial| {
        let (lines, _) = trial.profiled(&opened, 1)?;
        let flops = arguments.flops_per_token(&trial.engine.lm.dimensions, trial.sizes);
        Ok((lines, trial.engine.kept_layers, flops * arguments.tokens() as f64))
    })?;
    // Copies to and from the CPU are not part of it: they go another way.
    let lines: Vec<Line> =
        lines.into_iter().filter(|line| !line.name.ends_with("the GPU") || line.name.starts_with("within")).collect();
    print(&document(arguments, kept, flops, lines))
}

fn document(arguments: &Arguments, kept: usize, needed: f64, mut lines: Vec<Line>) -> String {
    lines.sort_by(|a, b| CARDS[0].seconds(b, true).total_cmp(&CARDS[0].seconds(a, true)));
    let Arguments { rows, length, r, .. } = arguments;
    let (shape, type_name) = (bench::name(arguments.shape), serde_json::to_value(arguments.quantization));
    let type_name = type_name.ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default();
    let mut text = format!(
        "## {shape}, {rows}x{length} tokens, {type_name}, r={r} on all linear layers, {kept} layers kept\n\n\
         {:.1} TFLOP are needed; {:.1} are done, in {} pieces of work.\n\n",
        needed / 1e12,
        lines.iter().map(|line| line.work.flop).sum::<u64>() as f64 / 1e12,
        lines.iter().map(|line| line.count).sum::<usize>()
    );
    let cards: Vec<String> = CARDS.iter().map(|card| format!("{} ms", card.name)).collect();
    table_head(&mut text, &["part", "pieces", "GB", "TFLOP"], &cards);
    let mut parts: Vec<&str> = Vec::new();
    for line in &lines {
        if !parts.contains(&line.part) {
            parts.push(line.part);
        }
    }
    let mut total = vec![[0f64; 2]; CARDS.len()];
    for part in parts {
        let of: Vec<&Line> = lines.iter().filter(|line| line.part == part).collect();
        let (bytes, flop) = of.iter().fold((0, 0), |(b, f), line| (b + line.work.bytes, f + line.work.flop));
        let count: usize = of.iter().map(|line| line.count).sum();
        let _ = write!(text, "| {part} | {count} | {:.2} | {:.2} |", bytes as f64 / 1e9, flop as f64 / 1e12);
        for (card, total) in CARDS.iter().zip(&mut total) {
            let [bound, expected] = [false, true].map(|how| of.iter().map(|line| card.seconds(line, how)).sum::<f64>());
            total[0] += bound;
            total[1] += expected;
            let _ = write!(text, " {:.1} / {:.1} |", bound * 1e3, expected * 1e3);
        }
        text.push('\n');
    }
    text.push_str("| **step** | | | |");
    for [bound, expected] in &total {
        let _ = write!(text, " **{:.0} / {:.0}** |", bound * 1e3, expected * 1e3);
    }
    text.push_str("\n| tokens/s | | | |");
    for [bound, expected] in &total {
        let tokens = arguments.tokens() as f64;
        let _ = write!(text, " {:.0} / {:.0} |", tokens / bound, tokens / expected);
    }
    text.push_str("\n| share of the peak | | | |");
    for (card, [bound, expected]) in CARDS.iter().zip(&total) {
        let share = |seconds: f64| 100.0 * needed / seconds / card.flop_per_second;
        let _ = write!(text, " {:.0}% / {:.0}% |", share(*bound), share(*expected));
    }
    text.push_str("\n\nThe pieces that take longest:\n\n");
    table_head(&mut text, &["piece", "count", "GB", "TFLOP"], &[format!("{} ms", CARDS[0].name)]);
    for line in lines.iter().take(30) {
        let (gb, tflop) = (line.work.bytes as f64 / 1e9, line.work.flop as f64 / 1e12);
        let [bound, expected] = [false, true].map(|how| CARDS[0].seconds(line, how) * 1e3);
        let _ =
            writeln!(text, "| {} | {} | {gb:.2} | {tflop:.2} | {bound:.2} / {expected:.2} |", line.name, line.count);
    }
    text
}

fn table_head(text: &mut String, first: &[&str], rest: &[String]) {
    let names = first.iter().map(|name| (*name).to_owned()).chain(rest.iter().cloned());
    let _ = writeln!(text, "| {} |", names.collect::<Vec<_>>().join(" | "));
    let _ = writeln!(text, "| --- |{}", " ---: |".repeat(first.len() + rest.len() - 1));
}
