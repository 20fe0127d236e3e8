//! A recipe's rows as tokens, ready to be drawn from.
//!
//! It owns which rows are held out, what the data amounts to, and when tokens that an earlier run made are taken. How a
//! source becomes tokens is `tokenized`'s.

use super::cache::Cache;
use super::config::{DataConfig, SourceConfig};
use super::plan::{Arrangement, Plan};
use super::report::{DataReport, Preview};
use super::rows::{RowRef, Rows};
use super::store::{Entry, TokenStore};
use super::tokenize::Encoder;
use super::tokenized::{Source, tokenize};
use crate::error::{Error, Result};
use crate::rng::{key, name_key};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The files of a recipe's sources, in the order of the recipe: for each source its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DataFiles {
    /// Of `data.train`.
    pub train: Vec<Vec<PathBuf>>,
    /// Of `data.validation`.
    pub validation: Vec<Vec<PathBuf>>,
    /// What was left out of a folder, and why, for people.
    pub notes: Vec<String>,
}

impl DataFiles {
    /// The files that the recipe's paths mean; `hub` finds those of a source that is a dataset on the Hub.
    ///
    /// # Errors
    /// When a path means no file, and what `hub` returns.
    pub fn find(
        config: &DataConfig,
        mut hub: impl FnMut(&SourceConfig, Split) -> Result<Vec<PathBuf>>,
    ) -> Result<Self> {
        let mut notes = Vec::new();
        let mut find = |sources: &[SourceConfig], split: Split| -> Result<Vec<Vec<PathBuf>>> {
            let find = |source: &SourceConfig| match &source.path {
                Some(path) => {
                    let (files, note) = super::source::expand(path, split.names())?;
                    notes.extend(note);
                    Ok(files)
                }
                None => hub(source, split),
            };
            sources.iter().map(find).collect()
        };
        let train = find(&config.train.0, Split::Train)?;
        let validation = config.validation.as_ref().map_or(&[][..], |sources| &sources.0[..]);
        let validation = find(validation, Split::Validation)?;
        Ok(Self { train, validation, notes })
    }
}

/// What rows are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// To be learnt.
    Train,
    /// To measure on.
    Validation,
}

impl Split {
    /// The words for it in the names of files, the likeliest first.
    const fn names(self) -> &'static [&'static str] {
        match self {
            Self::Train => &["train"],
            Self::Validation => &["validation", "test"],
        }
    }
}

/// All rows of a recipe's data, as tokens.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// The rows to train on, in the order of recipe and files.
    pub train: Rows,
    /// The rows to validate on; maybe none.
    pub validation: Rows,
    /// The data in numbers.
    pub report: DataReport,
    /// The first row, to look at.
    pub preview: Preview,
    stores: Arc<Vec<TokenStore>>,
    /// The files of each store.
    files: Vec<Vec<PathBuf>>,
}

impl Dataset {
    /// Reads, checks and tokenizes the sources of a recipe, or takes the tokens that an earlier run made of the same. `seed`
    /// chooses the rows of `validation_split`; `progress` gets the bytes that are done and those of all files.
    ///
    /// # Errors
    /// Names file, line and field of the first row that is not as its format wants it, that teaches nothing, or that is too
    /// long where `overlong` is `error`; and the source that cannot be read, holds no rows, or of which no row is left.
    pub fn load(
        config: &DataConfig,
        files: &DataFiles,
        encoder: &Encoder,
        seed: u64,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let validation = config.validation.as_ref().map_or(&[][..], |sources| &sources.0[..]);
        let sources: Vec<Source<'_>> = config
            .train
            .0
            .iter()
            .zip(&files.train)
            .map(|source| (source, Split::Train))
            .chain(validation.iter().zip(&files.validation).map(|source| (source, Split::Validation)))
            .map(|((own, files), split)| Source { config, own, split, files, encoder })
            .collect();
        let bytes: u64 = sources.iter().map(Source::bytes).sum();
        let cache = Cache::new(&config.cache, bytes, encoder)?;
        let (mut stores, mut done) = (Vec::with_capacity(sources.len()), 0);
        for source in &sources {
            let mut step = |now: u64| progress((done + now).min(bytes), bytes);
            stores.push(match &cache {
                Some(cache) => cache.load_or_make(source, &mut step)?,
                None => tokenize(source, &mut step)?,
            });
            done += source.bytes();
            progress(done.min(bytes), bytes);
        }
        let trained = config.train.0.len();
        let weights: Vec<f64> = sources.iter().map(|source| source.own.weight.unwrap_or(1.0)).collect();
        let notes = files.notes.clone();
        let files: Vec<&[PathBuf]> = sources.iter().map(|source| source.files).collect();
        let mut dataset = Self::of(config, (stores, &files), (trained, &weights), encoder, seed)?;
        dataset.report.notes = notes;
        Ok(dataset)
    }

    fn of(
        config: &DataConfig,
        (stores, files): (Vec<TokenStore>, &[&[PathBuf]]),
        (trained, weights): (usize, &[f64]),
        encoder: &Encoder,
        seed: u64,
    ) -> Result<Self> {
        let stores = Arc::new(stores);
        let all = |range: Range<usize>| -> Vec<Vec<RowRef>> {
            let rows =
                |store: usize| (0..stores[store].len() as u32).map(move |row| RowRef { store: store as u32, row });
            range.map(|store| rows(store).collect()).collect()
        };
        let mut train = all(0..trained);
        let mut validation = all(trained..stores.len());
        if config.validation_split > 0.0 {
            validation = vec![hold_out(&stores, &mut train, config, seed)?];
        }
        let train = assemble(&stores, train, &weights[..trained]);
        check_weights(&train)?;
        let validation = assemble(&stores, validation, &[]);
        let report = DataReport::new(config, &stores, files, &train, &validation);
        let preview = Preview { segments: encoder.segments(&train.get(0)?)? };
        let files = files.iter().map(|files| files.to_vec()).collect();
        Ok(Self { train, validation, report, preview, stores, files })
    }

