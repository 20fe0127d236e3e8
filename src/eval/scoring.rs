//! An item: what is asked, what is answered, and what that is worth.

use super::config::OutputType;
use super::document::{Parts, Prepared};
use super::metrics::{self, Values};
use super::options::shifted_by;
use super::prompt::ChatSettings;
use super::request::{Pair, Tokens, grouped};
use super::value;
use crate::error::{Error, Result};
use crate::models::{Continuations, Score};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Tokens that a task generates at most, where it says nothing.
const MOST_NEW_TOKENS: usize = 256;

/// What is asked of a model about a document.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The document's number.
    pub doc_id: usize,
    parts: Parts,
    /// Each request as lm-eval writes it.
    arguments: Vec<Value>,
    /// Texts whose likelihood is asked for.
    pub items: Vec<Continuations>,
    /// For each request, its windows' places in `items`.
    places: Vec<Vec<(usize, usize)>>,
    /// A text that is to be continued.
    pub generation: Option<Generation>,
    /// Whether a prompt lost its beginning, since it is too long.
    pub is_cut: bool,
}

/// A text that is to be continued.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// The prompt's tokens.
    pub prompt: Vec<u32>,
    /// The most new tokens.
    pub most: usize,
    /// What ends it.
    pub until: Vec<String>,
}

/// What a model answered.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// For each request.
    Scores(Vec<Score>),
    /// A text.
    Text(String),
}

/// The answer to a multiple choice with one right option.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// The place of the right choice.
    pub gold: usize,
    /// The log-likelihood of each.
    pub log_likelihoods: Vec<f64>,
}

impl Chosen {
    /// The place of the likeliest choice, of several the first.
    pub fn taken(&self) -> usize {
        metrics::argmax(&self.log_likelihoods)
    }
}

/// An item's outcome under each filter.
#[derive(Debug, Clone)]
pub struct ItemResult {
    /// Values by filter, in the task's order.
    pub values: Vec<Values>,
    /// The lines of the samples file, one for each filter.
    pub lines: Vec<Map<String, Value>>,
}

/// What is asked about a document.
///
/// # Errors
/// Names the task and the document, and what is wrong with it.
pub fn requests_of(prepared: &Prepared, id: usize, chat: &ChatSettings<'_>, tokens: &Tokens<'_>) -> Result<Asked> {
    let document =
        prepared.documents.row(id).ok_or_else(|| Error::invalid("internal: a document that is not there"))?;
    let parts = prepared.checked_parts(document).map_err(|error| prepared.place(id, &error))?;
    ask(prepared, (id, document), document, parts, (chat, tokens)).map_err(|error| prepared.place(id, &error))
}

/// What is asked about a document whose options are each `by` places further on; `None` where the task has one right choice for
/// none of them, or no field of the document holds them.
///
/// # Errors
/// As [`requests_of`].
pub fn shifted_requests_of(
    prepared: &Prepared,
    asked: &Asked,
    by: usize,
    chat: &ChatSettings<'_>,
    tokens: &Tokens<'_>,
) -> Result<Option<Asked>> {
    let id = asked.doc_id;
    let (Some(own), Some((gold, count))) = (prepared.documents.row(id), asked.gold()) else { return Ok(None) };
    let moved = shifted_by(own, &asked.parts, by, |document| prepared.parts(document));
    let Some((document, mut parts)) = moved else { return Ok(None) };
    parts.target = Value::from((gold + by) % count);
    ask(prepared, (id, own), &document, parts, (chat, tokens)).map(Some).map_err(|error| prepared.place(id, &error))
}

