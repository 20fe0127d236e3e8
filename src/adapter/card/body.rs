//! The card's sections for people: what it is, results, training, limits.

use super::{CardFacts, CardKind, CardRows, CardSample, hub_id};
use std::fmt::Write as _;
use std::path::Path;

/// The most characters of a sample's text.
const SHOWN: usize = 600;

/// What it is, in a sentence or two.
pub(super) fn description(facts: &CardFacts<'_>) -> String {
    // Of a path only the last part is told: the folders above it are nobody's business.
    let base = match hub_id(facts.base_model) {
        Some(id) => format!("[`{id}`](https://huggingface.co/{id})"),
        None => match Path::new(facts.base_model).file_name().and_then(|name| name.to_str()) {
            Some(name) => format!("`{name}`"),
            None => String::new(),
        },
    };
    let of = |word: &str| if base.is_empty() { String::new() } else { format!(" {word} {base}") };
    let mut text = match facts.kind {
        CardKind::Adapter => format!("A LoRA adapter{}", of("for")),
        CardKind::Merged => format!("A model{}, with a LoRA adapter merged into its weights", of("made of")),
        CardKind::Gguf => format!("A model{} in GGUF", of("made of")),
    };
    let _ = write!(text, ", trained with Equipoise {}", env!("CARGO_PKG_VERSION"));
    let _ = match facts.objective {
        Some("bft") => {
            write!(text, " under Balanced Fine-Tuning (BFT, [arXiv 2511.21075](https://arxiv.org/abs/2511.21075))")
        }
        Some("dft") => {
            write!(text, " under Dynamic Fine-Tuning (DFT, [arXiv 2508.05629](https://arxiv.org/abs/2508.05629))")
        }
        Some("sft") => write!(text, " by supervised fine-tuning"),
        Some(other) => write!(text, " under the objective `{other}`"),
        None => Ok(()),
    };
    text.push('.');
    if let Some(rows) = facts.rows.as_ref().filter(|rows| !rows.sources.is_empty()) {
        let _ = write!(text, " It learnt from {} of {}.", counted(rows.train, "row"), sources(rows));
    }
    text
}

fn sources(rows: &CardRows) -> String {
    let link = |source: &String| match hub_id(source) {
        Some(id) => format!("[`{id}`](https://huggingface.co/datasets/{id})"),
        None => format!("`{source}`"),
    };
    rows.sources.iter().map(link).collect::<Vec<_>>().join(", ")
}

/// Both numbers, what they come to, and one row.
pub(super) fn results(facts: &CardFacts<'_>) -> String {
    let mut text = String::new();
    if let Some(validation) = &facts.validation {
        let on = facts.rows.as_ref().filter(|rows| rows.validation > 0);
        let on = on.map(|rows| format!("On {} that it was not trained on:\n\n", counted(rows.validation, "row")));
        let began_with = Some(facts.began_with).filter(|words| !words.is_empty()).unwrap_or("the base alone");
        let _ = write!(
            text,
            "\n## Results\n\n{}| | {began_with} | with the adapter |\n| --- | --- | --- |\n\
             | cross-entropy (nats per token, lower is better) | {:.4} | {:.4} |\n",
            on.unwrap_or_default(),
            validation.cross_entropy.0,
            validation.cross_entropy.1,
        );
        for (name, (before, after)) in [
            ("next-token accuracy", validation.token_accuracy),
            ("mean probability of the next token", validation.token_probability),
        ] {
            let _ = writeln!(text, "| {name} | {:.1}% | {:.1}% |", before * 100.0, after * 100.0);
        }
        if let Some(objective) = facts.objective.filter(|objective| *objective != "sft") {
            let (before, after) = validation.objective_loss;
            let _ = writeln!(text, "| {objective} loss | {before:.4} | {after:.4} |");
        }
        if let Some(verdict) = &facts.verdict {
            let _ = write!(text, "\n{verdict}\n");
        }
        if matches!(facts.objective, Some("bft" | "dft")) {
            text += "\nThe objective weights each token by the model's own probability, so cross-entropy is not what was minimised; \
                     it is comparable between objectives.\n";
        }
    }
    text += &measured(facts);
    if let Some(CardSample { prompt, reference, before, after }) = facts.sample {
        text += "\n## Sample\n\nOne row, not chosen for its answer. Texts may be cut.\n";
        for (label, part) in [
            ("Prompt", prompt),
            ("The data's answer", reference),
            ("The base alone", before),
            ("With the adapter", after),
        ] {
            let _ = write!(text, "\n{label}:\n\n{}", fenced("text", &shortened(part)));
        }
    }
    text
}