    /// The file that one of these rows is from; its line there is the entry's.
    pub fn file_of(&self, rows: &Rows, row: usize) -> Option<&Path> {
        self.files.get(rows.source(row))?.get(rows.entry(row).file as usize).map(PathBuf::as_path)
    }

    /// The orders in which a run goes through the rows. `rows_per_step`: rows (with packing, packs) of an optimizer step.
    pub fn plan(&self, config: &DataConfig, rows_per_step: usize, seed: u64) -> Plan {
        let arrangement = match (config.packing, config.group_by_length) {
            (true, _) => Arrangement::Packed { max_seq_len: config.max_seq_len() },
            (_, true) => Arrangement::Grouped { rows_per_step },
            _ => Arrangement::Shuffled,
        };
        Plan::new(&self.train, arrangement, seed)
    }

    /// The highest token of any row.
    pub fn largest_token(&self) -> u32 {
        self.stores.iter().map(|store| store.account().largest_token).max().unwrap_or(0)
    }

    /// A hash of all tokens and labels, of weights and of what is held out, as hexadecimal digits. Where the data lies does not
    /// matter.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for rows in [&self.train, &self.validation] {
            hash.update((rows.len() as u64).to_le_bytes());
            for (range, weight) in rows.sources() {
                hash.update((range.end as u64).to_le_bytes());
                hash.update(weight.to_le_bytes());
            }
            for entry in rows.entries() {
                hash.update(entry.content.to_le_bytes());
            }
        }
        format!("{:x}", hash.finalize())
    }
}

/// Refuses weights that make more of the rows than an order can hold.
fn check_weights(rows: &Rows) -> Result<()> {
    let drawn: f64 = rows.sources().iter().map(|(range, weight)| range.len() as f64 * weight).sum();
    if drawn <= f64::from(1u32 << 30) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "data.train: by its weights an epoch has {drawn:.0} rows; at most {} are taken",
        1 << 30
    ))
    .with_help("lower the weights: only how they relate to each other matters"))
}

/// Rows of several sources behind one another.
fn assemble(stores: &Arc<Vec<TokenStore>>, parts: Vec<Vec<RowRef>>, weights: &[f64]) -> Rows {
    let (mut rows, mut sources) = (Vec::new(), Vec::new());
    for (i, part) in parts.into_iter().enumerate() {
        let begin = rows.len();
        rows.extend(part);
        sources.push((begin..rows.len(), weights.get(i).copied().unwrap_or(1.0)));
    }
    Rows::new(Arc::clone(stores), rows, sources)
}

/// Takes the share of `validation_split` out of the rows of all sources, each side in its order. Rows with the same prompt
/// stay together, so that what is measured on was not trained on; a row's luck depends on the seed and on its prompt. Where
/// all rows have the same prompt, on all of its tokens.
fn hold_out(stores: &[TokenStore], train: &mut [Vec<RowRef>], config: &DataConfig, seed: u64) -> Result<Vec<RowRef>> {
    let rows: usize = train.iter().map(Vec::len).sum();
    if rows < 2 {
        let name = config.train.0.first().map(SourceConfig::name).unwrap_or_default();
        return Err(Error::file(name, "has one row, and `data.validation_split` needs at least two")
            .with_help("set `data.validation_split` to 0, or add rows"));
    }
    // 0.07 · 100 is a little above 7 in floating point, and means 7.
    let count = ((config.validation_split * rows as f64 - 1e-6).ceil() as usize).clamp(1, rows - 1);
    let label = name_key("validation_split");
    let luck = |row: &RowRef, alike: fn(&Entry) -> u64| {
        key(seed, &[label, alike(&stores[row.store as usize].index()[row.row as usize])])
    };
    let place = |row: &RowRef| key(seed, &[label, u64::from(row.store), u64::from(row.row)]);
    let prompt = |row: &RowRef| luck(row, Entry::prompt_or_content);
    let content = |row: &RowRef| luck(row, |entry| entry.content);
    for luck in [&prompt as &dyn Fn(&RowRef) -> u64, &content, &place] {
        let drawn = draw(train.iter().flatten().map(luck).collect(), count);
        if drawn.is_empty() {
            continue;
        }
        let mut held_out = Vec::with_capacity(count);
        for rows in train {
            let (out, kept): (Vec<_>, Vec<_>) =
                std::mem::take(rows).into_iter().partition(|row| drawn.contains(&luck(row)));
            *rows = kept;
            held_out.extend(out);
        }
        return Ok(held_out);
    }
    Ok(Vec::new())
}

/// The luckiest values, with all their rows: `count` rows at most, and no less than half of that, or none. Values with more
/// rows than there is room for are passed over.
fn draw(mut values: Vec<u64>, count: usize) -> HashSet<u64> {
    values.sort_unstable();
    let (mut drawn, mut rows) = (HashSet::new(), 0);
    for alike in values.chunk_by(|a, b| a == b) {
        if rows + alike.len() <= count {
            drawn.insert(alike[0]);
            rows += alike.len();
        }
        if rows == count {
            break;
        }
    }
    if 2 * rows < count { HashSet::new() } else { drawn }
}

#[cfg(test)]
#[path = "dataset_tests.rs"]
mod tests;