/// `own`: the document as the task has it.
fn ask(
    prepared: &Prepared,
    (doc_id, own): (usize, &Map<String, Value>),
    document: &Map<String, Value>,
    parts: Parts,
    (chat, tokens): (&ChatSettings<'_>, &Tokens<'_>),
) -> Result<Asked> {
    let context = prepared.context((own, document), &parts, chat)?;
    let mut asked = Asked {
        doc_id,
        parts,
        arguments: Vec::new(),
        items: Vec::new(),
        places: Vec::new(),
        generation: None,
        is_cut: false,
    };
    let target = || value::text(&asked.parts.target);
    match prepared.config.output_type {
        OutputType::GenerateUntil => {
            let most = prepared.config.new_tokens().unwrap_or(MOST_NEW_TOKENS);
            let room = tokens.max_length.checked_sub(most).filter(|&room| room > 0).ok_or_else(|| {
                Error::invalid(format!("`max_gen_toks` is {most}, and a text has {} tokens at most", tokens.max_length))
            })?;
            let (prompt, is_cut) = tokens.prompt(&context, room)?;
            asked.is_cut = is_cut;
            if prompt.is_empty() {
                return Err(Error::invalid("the prompt is empty, and the tokenizer puts no BOS before it"));
            }
            let until = stops(prepared, tokens);
            asked.arguments = vec![json!({"arg_0": context, "arg_1": generation_arguments(prepared)})];
            asked.generation = Some(Generation { prompt, most, until });
        }
        OutputType::LoglikelihoodRolling => {
            let text = target();
            let windows = tokens.windows(&text)?;
            asked.arguments = vec![json!({"arg_0": text})];
            let (items, places) = grouped(windows);
            (asked.items, asked.places) = (items, vec![places]);
        }
        OutputType::Loglikelihood | OutputType::MultipleChoice => {
            let is_choice = prepared.config.output_type == OutputType::MultipleChoice;
            let delimiter = prepared.delimiter(document, chat)?;
            let texts: Vec<String> = match (&asked.parts.choices, is_choice) {
                (Some(choices), true) => choices.iter().map(|choice| format!("{delimiter}{choice}")).collect(),
                _ => vec![target()],
            };
            let mut pairs: Vec<(&str, &String)> = texts.iter().map(|text| (context.as_str(), text)).collect();
            if is_choice && prepared.metrics.iter().any(|metric| metric.metric == "acc_mutual_info") {
                pairs.extend(texts.iter().map(|text| ("", text)));
            }
            asked.arguments = pairs.iter().map(|(context, text)| json!({"arg_0": context, "arg_1": text})).collect();
            let tokenized =
                pairs.iter().map(|(context, text)| tokens.pair(context, text)).collect::<Result<Vec<_>>>()?;
            asked.is_cut = tokenized.iter().any(|pair: &Pair| pair.is_cut);
            let (items, places) = grouped(tokenized);
            (asked.items, asked.places) = (items, places.into_iter().map(|place| vec![place]).collect());
        }
    }
    Ok(asked)
}

/// The task's stop strings, or the few-shot delimiter; and EOS.
fn stops(prepared: &Prepared, tokens: &Tokens<'_>) -> Vec<String> {
    let until = prepared.config.generation_kwargs.as_ref().and_then(|kwargs| kwargs.get("until"));
    let mut stops = match until {
        Some(Value::String(stop)) => vec![stop.clone()],
        Some(Value::Array(stops)) => stops.iter().map(value::text).collect(),
        _ => vec![prepared.config.fewshot_delimiter.clone()],
    };
    if let Some((eos, _)) = tokens.encoder.eos().filter(|(eos, _)| !stops.iter().any(|stop| stop == eos)) {
        stops.push(eos.to_owned());
    }
    stops.retain(|stop| !stop.is_empty());
    stops
}

/// A task's settings as lm-eval gives them to the model.
fn generation_arguments(prepared: &Prepared) -> Value {
    let stop = json!([prepared.config.fewshot_delimiter]);
    let Some(kwargs) = &prepared.config.generation_kwargs else {
        return json!({"temperature": 0.0, "do_sample": false, "max_gen_toks": MOST_NEW_TOKENS, "until": stop});
    };
    let mut kwargs = kwargs.clone();
    kwargs.entry("until").or_insert(stop);
    if let Some(temperature) = kwargs.get("temperature").and_then(Value::as_f64) {
        kwargs.insert("temperature".to_owned(), Value::from(temperature));
    }
    Value::Object(kwargs)
}

impl Asked {
    /// Tokens that it takes to answer, of the prompt and of texts whose likelihood is asked for.
    pub fn tokens(&self) -> usize {
        let prompt = self.generation.as_ref().map_or(0, |generation| generation.prompt.len());
        prompt + self.items.iter().map(Continuations::tokens).sum::<usize>()
    }

    /// Whether the model reads the same before the choices.
    pub fn has_context_of(&self, other: &Self) -> bool {
        fn contexts(of: &Asked) -> BTreeSet<&[u32]> {
            of.items.iter().map(|item| item.context.as_slice()).collect()
        }
        contexts(self) == contexts(other)
    }

    /// A score for each request, from those of its items.
    pub fn scores(&self, of_items: &[Vec<Score>]) -> Vec<Score> {
        let of_request = |places: &Vec<(usize, usize)>| {
            let parts = places.iter().map(|&(item, at)| of_items[item][at]);
            parts.fold(Score { log_probability: 0.0, is_greedy: true }, |sum, part| Score {
                log_probability: sum.log_probability + part.log_probability,
                is_greedy: sum.is_greedy && part.is_greedy,
            })
        };
        self.places.iter().map(of_request).collect()
    }

