//! From examples to tokens and labels, and back to text.
//!
//! It owns which tokens are learnt. It reads no file; how rows are read and gathered is `dataset`'s.

mod apart;

pub use apart::Scaffold;

use super::config::TrainOnTurns;
use super::example::{Example, Message, Role};
use super::forms;
use super::quiet::quietly;
use super::stream::TextStream;
use super::template::ChatTemplate;
use super::turns::Rendering;
use super::words::{Tokens, WordTokenizer, encoded, failed, panicked};
use crate::error::{Error, Result};
use serde_json::Map;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::ops::Range;
use tokenizers::{ModelWrapper, PostProcessorWrapper, Tokenizer};

/// The label of tokens that are not learnt.
pub const IGNORED: i64 = -100;

/// One row as tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// The tokens.
    pub input_ids: Vec<u32>,
    /// For each token itself where it is learnt, else [`IGNORED`]. Not shifted, as Hugging Face has it.
    pub labels: Vec<i64>,
    /// What the row's loss is multiplied by, beside what the objective makes of it; mostly 1.
    pub weight: f32,
}

impl Sequence {
    /// Tokens and labels, with the weight 1.
    pub const fn new(input_ids: Vec<u32>, labels: Vec<i64>) -> Self {
        Self { input_ids, labels, weight: 1.0 }
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.input_ids.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.input_ids.is_empty()
    }

    /// How many tokens are learnt. The first one of a row is predicted by nothing, hence never counted.
    pub fn supervised(&self) -> usize {
        self.labels.iter().skip(1).filter(|&&label| label != IGNORED).count()
    }

    /// Leaves out what is behind the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.input_ids.truncate(len);
        self.labels.truncate(len);
    }

    fn push(&mut self, ids: &[u32], supervised: bool) {
        self.input_ids.extend_from_slice(ids);
        self.labels.extend(ids.iter().map(|&id| if supervised { i64::from(id) } else { IGNORED }));
    }

    fn supervise(&mut self, range: Range<usize>) {
        for i in range {
            self.labels[i] = i64::from(self.input_ids[i]);
        }
    }
}

/// What a user should know of a row that was encoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notes {
    /// It has tools, and the chat template says nothing of them.
    pub tools_left_out: bool,
    /// What the generation prompt ends with that the last answer does not begin with, such as `<think>\n`.
    pub asked_otherwise: Option<String>,
    /// The last answer has thoughts, and the chat template leaves them out.
    pub thoughts_left_out: bool,
}

/// A tokenizer with the base model's chat template and special tokens.
#[derive(Debug)]
pub struct Encoder {
    tokenizer: WordTokenizer,
    template: Option<ChatTemplate>,
    /// The template for conversations with tools, where the base has one of its own for them (`tool_use`).
    tool_template: Option<ChatTemplate>,
    /// The names of the base's chat templates besides the default one.
    named_templates: Vec<String>,
    eos: Option<(String, u32)>,
    bos: Option<(String, u32)>,
    add_bos: bool,
    special: HashSet<u32>,
    /// Ids that may end a turn: EOS, and the special tokens but the unknown one.
    ends: HashSet<u32>,
    /// Whether the tokenizer puts a space before any text (`SentencePiece`'s dummy prefix).
    prepends_space: bool,
    turns: TrainOnTurns,
}

impl Encoder {
    /// An encoder. `eos` and `bos` are text and id; `add_bos` puts BOS before plain text (chat templates write it themselves).
    ///
    /// The tokenizer's own truncation, padding and post-processing are taken off: special tokens come from the template or
    /// from here, and offsets must be those of the text.
    ///
    /// # Errors
    /// When a special token's id is not the one that the tokenizer gives to its text, or `add_bos` is set without `bos`.
    pub fn new(
        mut tokenizer: Tokenizer,
        template: Option<ChatTemplate>,
        eos: Option<(String, u32)>,
        bos: Option<(String, u32)>,
        add_bos: bool,
    ) -> Result<Self> {
        tokenizer.with_truncation(None).map_err(|error| failed(&*error))?;
        tokenizer.with_padding(None).with_post_processor(None::<PostProcessorWrapper>);
        for (name, token) in [("EOS", &eos), ("BOS", &bos)] {
            let Some((text, id)) = token else { continue };
            let found = tokenizer.token_to_id(text);
            if found != Some(*id) {
                let found = found.map_or("none".to_string(), |id| id.to_string());
                let message =
                    format!("the {name} token `{text}` should have the id {id}, but in the tokenizer it has {found}");
                return Err(Error::invalid(message).with_help(
                    "tokenizer.json and the model's other files contradict each other; fetch the base again",
                ));
            }
        }
        if add_bos && bos.is_none() {
            return Err(Error::invalid("the tokenizer asks for a BOS token before the text, but names none"));
        }
        let added = tokenizer.get_added_tokens_decoder();
        let special: HashSet<u32> = added.into_iter().filter(|(_, token)| token.special).map(|(id, _)| id).collect();
        let mut ends = special.clone();
        if let ModelWrapper::BPE(model) = tokenizer.get_model()
            && let Some(unknown) = model.unk_token.as_deref().and_then(|token| tokenizer.token_to_id(token))
        {
            ends.remove(&unknown);
        }
        ends.extend(eos.as_ref().map(|(_, id)| *id));
        let probe = encoded(&tokenizer, "x")?;
        let prepends_space = probe.get_tokens().first().is_some_and(|token| token.starts_with(['▁', 'Ġ', ' ']));
        let turns = TrainOnTurns::All;
        let tokenizer = WordTokenizer::new(tokenizer);
        let (tool_template, named_templates) = (None, Vec::new());
        Ok(Self {
            tokenizer,
            template,
            tool_template,
            named_templates,
            eos,
            bos,
            add_bos,
            special,
            ends,
            prepends_space,
            turns,
        })
    }

