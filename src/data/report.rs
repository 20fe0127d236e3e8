//! What a data set holds, in numbers and in one row to look at.

use super::config::{DataConfig, SourceConfig};
use super::plan::Plan;
use super::rows::{RowRef, Rows};
use super::store::{Account, Entry, TokenStore};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// How many rows are named where a kind of fault has many.
const EXAMPLES: usize = 5;
/// Bars of the histogram, about.
const BINS: u32 = 12;

/// The data in numbers.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct DataReport {
    /// Where the rows come from.
    pub sources: Vec<SourceReport>,
    /// Rows read, of all sources.
    pub rows: usize,
    /// Rows to train on.
    pub train_rows: usize,
    /// Rows that an epoch takes, by the sources' weights.
    pub epoch_rows: usize,
    /// Rows to validate on.
    pub validation_rows: usize,
    /// Tokens of the rows to train on.
    pub tokens: usize,
    /// Of these, the tokens that are learnt.
    pub supervised_tokens: usize,
    /// Rows left out because they are too long.
    pub dropped: usize,
    /// Rows cut because they are too long.
    pub truncated: usize,
    /// Rows left out because they could not be read, under `on_bad_row: skip`.
    pub skipped: usize,
    /// The first few of those, each with its reason.
    pub skipped_examples: Vec<String>,
    /// Rows left out because there is nothing in them to learn: an empty answer, or none that is to be learnt.
    pub unlearnt: usize,
    /// The first few of those, each with its reason.
    pub unlearnt_examples: Vec<String>,
    /// Answers in conversations that are empty, and so not learnt, beside others that are.
    pub empty_answers: usize,
    /// Fields of turns that neither this program nor the chat template reads, each with how many rows have it.
    pub unread: BTreeMap<String, usize>,
    /// Which files of a folder were taken, where that is not all of them.
    pub notes: Vec<String>,
    /// Tokens a row before any was dropped or cut.
    pub lengths: Lengths,
    /// How many rows have how many tokens, before any was dropped or cut.
    pub histogram: Vec<Bin>,
    /// Rows with an answer after which no learnt token ends the turn: what the model learns from them does not stop. Cut
    /// rows are judged as they were before the cut.
    pub eos_unsupervised_rows: usize,
    /// Rows that are conversations, through the chat template; the others are plain text.
    pub conversations: usize,
    /// Rows with tools that the chat template leaves out.
    pub tools_left_out: usize,
    /// Rows whose last answer does not begin with what the chat template's generation prompt ends with.
    pub asked_otherwise: usize,
    /// What that is, such as `<think>\n`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked_with: Option<String>,
    /// Rows with thoughts in the last answer that the chat template leaves out.
    pub thoughts_left_out: usize,
    /// Rows to train on that are the same, token by token, as one before them.
    pub duplicates: usize,
    /// Some of them.
    pub duplicate_examples: Vec<String>,
    /// Rows to validate on that are also trained on, token by token.
    pub leaks: usize,
    /// Some of them.
    pub leak_examples: Vec<String>,
    /// Rows to validate on whose prompt is also one of the rows to train on, with another answer.
    pub shared_prompts: usize,
    /// The weights of the rows to train on, where they are not all 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row_weights: Option<RowWeights>,
    /// What packing makes of the rows, where it is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packing: Option<PackingReport>,
}

/// One source in numbers.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct SourceReport {
    /// What the recipe calls it.
    pub name: String,
    /// `train` or `validation`.
    pub split: &'static str,
    /// Its files.
    pub files: usize,
    /// What kind of files they are.
    pub kind: String,
    /// Its rows' format and why it was taken.
    pub format: String,
    /// Rows read.
    pub rows: usize,
    /// Rows that are kept.
    pub kept: usize,
    /// How often they come in an epoch.
    pub weight: f64,
    /// The file that holds its tokens, if one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
}

/// What the losses of rows are multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RowWeights {
    /// The least.
    pub min: f64,
    /// Their mean.
    pub mean: f64,
    /// The largest.
    pub max: f64,
}

/// How long rows are, in tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Lengths {
    /// The shortest.
    pub min: usize,
    /// Half of the rows are no longer than this.
    pub p50: usize,
    /// Nine of ten rows are no longer than this.
    pub p90: usize,
    /// The longest.
    pub max: usize,
}

/// A bar of the histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bin {
    /// The fewest tokens.
    pub from: u32,
    /// The most tokens.
    pub to: u32,
    /// Rows with so many.
    pub rows: usize,
}

/// What packing makes of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PackingReport {
    /// Packs of an epoch.
    pub packs: usize,
    /// Rows a pack, on average.
    pub rows_per_pack: f64,
    /// The share of `max_seq_len` that a pack fills, on average.
    pub fill: f64,
}

