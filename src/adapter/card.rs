//! The model card: a folder's `README.md`, with front matter as the Hub reads it. It owns the card's text; that a card goes
//! to the Hub, and what is checked before, is the `hub` room's.

mod body;

use super::serving::{serving, usage};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;

/// What stands in a card for the repository, until an upload puts its name there.
pub const CARD_REPO: &str = "OWNER/REPO";
/// What stands in its commands for a base that is no Hub id, until an upload is told one.
pub const CARD_BASE: &str = "OWNER/BASE";

/// What a folder holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CardKind {
    /// A PEFT adapter.
    #[default]
    Adapter,
    /// A whole model in safetensors.
    Merged,
    /// GGUF files.
    Gguf,
}

/// A validation before and after training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CardValidation {
    /// Mean cross-entropy before and after, in nats per token.
    pub cross_entropy: (f64, f64),
    /// The share of tokens that the model ranks first, before and after.
    pub token_accuracy: (f64, f64),
    /// Mean probability of the tokens, before and after.
    pub token_probability: (f64, f64),
    /// The objective's own loss, before and after.
    pub objective_loss: (f64, f64),
}

/// What was trained on, and what was left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CardRows {
    /// Where the rows are from: a dataset's id, or a file's name.
    pub sources: Vec<String>,
    /// Rows to train on.
    pub train: usize,
    /// Rows to validate on.
    pub validation: usize,
    /// Rows that were left out, each kind with its reason.
    pub left_out: Vec<(usize, String)>,
}

/// What the model writes for one prompt of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CardSample<'a> {
    /// The prompt.
    pub prompt: &'a str,
    /// What the data answers.
    pub reference: &'a str,
    /// The base's answer.
    pub before: &'a str,
    /// The adapter's answer.
    pub after: &'a str,
}

/// A metric of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardTask {
    /// Its name, with an arrow to where it is better.
    pub name: String,
    /// Items.
    pub items: usize,
    /// The base alone, with its standard error.
    pub base: String,
    /// With the adapter.
    pub adapter: String,
}

/// What a card tells. Whatever is not known is left out of it.
#[derive(Debug, Clone, Default)]
pub struct CardFacts<'a> {
    /// What the folder holds.
    pub kind: CardKind,
    /// The adapter's name.
    pub name: &'a str,
    /// The repository on the Hub, where it is known.
    pub repo: Option<&'a str>,
    /// The base as the recipe names it; empty where nothing is known.
    pub base_model: &'a str,
    /// Whether the base is a multimodal model, of which the text decoder is trained.
    pub multimodal: bool,
    /// The adapter's rank.
    pub r: Option<usize>,
    /// `sft`, `dft` or `bft`.
    pub objective: Option<&'a str>,
    /// The data in numbers.
    pub rows: Option<CardRows>,
    /// How it was trained: steps, tokens, device, time, each with its label.
    pub training: Vec<(&'a str, String)>,
    /// The validation rows, measured.
    pub validation: Option<CardValidation>,
    /// What was measured before training, in words; empty for the base alone.
    pub began_with: &'a str,
    /// What the numbers come to, in a sentence.
    pub verdict: Option<String>,
    /// Metrics of tasks.
    pub tasks: Vec<CardTask>,
    /// The perplexity of a general text, under the base and with the adapter.
    pub general_text: Option<(f64, f64)>,
    /// Whether prompts are plain text, which no chat template makes.
    pub raw: bool,
    /// One row of the data.
    pub sample: Option<CardSample<'a>>,
    /// The Hub's dataset from which the validation rows are, where they are from one.
    pub validation_dataset: Option<&'a str>,
    /// The Hub's datasets that were trained on.
    pub datasets: &'a [String],
    /// The Hub's name of the licence.
    pub license: Option<&'a str>,
    /// ISO 639 code of the language.
    pub language: Option<&'a str>,
    /// The recipe.
    pub recipe: Option<&'a str>,
}

/// The Hub's metadata, in the order in which the Hub's own cards have it.
#[derive(Serialize)]
struct FrontMatter<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    base_model: Option<&'a str>,
    library_name: &'a str,
    pipeline_tag: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    license: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    language: Option<&'a str>,
    tags: Vec<String>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    datasets: &'a [String],
    #[serde(rename = "model-index", skip_serializing_if = "Vec::is_empty")]
    model_index: Vec<serde_json::Value>,
}

