//! What an evaluation is asked for.

use super::bench::Bench;
use super::tasks::WantedTasks;
use crate::device::DeviceConfig;
use crate::error::Result;
use crate::eval::ChatSettings;
use crate::nn::QuantizationType;
use crate::ops::ComputeConfig;
use std::path::PathBuf;

/// What is evaluated, and how.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
pub struct EvalRequest {
    /// An adapter, a model's folder, a GGUF file, or a Hub id.
    pub model: String,
    /// Another base than the adapter names.
    pub base: Option<String>,
    /// Names of tasks, groups and tags, or YAML files.
    pub tasks: Vec<String>,
    /// Folders and files with more tasks.
    pub include: Vec<PathBuf>,
    /// In place of a task's own number of few-shot examples.
    pub num_fewshot: Option<usize>,
    /// The first so many documents of each task alone; below 1, that share of them.
    pub limit: Option<f64>,
    /// Where the files go.
    pub output: Option<PathBuf>,
    /// Go on with the last unfinished evaluation there.
    pub resume: bool,
    /// Prompts go through the chat template.
    pub apply_chat_template: bool,
    /// Under a chat template, whether few-shot examples are turns of their own.
    pub fewshot_as_multiturn: bool,
    /// Before the description, or the system's turn.
    pub system_instruction: Option<String>,
    /// How the frozen weights are held, where that is not how an adapter was trained or a base is stored.
    pub quantization: Option<QuantizationType>,
    /// The type of products.
    pub compute: ComputeConfig,
    /// The device.
    pub device: DeviceConfig,
    /// Tokens of a forward pass, about.
    pub batch_tokens: usize,
    /// The most tokens of a prompt with its answer; by default the positions that the model was made for.
    pub max_length: Option<usize>,
    /// Ask each multiple choice again with its options in all cyclic orders.
    pub option_shifts: bool,
    /// A list of items (JSON Lines with `task` and `doc_id`): the scores on the others are reported too.
    pub without: Option<PathBuf>,
    /// Decides the draws of bootstrapped standard errors.
    pub seed: u64,
    /// Fetch nothing.
    pub offline: bool,
}

impl EvalRequest {
    /// The seed where none is given: lm-eval's.
    pub const SEED: u64 = 1234;

    /// How its prompts are put together.
    pub(super) fn chat<'a>(&'a self, bench: &'a Bench) -> Result<ChatSettings<'a>> {
        let template = self.apply_chat_template.then(|| bench.template()).transpose()?;
        Ok(ChatSettings {
            system_instruction: self.system_instruction.as_deref(),
            template: template.map(|(compiled, _)| compiled),
            multiturn: self.fewshot_as_multiturn,
        })
    }

    /// Its tasks, and how much of them.
    pub(in crate::run) fn wanted(&self) -> WantedTasks<'_> {
        WantedTasks {
            names: &self.tasks,
            include: &self.include,
            num_fewshot: self.num_fewshot,
            limit: self.limit,
            offline: self.offline,
        }
    }
}