    /// The same encoder, which knows the names of the base's chat templates, for the error where none is the default.
    #[must_use]
    pub fn with_named_templates(mut self, names: Vec<String>) -> Self {
        self.named_templates = names;
        self
    }

    /// The same encoder, with a template of its own for conversations with tools.
    #[must_use]
    pub fn with_tool_template(mut self, template: Option<ChatTemplate>) -> Self {
        self.tool_template = template;
        self
    }

    /// The same encoder, which learns these of the assistant's turns, where a turn does not say.
    #[must_use]
    pub fn with_turns(mut self, turns: TrainOnTurns) -> Self {
        self.turns = turns;
        self
    }

    /// Those of `marks` that are not a single token here. A base has never seen them, and each costs several tokens.
    pub fn split_marks<'m>(&self, marks: &[&'m str]) -> Vec<&'m str> {
        let splits = |mark: &&str| !self.tokenize(mark).is_ok_and(|tokens| tokens.ids.len() == 1);
        marks.iter().copied().filter(splits).collect()
    }

    /// The tokenizer, without its post-processing.
    pub const fn tokenizer(&self) -> &Tokenizer {
        self.tokenizer.inner()
    }

    /// A number above all tokens.
    pub fn vocabulary(&self) -> usize {
        self.tokenizer.highest_token() as usize + 1
    }

    /// A hash of all that decides which tokens an example has and which of them are learnt.
    ///
    /// # Errors
    /// When the tokenizer cannot be written out.
    pub fn identity(&self) -> Result<String> {
        let tokenizer = self.tokenizer().to_string(false).map_err(|error| failed(&*error))?;
        let identity =
            |template: &Option<ChatTemplate>| template.as_ref().map(|template| template.identity().to_owned());
        let templates = (identity(&self.template), identity(&self.tool_template));
        let others = format!("{:?}", (&templates, &self.eos, &self.bos, self.add_bos, self.turns));
        let hash = Sha256::new().chain_update(tokenizer).chain_update([0]).chain_update(others).finalize();
        Ok(format!("{hash:x}"))
    }

    /// The chat template, if the base has one; conversations with tools may have another.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// EOS: text and id.
    pub fn eos(&self) -> Option<(&str, u32)> {
        self.eos.as_ref().map(|(text, id)| (text.as_str(), *id))
    }

    /// Tokens and labels of an example.
    ///
    /// A conversation is rendered and tokenized whole, as transformers does. A token is learnt if it starts inside one of the
    /// assistant's turns that are learnt, up to and with the token that ends the turn; where the template writes none after
    /// the last answer, EOS is added. Where the template marks the answers by `{% generation %}` blocks, all that starts in
    /// them is learnt, and a token right behind that ends the turn.
    ///
    /// Prompt and completion are tokenized apart, so that the border is exact and the prompt has the tokens that it has
    /// when the model is asked; EOS follows. A tokenizer that puts a space before any text gives the completion its
    /// leading space in that way; where the completion begins with none, the two are tokenized together, and a token across
    /// the border is learnt.
    ///
    /// # Errors
    /// When the base has no chat template and the example is a conversation, or when the template does not fit it.
    pub fn encode(&self, example: &Example) -> Result<Sequence> {
        let too_long = |least| Error::invalid(format!("internal: {least} tokens are too many"));
        self.encode_within(example, usize::MAX)?.map(|(sequence, _)| sequence).map_err(too_long)
    }

    /// As [`Encoder::encode`]; but a text of so many bytes that it must have more than `most` tokens is not tokenized, which
    /// might take much time and memory. The answer is then the fewest tokens that it can have.
    ///
    /// # Errors
    /// As [`Encoder::encode`].
    pub fn encode_within(&self, example: &Example, most: usize) -> Result<Result<(Sequence, Notes), usize>> {
        match example {
            Example::Chat { messages, tools, template_kwargs } => {
                self.encode_chat(messages, tools, template_kwargs, most)
            }
            Example::Completion { prompt, completion } => match self.least_tokens(prompt.len() + completion.len()) {
                least if least > most => Ok(Err(least)),
                _ => self.encode_completion(prompt, completion).map(|sequence| Ok((sequence, Notes::default()))),
            },
        }
    }

    /// The fewest tokens that a text of so many bytes can have; 0 where that cannot be told.
    fn least_tokens(&self, bytes: usize) -> usize {
        self.tokenizer.longest_token().map_or(0, |longest| bytes / longest)
    }

    fn encode_chat(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
        template_kwargs: &Map<String, serde_json::Value>,
        most: usize,
    ) -> Result<Result<(Sequence, Notes), usize>> {
        let (template, eos) = (self.template_for(tools)?, self.eos().map(|(text, _)| text));
        let rendering = Rendering::new(template, messages, tools, template_kwargs, eos, &self.learnt(messages))?;
        let least = self.least_tokens(rendering.text.len());
        if least > most {
            return Ok(Err(least));
        }
        let tokens = self.tokenize(&rendering.text)?;
        let (ids, starts) = (&tokens.ids, &tokens.offsets);
        let mut sequence = Sequence::new(Vec::new(), Vec::new());
        sequence.push(ids, false);
        let mut last_is_closed = false;
        for turn in &rendering.turns {
            let from = starts.partition_point(|offsets| offsets.0 < turn.start);
            let to = starts.partition_point(|offsets| offsets.0 < turn.end).max(from);
            let mut end = self.closing_token(&rendering.text, &tokens, from..to);
            let mut learnt = from..end.map_or(to, |end| end + 1);
            if rendering.marked {
                // All that is marked is learnt; an end that the marks leave out stands right behind.
                end = end.or_else(|| ids.get(to).filter(|id| self.ends.contains(id)).map(|_| to));
                learnt.end = end.map_or(to, |end| to.max(end + 1));
            }
            last_is_closed = end.is_some();
            sequence.supervise(learnt);
        }
        let open_end = rendering.turns.last().is_some_and(|turn| rendering.text[turn.end..].trim().is_empty());
        if let (true, true, false, Some((_, eos))) = (rendering.ends_with_answer, open_end, last_is_closed, &self.eos) {
            sequence.push(&[*eos], true);
        }
        let tools_left_out = !tools.is_empty()
            && rendering.without_tools(template, template_kwargs).is_none_or(|text| text == rendering.text);
        let notes = Notes {
            tools_left_out,
            asked_otherwise: rendering.asked_otherwise,
            thoughts_left_out: rendering.thoughts_left_out,
        };
        Ok(Ok((sequence, notes)))
    }

    /// For each message whether it is learnt.
    fn learnt(&self, messages: &[Message]) -> Vec<bool> {
        let last = messages.iter().rposition(|message| message.role == Role::Assistant);
        let learnt = |(i, message): (usize, &Message)| {
            message.role == Role::Assistant
                && message.train.unwrap_or(self.turns == TrainOnTurns::All || last == Some(i))
        };
        messages.iter().enumerate().map(learnt).collect()
    }

    /// The token that ends a turn: special, with nothing but white space behind it.
    fn closing_token(&self, text: &str, tokens: &Tokens, turn: Range<usize>) -> Option<usize> {
        for i in turn.rev() {
            if self.ends.contains(&tokens.ids[i]) {
                return Some(i);
            }
            let (start, end) = tokens.offsets[i];
            if !text.get(start..end).is_some_and(|token| token.trim().is_empty()) {
                return None;
            }
        }
        None
    }

    fn encode_completion(&self, prompt: &str, completion: &str) -> Result<Sequence> {
        let mut sequence = Sequence::new(Vec::new(), Vec::new());
        sequence.push(self.leading_bos(), false);
        let apart = if self.prepends_space { without_one_space(completion) } else { Some(completion) };
        if let Some(completion) = apart {
            sequence.push(&self.tokenize(prompt)?.ids, false);
            sequence.push(&self.tokenize(completion)?.ids, true);
        } else {
            let tokens = self.tokenize(&format!("{prompt}{completion}"))?;
            for (&id, offsets) in tokens.ids.iter().zip(&tokens.offsets) {
                sequence.push(&[id], offsets.1 > prompt.len());
            }
        }
        if let Some((_, eos)) = &self.eos {
            sequence.push(&[*eos], true);
        }
        Ok(sequence)
    }

    /// Whether every run of learnt tokens ends with a token that ends a turn, so that the model learns to stop.
    pub fn ends_supervised(&self, sequence: &Sequence) -> bool {
        let supervised = |i: usize| sequence.labels.get(i).is_some_and(|&label| label != IGNORED);
        (0..sequence.len()).all(|i| !supervised(i) || supervised(i + 1) || self.ends.contains(&sequence.input_ids[i]))
    }

    /// The tokens of a conversation up to where the assistant's next answer begins.
    ///
    /// # Errors
    /// When the base has no chat template, or the template refuses the conversation.
    pub fn encode_prompt(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let template = self.need_template()?;
        let text = template.render(&forms::for_prompt(template, messages), &[], true)?;
        Ok(self.tokenize(&text)?.ids)
    }

    /// The tokens of plain text, after BOS where the base asks for it.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.leading_bos().to_vec();
        ids.extend_from_slice(&self.tokenize(text)?.ids);
        Ok(ids)
    }

    /// The tokens of plain text as it is, without BOS.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn encode_bare(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenize(text)?.ids)
    }

    /// BOS, text and id, whether or not it is put before plain text.
    pub fn bos(&self) -> Option<(&str, u32)> {
        self.bos.as_ref().map(|(text, id)| (text.as_str(), *id))
    }

    /// The ids at which generation stops: EOS, and what the chat template ends an answer with.
    pub fn stop_ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.eos().map(|(_, id)| id).into_iter().collect();
        let probe = [Message::user("x"), Message::assistant("x")];
        if let Some(Ok(sequence)) = self.template().map(|_| self.encode(&Example::chat(probe.to_vec()))) {
            let last = sequence.labels.iter().rposition(|&label| label != IGNORED).map(|i| sequence.input_ids[i]);
            ids.extend(last.filter(|id| self.ends.contains(id) && !ids.contains(id)));
        }
        ids
    }

    /// Text of tokens, with or without the special ones.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        // The tokenizer's own skipping misses special tokens that its normalizer changes.
        let kept: Vec<u32> =
            ids.iter().copied().filter(|id| !(skip_special_tokens && self.special.contains(id))).collect();
        let text = quietly(|| self.tokenizer().decode(&kept, false)).ok_or_else(panicked)?;
        text.map_err(|error| failed(&*error))
    }

    /// Text of tokens that come one by one.
    pub fn stream(&self, skip_special_tokens: bool) -> TextStream<'_> {
        TextStream::new(self, skip_special_tokens)
    }

    /// A row as text with its special tokens, cut where learnt and other tokens meet: `(text, supervised)`.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn segments(&self, sequence: &Sequence) -> Result<Vec<(String, bool)>> {
        let (mut segments, mut done) = (Vec::new(), String::new());
        for end in 1..=sequence.len() {
            let supervised = sequence.labels[end - 1] != IGNORED;
            if end < sequence.len() && supervised == (sequence.labels[end] != IGNORED) {
                continue;
            }
            let text = self.decode(&sequence.input_ids[..end], false)?;
            // A decoder may see the end of its text differently once more follows; then the change goes to the new segment.
            let same = text.bytes().zip(done.bytes()).take_while(|(a, b)| a == b).count();
            let same = text.floor_char_boundary(same);
            segments.push((text[same..].to_string(), supervised));
            done = text;
        }
        Ok(segments)
    }

    fn leading_bos(&self) -> &[u32] {
        match &self.bos {
            Some((_, id)) if self.add_bos => std::slice::from_ref(id),
            _ => &[],
        }
    }

    /// The template of conversations with these tools.
    pub(super) fn template_for(&self, tools: &[serde_json::Value]) -> Result<&ChatTemplate> {
        match &self.tool_template {
            Some(template) if !tools.is_empty() => Ok(template),
            _ => self.need_template(),
        }
    }

    fn need_template(&self) -> Result<&ChatTemplate> {
        self.template.as_ref().ok_or_else(|| {
            if let [first, ..] = &self.named_templates[..] {
                let names: Vec<_> = self.named_templates.iter().map(|name| format!("`{name}`")).collect();
                let message =
                    format!("the base has named chat templates ({}), and none is the default", names.join(", "));
                return Error::invalid(message)
                    .with_help(format!("name the one that is meant, `data.chat_template: {first}`"));
            }
            Error::invalid("the base has no chat template, and rows of this format are conversations").with_help(
                "name one, `data.chat_template: chatml`, take an instruction-tuned base, or give rows of `prompt` and \
                     `completion` (format `completion`)",
            )
        })
    }

    fn tokenize(&self, text: &str) -> Result<Tokens> {
        self.tokenizer.encode(text)
    }
}

/// The text without its leading space, if it has just one.
fn without_one_space(text: &str) -> Option<&str> {
    text.strip_prefix(' ').filter(|rest| !rest.starts_with(' '))
}

#[cfg(test)]
#[path = "tokenize_tests.rs"]
mod tests;