/// The Hub id that a base's name is, without its revision; `None` for a path, which nobody else could load.
pub fn hub_id(base_model: &str) -> Option<&str> {
    let id = base_model.split('@').next().unwrap_or_default();
    let (owner, name) = id.split_once('/')?;
    let fits = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let is_file = Path::new(name).extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    (fits(owner) && fits(name) && !is_file && !Path::new(base_model).exists()).then_some(id)
}

/// The tag by which the Hub lists a model under its base.
pub fn base_model_tag(kind: CardKind, id: &str) -> String {
    let relation = match kind {
        CardKind::Adapter => "adapter",
        CardKind::Merged => "finetune",
        CardKind::Gguf => "quantized",
    };
    format!("base_model:{relation}:{id}")
}

/// The card's text: front matter as the Hub reads it, then what it is, how to use it, and how it was made. A base that is no Hub
/// id is not named in the front matter, where only ids may stand.
pub fn model_card(facts: &CardFacts<'_>) -> String {
    let mut text = String::from("---\n");
    text += &front_matter(facts);
    let _ = write!(text, "---\n\n# {}\n\n{}\n", facts.name, body::description(facts));
    text += &usage(facts);
    text += &body::results(facts);
    text += &body::training(facts);
    text += &body::limits(facts);
    text += &serving(facts.kind, facts.repo.unwrap_or(CARD_REPO), hub_id(facts.base_model), facts.r, facts.name);
    if let Some(recipe) = facts.recipe {
        let _ = write!(text, "\n## Recipe\n\n{}", body::fenced("yaml", recipe));
    }
    text
}

fn front_matter(facts: &CardFacts<'_>) -> String {
    let id = hub_id(facts.base_model);
    let mut tags: Vec<String> = match facts.kind {
        CardKind::Adapter => vec!["lora".into()],
        CardKind::Merged => vec![],
        CardKind::Gguf => vec!["gguf".into()],
    };
    tags.push("equipoise".into());
    tags.extend(facts.objective.map(String::from));
    tags.extend(id.map(|id| base_model_tag(facts.kind, id)));
    let matter = FrontMatter {
        base_model: id,
        library_name: match facts.kind {
            CardKind::Adapter => "peft",
            CardKind::Merged => "transformers",
            CardKind::Gguf => "gguf",
        },
        pipeline_tag: "text-generation",
        license: facts.license,
        language: facts.language,
        tags,
        datasets: facts.datasets,
        model_index: model_index(facts).into_iter().collect(),
    };
    serde_yaml::to_string(&matter).unwrap_or_default()
}