impl DataReport {
    /// The numbers of these rows. `files` has those of each store.
    pub(super) fn new(
        config: &DataConfig,
        stores: &[TokenStore],
        files: &[&[PathBuf]],
        train: &Rows,
        validation: &Rows,
    ) -> Self {
        let validated = config.validation.as_ref().map_or(&[][..], |sources| &sources.0[..]);
        let named = config.train.0.iter().map(|source| (source, "train"));
        let named: Vec<_> = named.chain(validated.iter().map(|source| (source, "validation"))).collect();
        let mut report = Self {
            train_rows: train.len(),
            validation_rows: validation.len(),
            tokens: train.entries().map(|entry| entry.tokens as usize).sum(),
            supervised_tokens: train.entries().map(|entry| entry.supervised as usize).sum(),
            row_weights: RowWeights::of(train),
            ..Self::default()
        };
        let mut lengths = BTreeMap::<u32, usize>::new();
        for ((store, files), (source, split)) in stores.iter().zip(files).zip(named) {
            let account = store.account();
            report.add(account, files);
            for &(length, rows) in &account.lengths {
                *lengths.entry(length).or_default() += rows as usize;
            }
            report.sources.push(source_report(store, files, source, split));
        }
        report.lengths = Lengths::of(&lengths);
        report.histogram = histogram(&lengths);
        let place = |row: RowRef| {
            let entry = &stores[row.store as usize].index()[row.row as usize];
            let file = files[row.store as usize].get(entry.file as usize);
            format!("{}:{}", file.map(|path| path.display().to_string()).unwrap_or_default(), entry.line)
        };
        report.compare(train, validation, &place);
        report
    }

    /// Adds what was counted while a source was read.
    fn add(&mut self, account: &Account, files: &[PathBuf]) {
        self.rows += account.rows;
        self.dropped += account.dropped;
        self.truncated += account.truncated;
        self.skipped += account.skipped;
        self.eos_unsupervised_rows += account.eos_unsupervised;
        self.conversations += account.conversations;
        self.tools_left_out += account.tools_left_out;
        self.asked_otherwise += account.asked_otherwise;
        self.asked_with = self.asked_with.take().or_else(|| account.asked_with.clone());
        self.thoughts_left_out += account.thoughts_left_out;
        self.unlearnt += account.unlearnt;
        self.empty_answers += account.empty_answers;
        for (field, rows) in &account.unread {
            *self.unread.entry(field.clone()).or_default() += rows;
        }
        let named = |(file, what): &(u32, String)| {
            let file = files.get(*file as usize).map(|path| path.display().to_string());
            format!("{}{what}", file.unwrap_or_default())
        };
        for (all, own) in [
            (&mut self.skipped_examples, &account.skipped_examples),
            (&mut self.unlearnt_examples, &account.unlearnt_examples),
        ] {
            let room = EXAMPLES.saturating_sub(all.len());
            all.extend(own.iter().take(room).map(named));
        }
    }

    /// Finds rows that are there twice.
    fn compare(&mut self, train: &Rows, validation: &Rows, place: &dyn Fn(RowRef) -> String) {
        let sorted = |hash: &dyn Fn(&Entry) -> u64| {
            let mut sorted: Vec<(u64, u32)> = train.entries().zip(0..).map(|(entry, row)| (hash(entry), row)).collect();
            sorted.sort_unstable();
            sorted
        };
        let contents = sorted(&|entry| entry.content);
        let name = |rows: &Rows, row: usize| place(rows.refs()[row]);
        for pair in contents.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            self.duplicates += 1;
            if self.duplicate_examples.len() < EXAMPLES {
                let (first, again) = (name(train, pair[0].1 as usize), name(train, pair[1].1 as usize));
                self.duplicate_examples.push(format!("{again} is {first} again"));
            }
        }
        if validation.is_empty() {
            return;
        }
        let prompts = sorted(&|entry| entry.prompt);
        let find = |sorted: &[(u64, u32)], hash: u64| {
            let at = sorted.partition_point(|(other, _)| *other < hash);
            sorted.get(at).filter(|(other, _)| *other == hash).map(|&(_, row)| row as usize)
        };
        for (row, entry) in validation.entries().enumerate() {
            if let Some(twin) = find(&contents, entry.content) {
                self.leaks += 1;
                if self.leak_examples.len() < EXAMPLES {
                    self.leak_examples.push(format!("{} is {}", name(validation, row), name(train, twin)));
                }
            } else if entry.supervised + 1 < entry.tokens && find(&prompts, entry.prompt).is_some() {
                // Where all is learnt there is no prompt to share.
                self.shared_prompts += 1;
            }
        }
    }

    /// What a user should know of the turns of conversations, and of the files that were taken.
    pub fn turn_warnings(&self) -> Vec<String> {
        let mut warnings = self.notes.clone();
        match self.empty_answers {
            0 => {}
            1 => warnings.push("not learnt, since it says nothing: 1 answer of a conversation".to_owned()),
            n => warnings.push(format!("not learnt, since they say nothing: {n} answers of conversations")),
        }
        if !self.unread.is_empty() {
            let rows = |rows: usize| if rows == 1 { "1 row".to_owned() } else { format!("{rows} rows") };
            let fields: Vec<_> = self.unread.iter().map(|(field, n)| format!("`{field}` ({})", rows(*n))).collect();
            let more = if fields.len() > EXAMPLES { " and others" } else { "" };
            warnings.push(format!(
                "fields of turns that neither Equipoise nor the chat template reads: {}{more}",
                fields[..fields.len().min(EXAMPLES)].join(", ")
            ));
        }
        warnings
    }

    /// Adds what the plan makes of the rows; `max_seq_len` where it packs them.
    pub fn add_plan(&mut self, plan: &Plan, max_seq_len: Option<usize>) {
        let (rows, tokens) = plan.rows_and_tokens();
        self.epoch_rows = rows;
        let Some(max_seq_len) = max_seq_len else { return };
        let packs = plan.packs_per_epoch().max(1);
        self.packing = Some(PackingReport {
            packs,
            rows_per_pack: rows as f64 / packs as f64,
            fill: tokens as f64 / (packs as f64 * max_seq_len as f64),
        });
    }
}