    /// Positions of the longest text, of a generated one with its new tokens.
    pub fn positions(&self) -> usize {
        let generated = self.generation.as_ref().map_or(0, |generation| generation.prompt.len() + generation.most);
        self.items.iter().map(Continuations::positions).max().unwrap_or(0).max(generated)
    }

    /// Which choice is right, and what the model gave each; `None` for other tasks, and where several are right.
    pub fn chosen(&self, answer: &Answer) -> Option<Chosen> {
        let ((gold, count), Answer::Scores(scores)) = (self.gold()?, answer) else { return None };
        let log_likelihoods = scores.iter().take(count).map(|score| score.log_probability).collect();
        Some(Chosen { gold, log_likelihoods })
    }

    /// Its choices.
    pub fn choices(&self) -> Option<&[String]> {
        self.parts.choices.as_deref()
    }

    /// The right choice of several, and how many there are; `None` for other tasks, and where several are right.
    pub(super) fn gold(&self) -> Option<(usize, usize)> {
        let choices = self.parts.choices.as_deref()?;
        let target = match &self.parts.target {
            Value::Array(targets) if targets.len() == 1 => &targets[0],
            target => target,
        };
        let gold = match target {
            Value::Number(index) => index.as_u64()? as usize,
            Value::String(text) => choices.iter().position(|choice| choice == text)?,
            _ => return None,
        };
        Some((gold, choices.len()))
    }

    pub(super) fn target_text(&self) -> String {
        value::text(&self.parts.target)
    }

    pub(super) fn arguments(&self) -> &[Value] {
        &self.arguments
    }

    /// What it asks and what is right, as bytes.
    pub fn identity(&self) -> Vec<u8> {
        format!("{}\u{0}{}\u{0}", json!(self.arguments), json!(self.parts.target)).into_bytes()
    }

    /// How many scores answer it.
    pub fn requests(&self) -> usize {
        self.arguments.len()
    }
}

/// What an answer is worth, and how it is written down.
///
/// # Errors
/// Names the task and the document where the model gave no number.
pub fn evaluate_item(prepared: &Prepared, asked: &Asked, answer: &Answer) -> Result<ItemResult> {
    let place = |error: Error| prepared.place(asked.doc_id, &error);
    let Parts { target, choices, .. } = &asked.parts;
    let metrics = &prepared.metrics;
    if let Answer::Scores(scores) = answer
        && let Some(odd) = scores.iter().find(|score| !score.log_probability.is_finite())
    {
        let error = Error::invalid(format!("the model gives a log-likelihood of {}", odd.log_probability));
        return Err(place(
            error.with_help("its weights or its adapter are damaged, or overflow under `--compute bf16`"),
        ));
    }
    let (mut values, mut filtered) = (Vec::new(), Vec::new());
    match answer {
        Answer::Text(text) => {
            for pipeline in &prepared.filters {
                let text = pipeline.apply(text);
                values.push(metrics::of_text(metrics, (choices.as_deref(), target), &text).map_err(place)?);
                filtered.push(json!([text]));
            }
        }
        Answer::Scores(scores) => {
            let of = match (prepared.config.output_type, choices) {
                (OutputType::MultipleChoice, Some(choices)) => {
                    let (first, others) = scores.split_at(choices.len().min(scores.len()));
                    metrics::of_choices(metrics, (choices, target), first, others)
                }
                (OutputType::LoglikelihoodRolling, _) => {
                    let text = value::text(target);
                    metrics::of_rolling(metrics, &text, scores.first().map_or(0.0, |score| score.log_probability))
                }
                _ => metrics::of_loglikelihood(
                    metrics,
                    scores.first().copied().unwrap_or(Score { log_probability: 0.0, is_greedy: true }),
                ),
            };
            values.push(of);
            filtered.push(Value::Array(scores.iter().map(|score| written(prepared, score)).collect()));
        }
    }
    let lines = prepared.filters.iter().zip(&values).zip(filtered);
    let lines = lines.map(|((pipeline, values), filtered)| {
        super::files::sample_line(prepared, asked, answer, (&pipeline.name, values, filtered))
    });
    let lines = lines.collect();
    Ok(ItemResult { values, lines })
}

/// A score as lm-eval writes it.
pub(super) fn written(prepared: &Prepared, score: &Score) -> Value {
    let number = value::text(&Value::from(score.log_probability));
    if prepared.config.output_type == OutputType::LoglikelihoodRolling {
        return Value::from(number);
    }
    json!([number, if score.is_greedy { "True" } else { "False" }])
}