/// The Hub's form for results. It wants a dataset's id, so rows of one's own have only the table in the text.
fn model_index(facts: &CardFacts<'_>) -> Option<serde_json::Value> {
    let (validation, dataset) = facts.validation.zip(facts.validation_dataset)?;
    let metric = |kind: &str, name: &str, value: f64| serde_json::json!({"type": kind, "name": name, "value": value});
    let rounded = |value: f64| (value * 1e4).round() / 1e4;
    Some(serde_json::json!({
        "name": facts.name,
        "results": [{
            "task": {"type": "text-generation", "name": "Text Generation"},
            "dataset": {"type": dataset, "name": dataset},
            "metrics": [
                metric("loss", "Validation cross-entropy (nats per token)", rounded(validation.cross_entropy.1)),
                metric("accuracy", "Next-token accuracy", rounded(validation.token_accuracy.1)),
            ],
        }],
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_yaml::Value;

    fn facts() -> CardFacts<'static> {
        CardFacts {
            kind: CardKind::Adapter,
            name: "quickstart",
            repo: None,
            base_model: "org/base@v1",
            r: Some(16),
            objective: Some("bft"),
            training: vec![("steps", "150 of 200".into())],
            validation: Some(CardValidation {
                cross_entropy: (2.5, 1.234_56),
                token_accuracy: (0.3, 0.5),
                token_probability: (0.2, 0.4),
                objective_loss: (0.15, 0.1),
            }),
            recipe: Some("base:\n  model: org/base@v1\n"),
            ..CardFacts::default()
        }
    }

    fn matter(card: &str) -> Value {
        serde_yaml::from_str(card.strip_prefix("---\n").unwrap().split("\n---\n").next().unwrap()).unwrap()
    }

    #[test]
    fn the_front_matter_is_what_the_hub_reads() {
        let datasets = ["org/rows".to_owned()];
        let card = model_card(&CardFacts {
            datasets: &datasets,
            validation_dataset: Some("org/rows"),
            license: Some("apache-2.0"),
            language: Some("no"),
            ..facts()
        });
        let matter = matter(&card);
        let get = |key: &str| matter.get(key).unwrap();
        assert_eq!(get("base_model"), "org/base");
        assert_eq!(get("library_name"), "peft");
        assert_eq!(get("pipeline_tag"), "text-generation");
        assert_eq!(get("license"), "apache-2.0");
        assert_eq!(get("language"), "no", "Norwegian is quoted, else it would be `false`");
        let tags: Vec<_> = get("tags").as_sequence().unwrap().iter().map(|tag| tag.as_str().unwrap()).collect();
        assert_eq!(tags, ["lora", "equipoise", "bft", "base_model:adapter:org/base"]);
        assert_eq!(get("datasets")[0], "org/rows");
        let result = &get("model-index")[0]["results"][0];
        assert_eq!(get("model-index")[0]["name"], "quickstart");
        assert_eq!(result["task"]["type"], "text-generation");
        assert_eq!(result["dataset"]["type"], "org/rows");
        assert_eq!(
            (&result["metrics"][0]["type"], result["metrics"][0]["value"].as_f64()),
            (&"loss".into(), Some(1.2346))
        );
    }

    #[test]
    fn what_is_not_known_is_not_told() {
        let bare = CardFacts { validation: None, recipe: None, objective: None, training: vec![], ..facts() };
        for base_model in ["/home/anna/models/llama", "./llama", "base.gguf", "org/base.gguf", "~/llama", ""] {
            let card = model_card(&CardFacts { base_model, ..bare.clone() });
            let matter = matter(&card);
            assert!(matter.get("base_model").is_none() && matter.get("license").is_none(), "{card}");
            assert!(matter.get("model-index").is_none() && !card.contains("base_model:"), "{card}");
            assert!(!card.contains("/home/") && card.contains("vllm serve OWNER/BASE"), "{card}");
        }
        let local = model_card(&facts());
        assert!(matter(&local).get("model-index").is_none(), "the Hub's form wants a dataset of the Hub");
        assert!(local.contains("| cross-entropy (nats per token, lower is better) | 2.5000 | 1.2346 |"), "{local}");
    }

    #[test]
    fn a_recipe_cannot_leave_its_block_and_a_name_cannot_break_the_yaml() {
        let recipe = "data:\n  template: |\n    ```\n    # Not a title\n    ````\n";
        let card = model_card(&CardFacts { recipe: Some(recipe), license: Some("a: b\n---"), ..facts() });
        assert!(card.contains("\n`````yaml\ndata:") && card.ends_with("\n`````\n"), "{card}");
        assert_eq!(matter(&card.replace("a: b\n---", "")).get("library_name").unwrap(), "peft");
    }

    #[test]
    fn each_server_has_its_command() {
        let card = model_card(&CardFacts { repo: Some("me/mine"), r: Some(12), ..facts() });
        for command in [
            "vllm serve org/base --enable-lora --max-lora-rank 16 --lora-modules quickstart=me/mine",
            "python -m sglang.launch_server --model-path org/base --lora-paths quickstart=me/mine",
            "text-generation-launcher --model-id org/base --lora-adapters quickstart=me/mine",
            "mistralrs serve -m org/base --lora quickstart=me/mine",
            "llama-server -m base.gguf --lora quickstart-gguf-adapter/quickstart-lora.gguf",
            "equipoise export quickstart --to ollama --out quickstart-ollama",
            "mlx_lm.server --model org/base --adapter-path",
            "PeftModel.from_pretrained(base, \"me/mine\")",
            "--to gguf-adapter",
        ] {
            assert!(card.contains(command), "{command}\n{card}");
        }
        assert!(model_card(&facts()).contains("quickstart=OWNER/REPO"));
        for (multimodal, class) in [(false, "AutoModelForCausalLM"), (true, "AutoModelForImageTextToText")] {
            let card = model_card(&CardFacts { multimodal, ..facts() });
            assert!(card.contains(&format!("import {class}, AutoTokenizer")), "{card}");
            assert!(card.contains(&format!("{class}.from_pretrained(\"org/base\"")), "{card}");
        }
        let gguf = model_card(&CardFacts { kind: CardKind::Gguf, repo: Some("me/mine"), ..facts() });
        assert!(gguf.contains("llama-server -hf me/mine") && gguf.contains("library_name: gguf"), "{gguf}");
        let merged = model_card(&CardFacts { kind: CardKind::Merged, repo: Some("me/mine"), ..facts() });
        assert!(merged.contains("vllm serve me/mine") && merged.contains("base_model:finetune:org/base"), "{merged}");
    }
}
