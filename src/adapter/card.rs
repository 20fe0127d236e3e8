//! The model card: the adapter folder's `README.md`.

/// What a card tells.
#[derive(Debug, Clone)]
pub struct CardFacts<'a> {
    /// The adapter's name.
    pub name: &'a str,
    /// The base as the recipe names it.
    pub base_model: &'a str,
    /// `sft`, `dft` or `bft`.
    pub objective: &'a str,
    /// The step whose adapter this is, and the steps of the run.
    pub steps: (usize, usize),
    /// Validation loss before and after, in nats per token.
    pub validation: Option<(f64, f64)>,
    /// The resolved recipe.
    pub recipe: &'a str,
}

/// The card's text: front matter as the Hub reads it, then what was trained and how to use it. A base that is no Hub id is
/// not named in the front matter, where only ids may stand.
pub fn model_card(facts: &CardFacts<'_>) -> String {
    let is_hub_id = facts.base_model.split('/').count() == 2 && !std::path::Path::new(facts.base_model).exists();
    let id = facts.base_model.split('@').next().unwrap_or_default();
    let (base, tag) = if is_hub_id {
        (format!("base_model: {id}\n"), format!("- base_model:adapter:{id}\n"))
    } else {
        (String::new(), String::new())
    };
    let validation = facts.validation.map_or_else(String::new, |(before, after)| {
        format!("\nValidation loss (mean cross-entropy, nats per token): {before:.4} before, {after:.4} after.\n")
    });
    let (step, steps) = facts.steps;
    format!(
        "---\n{base}library_name: peft\npipeline_tag: text-generation\ntags:\n- lora\n{tag}- equipoise\n---\n\n\
         # {name}\n\n\
         A LoRA adapter for `{model}`, trained by Equipoise under the objective `{objective}`; \
         step {step} of {steps}.\n{validation}\n\
         ## Use\n\n\
         ```sh\nequipoise generate . \"your prompt\"\n```\n\n\
         It is in PEFT's format: `PeftModel.from_pretrained(base, folder)` loads it too.\n\n\
         ## Recipe\n\n```yaml\n{recipe}```\n",
        name = facts.name,
        model = facts.base_model,
        objective = facts.objective,
        recipe = facts.recipe,
    )
}