/// Tasks, and what was forgotten.
fn measured(facts: &CardFacts<'_>) -> String {
    let mut text = String::new();
    if facts.validation.is_none() && !(facts.tasks.is_empty() && facts.general_text.is_none()) {
        text += "\n## Results\n";
    }
    if !facts.tasks.is_empty() {
        text += "\nTasks, as lm-evaluation-harness has them (± standard error):\n\n\
                 | | items | the base alone | with the adapter |\n| --- | --- | --- | --- |\n";
        for task in &facts.tasks {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} |",
                task.name.replace('|', "\\|"),
                task.items,
                task.base,
                task.adapter
            );
        }
    }
    if let Some((base, adapter)) = facts.general_text {
        let _ = write!(
            text,
            "\nPerplexity of a short general text: {base:.2} under the base alone, {adapter:.2} with the adapter ({:+.1}%). A rise is a \
             sign of forgetting.\n",
            100.0 * (adapter / base - 1.0)
        );
    }
    text
}

fn shortened(text: &str) -> String {
    let text = text.trim();
    if text.is_empty() {
        return "(nothing)".into();
    }
    let steers = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    let cut: String = text.chars().take(SHOWN).map(|c| if steers(c) { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(SHOWN).is_some() { cut + " …" } else { cut }
}

/// Data and training, a line for each fact.
pub(super) fn training(facts: &CardFacts<'_>) -> String {
    let mut lines: Vec<(&str, String)> = Vec::new();
    if let Some(rows) = &facts.rows {
        if !rows.sources.is_empty() {
            lines.push(("data", sources(rows)));
        }
        lines.push(("rows", format!("{} to train on, {} to validate on", rows.train, rows.validation)));
        let left: Vec<String> = rows.left_out.iter().map(|(count, why)| format!("{count} {why}")).collect();
        if !left.is_empty() {
            lines.push(("rows left out", left.join(", ")));
        }
    }
    lines.extend(facts.training.iter().cloned());
    if lines.is_empty() {
        return String::new();
    }
    let mut out = String::from("\n## Training\n\n| | |\n| --- | --- |\n");
    for (label, text) in lines {
        let _ = writeln!(out, "| {label} | {} |", text.replace('|', "\\|"));
    }
    out
}

/// What it is for, and what not.
pub(super) fn limits(facts: &CardFacts<'_>) -> String {
    let what = if facts.kind == CardKind::Adapter { "adapter" } else { "model" };
    let licence = match facts.license {
        Some(license) => format!("The {what} is licensed as `{license}`; the base's licence and the data's hold too."),
        None => format!("No licence is stated for this {what}; the base's licence and the data's hold in any case."),
    };
    let measured = if facts.validation.is_some() || !facts.tasks.is_empty() {
        "The numbers above are all that was measured"
    } else {
        "It was not evaluated"
    };
    format!(
        "\n## Intended use and limits\n\nIt is meant for prompts of the kind that it was trained on. {measured}: its answers can be wrong, \
         made up, or biased as base and data are, and must be checked by someone who knows the subject. It is not a medical device: do \
         not use it to diagnose or treat, or for any decision about a person.\n\n{licence}\n"
    )
}

/// A block of code that its contents cannot leave.
pub(super) fn fenced(language: &str, text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}{language}\n{}\n{fence}\n", text.trim_end())
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