fn source_report(store: &TokenStore, files: &[PathBuf], source: &SourceConfig, split: &'static str) -> SourceReport {
    let account = store.account();
    SourceReport {
        name: source.name().to_owned(),
        split,
        files: files.len(),
        kind: account.kind.clone(),
        format: account.format.clone(),
        rows: account.rows,
        kept: store.len(),
        weight: source.weight.unwrap_or(1.0),
        cache: store.path().map(ToOwned::to_owned),
    }
}

impl RowWeights {
    fn of(rows: &Rows) -> Option<Self> {
        let weights = || rows.entries().map(|entry| f64::from(entry.weight));
        weights().any(|weight| weight != 1.0).then(|| Self {
            min: weights().fold(f64::INFINITY, f64::min),
            mean: weights().sum::<f64>() / rows.len() as f64,
            max: weights().fold(0.0, f64::max),
        })
    }
}

impl Lengths {
    /// The quantiles (nearest rank) of lengths, each with how often it occurs; all 0 where there is none.
    fn of(counts: &BTreeMap<u32, usize>) -> Self {
        let rows: usize = counts.values().sum();
        let rank = |share: f64| {
            let mut left = ((share * rows as f64).ceil() as usize).max(1);
            let mut found = 0;
            for (&length, &count) in counts {
                found = length as usize;
                if count >= left {
                    break;
                }
                left -= count;
            }
            found
        };
        Self { min: rank(0.0), p50: rank(0.5), p90: rank(0.9), max: rank(1.0) }
    }
}

/// Bars of equal, round width over all lengths.
fn histogram(counts: &BTreeMap<u32, usize>) -> Vec<Bin> {
    let Some((&longest, _)) = counts.last_key_value() else { return Vec::new() };
    // 1, 2 or 5 times a power of ten.
    let wanted = longest.div_ceil(BINS).max(1);
    let power = 10u32.pow(wanted.ilog10());
    let width = [1, 2, 5, 10].into_iter().map(|k| power.saturating_mul(k)).find(|&w| w >= wanted).unwrap_or(wanted);
    let mut bins = Vec::new();
    let mut from = counts.keys().next().map_or(0, |shortest| shortest / width * width);
    while from <= longest {
        let to = from.saturating_add(width - 1);
        bins.push(Bin { from, to, rows: counts.range(from..=to).map(|(_, rows)| rows).sum() });
        let Some(next) = from.checked_add(width) else { break };
        from = next;
    }
    bins
}

/// The first row to train on, as the model gets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Preview {
    /// Text with its special tokens, and whether it is learnt. Joined, it is the whole row.
    pub segments: Vec<(String, bool)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(lengths: impl IntoIterator<Item = u32>) -> BTreeMap<u32, usize> {
        let mut counts = BTreeMap::new();
        lengths.into_iter().for_each(|length| *counts.entry(length).or_default() += 1);
        counts
    }

    #[test]
    fn quantiles_are_lengths_that_occur() {
        let lengths = Lengths::of(&counts((1..=10).rev()));
        assert_eq!(lengths, Lengths { min: 1, p50: 5, p90: 9, max: 10 });
        assert_eq!(Lengths::of(&counts([7])), Lengths { min: 7, p50: 7, p90: 7, max: 7 });
        assert_eq!(Lengths::of(&counts([3, 3, 3, 9])), Lengths { min: 3, p50: 3, p90: 9, max: 9 });
        assert_eq!(Lengths::of(&counts([])), Lengths::default());
    }

    #[test]
    fn a_histogram_has_round_bars_that_hold_every_row_once() {
        for longest in [1, 9, 12, 13, 480, 4096, 1_000_001] {
            let counts = counts([1, longest / 2 + 1, longest, longest]);
            let bins = histogram(&counts);
            assert_eq!(bins.iter().map(|bin| bin.rows).sum::<usize>(), 4, "{longest}");
            assert!(bins.len() <= BINS as usize + 1 && bins[0].rows > 0, "{longest}: {bins:?}");
            assert!(bins.windows(2).all(|pair| pair[0].to + 1 == pair[1].from));
            assert!(bins.last().is_some_and(|bin| (bin.from..=bin.to).contains(&longest)));
        }
        assert_eq!(histogram(&counts([480])), [Bin { from: 450, to: 499, rows: 1 }]);
        assert!(histogram(&counts([])).is_empty());
    }
}
