//! Items of tasks that stand in training rows: shared n-grams of words, and near duplicates.
//!
//! **Words** are those of appendix C of Brown et al. (2020, arXiv 2005.14165): lower case, without punctuation, split at white
//! space.
//!
//! **Overlap** is the share of an item's 13-grams that stand in some row; as there, one is enough for an item to be dirty. What differs:
//! - N is 13 for all tasks, and not lower where a task's items are short. An item of 5 to 12 words is searched for as a whole, and a
//!   shorter one is not judged.
//! - They ignore n-grams that match more than 10 documents of a corpus of the web. A training file repeats its rows, so that such
//!   matches count here. Instead a task's template is left out: words of 5-grams that more than half of its items have (at least 3).
//!   What it separates is searched for separately.
//!
//! **Near duplicates** have a Jaccard index of at least 0.8 with one row, by the sets of their word 5-grams. Lee et al. (2022, arXiv
//! 2107.06499) estimate that index by `MinHash`, and then ask for an edit similarity above 0.8; here the index itself is computed.
//! 5-grams that more than half of the rows have, such as system messages, are left out on both sides.
//!
//! Rows are what is said in them: what a chat template writes between a question and its answer is taken out before
//! ([`crate::data::Encoder::said`]), so that a question with its answer is one text, as in an item.
//!
//! The items' n-grams are what is kept in memory. Rows go through one by one.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;

/// Words of an n-gram.
pub const NGRAM: usize = 13;
/// Words of the n-grams that near duplicates are found by.
pub const SHINGLE: usize = 5;
/// The fewest words of an item that is judged.
const FEWEST: usize = 5;
/// The least Jaccard index of a near duplicate.
pub const NEAR: f64 = 0.8;
/// The fewest items, and the fewest rows, that tell what a template is.
const FEWEST_ITEMS: usize = 3;
const FEWEST_ROWS: usize = 8;

/// The words of a text: lower case, without what is neither a letter nor a digit, split at white space.
pub fn words(text: &str) -> Vec<String> {
    let word =
        |word: &str| word.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect::<String>();
    text.split_whitespace().map(word).filter(|word| !word.is_empty()).collect()
}

/// An item in words, as numbers, without its task's template: whole where there is none.
#[derive(Debug)]
struct Item {
    /// What the template leaves, to be searched for.
    parts: Vec<Vec<u32>>,
    /// The texts whose 5-grams are all of the item's but for those of the template: up to 4 words more on each side.
    wider: Vec<Vec<u32>>,
}

impl Item {
    /// A text; `template` has the 5-grams of its task's template.
    fn new(text: &[u32], template: &HashSet<&[u32]>) -> Self {
        let of_template: Vec<bool> = text.windows(SHINGLE).map(|shingle| template.contains(shingle)).collect();
        let mut is_own = vec![true; text.len()];
        for (begin, _) in of_template.iter().enumerate().filter(|(_, of_template)| **of_template) {
            is_own[begin..begin + SHINGLE].fill(false);
        }
        let others: Vec<bool> = of_template.iter().map(|of_template| !of_template).collect();
        Self {
            parts: runs(&is_own).map(|run| text[run].to_vec()).collect(),
            wider: runs(&others).map(|run| text[run.start..run.end + SHINGLE - 1].to_vec()).collect(),
        }
    }

    /// The words of its n-grams; `None` where it is too short to judge.
    fn size(&self) -> Option<usize> {
        let longest = self.parts.iter().map(Vec::len).max().unwrap_or(0);
        (longest >= FEWEST).then_some(longest.min(NGRAM))
    }
}

/// Items as they are searched for, and what is the template of the rows.
#[derive(Debug)]
pub struct Items {
    vocabulary: HashMap<String, u32>,
    all: Vec<Item>,
    /// 5-grams of most rows.
    template: HashSet<Vec<u32>>,
}

impl Items {
    /// Items, each with the number of its task and its text. `rows` are some of the rows, by which their template is known.
    pub fn new(items: &[(usize, String)], rows: &[String]) -> Self {
        let mut vocabulary = HashMap::new();
        let mut numbers = |text: &str| -> Vec<u32> {
            let number = |word| {
                let next = vocabulary.len() as u32;
                *vocabulary.entry(word).or_insert(next)
            };
            words(text).into_iter().map(number).collect()
        };
        let mut tasks: BTreeMap<usize, Vec<Vec<u32>>> = BTreeMap::new();
        for (task, text) in items {
            tasks.entry(*task).or_default().push(numbers(text));
        }
        let rows: Vec<Vec<u32>> = rows.iter().map(|row| numbers(row)).collect();
        let template = common(&rows, FEWEST_ROWS).into_iter().map(<[u32]>::to_vec).collect();
        let mut of_tasks: BTreeMap<usize, std::vec::IntoIter<Item>> = BTreeMap::new();
        for (task, texts) in &tasks {
            let common = common(texts, FEWEST_ITEMS);
            let items: Vec<Item> = texts.iter().map(|text| Item::new(text, &common)).collect();
            of_tasks.insert(*task, items.into_iter());
        }
        let next = |(task, _): &(usize, String)| of_tasks.get_mut(task).and_then(Iterator::next);
        Self { vocabulary, all: items.iter().filter_map(next).collect(), template }
    }
}

/// The 5-grams that more than half of the texts have, `fewest` at least.
fn common(texts: &[Vec<u32>], fewest: usize) -> HashSet<&[u32]> {
    let mut counts: HashMap<&[u32], usize> = HashMap::new();
    for text in texts {
        for shingle in text.windows(SHINGLE).collect::<HashSet<_>>() {
            *counts.entry(shingle).or_default() += 1;
        }
    }
    counts.retain(|_, count| *count >= fewest && 2 * *count > texts.len());
    counts.into_keys().collect()
}

/// Where places are kept, one after another.
fn runs(is_kept: &[bool]) -> impl Iterator<Item = Range<usize>> {
    let mut end = 0;
    is_kept.chunk_by(|a, b| a == b).filter_map(move |run| {
        let begin = end;
        end += run.len();
        run[0].then_some(begin..end)
    })
}

/// N-grams of items: which there are, and the items that have each.
#[derive(Debug)]
struct Grams<'a> {
    ids: HashMap<&'a [u32], u32>,
    /// Of each n-gram, where its items begin in `items`; one more at the end.
    starts: Vec<usize>,
    items: Vec<u32>,
    /// Of each item, how many different ones are its own.
    own: Vec<usize>,
}

impl<'a> Grams<'a> {
    /// `of_item` gives the texts of an item and how many words an n-gram has, if it is to be judged. What `is_left_out` is no
    /// item's own.
    fn new(
        items: &'a [Item],
        of_item: impl Fn(&'a Item) -> Option<(&'a [Vec<u32>], usize)>,
        is_left_out: impl Fn(&[u32]) -> bool,
    ) -> Self {
        let mut ids: HashMap<&[u32], u32> = HashMap::new();
        let mut pairs: Vec<(u32, u32)> = Vec::new();
        for (i, item) in items.iter().enumerate() {
            let Some((parts, size)) = of_item(item) else { continue };
            let grams = parts.iter().flat_map(|part| part.windows(size));
            for gram in grams.filter(|gram| !is_left_out(gram)) {
                let next = ids.len() as u32;
                pairs.push((*ids.entry(gram).or_insert(next), i as u32));
            }
        }
        pairs.sort_unstable();
        pairs.dedup();
        let (mut starts, mut own) = (vec![0; ids.len() + 1], vec![0; items.len()]);
        for (place, &(gram, item)) in pairs.iter().enumerate() {
            starts[gram as usize + 1] = place + 1;
            own[item as usize] += 1;
        }
        Self { ids, starts, items: pairs.into_iter().map(|(_, item)| item).collect(), own }
    }

    /// The items that have an n-gram as their own.
    fn items_of(&self, gram: u32) -> &[u32] {
        &self.items[self.starts[gram as usize]..self.starts[gram as usize + 1]]
    }

    /// Of these n-grams, each named once, how many each item has; in the order of the items.
    fn counts(&self, grams: impl Iterator<Item = u32>) -> Vec<(u32, usize)> {
        let mut all: Vec<u32> = grams.flat_map(|gram| self.items_of(gram)).copied().collect();
        all.sort_unstable();
        all.chunk_by(|a, b| a == b).map(|same| (same[0], same.len())).collect()
    }
}

/// Where n-grams of items are looked up.
#[derive(Debug)]
pub struct Index<'a> {
    items: &'a Items,
    grams: Grams<'a>,
    shingles: Grams<'a>,
    /// How long n-grams are: 13, and less for short items.
    sizes: BTreeSet<usize>,
}

/// What a row has of the items.
#[derive(Debug)]
pub struct RowMatch {
    /// The n-grams.
    grams: Vec<u32>,
    /// By item: how many of its n-grams, and the Jaccard index with the row.
    items: Vec<(u32, usize, f64)>,
}

impl<'a> Index<'a> {
    /// Of these items.
    pub fn new(items: &'a Items) -> Self {
        let grams = Grams::new(&items.all, |item| Some((&item.parts, item.size()?)), |_| false);
        let shingles_of = |item: &'a Item| item.size().map(|_| (&item.wider[..], SHINGLE));
        let shingles = Grams::new(&items.all, shingles_of, |shingle| items.template.contains(shingle));
        let sizes = items.all.iter().filter_map(Item::size).collect();
        Self { items, grams, shingles, sizes }
    }

    /// What a row has of the items.
    pub fn search(&self, row: &str) -> RowMatch {
        let known = self.items.vocabulary.len() as u32;
        let row = self.numbers(&words(row));
        let mut grams: Vec<u32> = Vec::new();
        // No n-gram of an item goes over a word that no item has.
        for part in row.split(|word| *word >= known) {
            let windows = self.sizes.iter().flat_map(|size| part.windows(*size));
            grams.extend(windows.filter_map(|gram| self.grams.ids.get(gram)));
        }
        grams.sort_unstable();
        grams.dedup();
        let shingles: HashSet<&[u32]> =
            row.windows(SHINGLE).filter(|shingle| !self.items.template.contains(*shingle)).collect();
        let found = shingles.iter().filter_map(|shingle| self.shingles.ids.get(*shingle)).copied();
        let overlaps: HashMap<u32, usize> = self.grams.counts(grams.iter().copied()).into_iter().collect();
        let of_item = |(item, both): (u32, usize)| {
            let either = self.shingles.own[item as usize] + shingles.len() - both;
            (item, overlaps.get(&item).copied().unwrap_or(0), both as f64 / either as f64)
        };
        let mut items: Vec<(u32, usize, f64)> = self.shingles.counts(found).into_iter().map(of_item).collect();
        // An n-gram of templates' shingles alone.
        let others = overlaps.iter().filter(|(item, _)| items.binary_search_by_key(*item, |of| of.0).is_err());
        let others: Vec<_> = others.map(|(item, count)| (*item, *count, 0.0)).collect();
        items.extend(others);
        items.sort_unstable_by_key(|of| of.0);
        RowMatch { grams, items }
    }

    /// Words as numbers; those that no item has are numbered on from these, by row.
    fn numbers(&self, row: &[String]) -> Vec<u32> {
        let mut others: HashMap<&str, u32> = HashMap::new();
        let mut numbers = Vec::with_capacity(row.len());
        for word in row {
            let next = (self.items.vocabulary.len() + others.len()) as u32;
            let known = self.items.vocabulary.get(word).copied();
            numbers.push(known.unwrap_or_else(|| *others.entry(word).or_insert(next)));
        }
        numbers
    }
}

/// What was found of an item.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Found {
    /// Whether it has n-grams of its own: else it is too short to judge.
    pub judged: bool,
    /// The share of its n-grams that stand in some row.
    pub overlap: f64,
    /// The row that is nearest: of a near duplicate the one with the highest Jaccard index, else the one with most of its n-grams.
    pub row: Option<usize>,
    /// The Jaccard index with that row.
    pub jaccard: f64,
}

impl Found {
    /// Whether it is the row but for a few words.
    pub fn near_duplicate(&self) -> bool {
        self.jaccard >= NEAR
    }

    /// Whether it stands in the rows, in part or as a near duplicate.
    pub fn contaminated(&self) -> bool {
        self.overlap > 0.0 || self.near_duplicate()
    }
}

/// The rows nearest to an item.
#[derive(Debug, Clone, Copy, Default)]
struct Nearest {
    /// The most n-grams in one row; the row, and its Jaccard index.
    most: (usize, usize, f64),
    /// The highest Jaccard index, and its row.
    nearest: (f64, usize),
}

/// What all rows together have of the items.
#[derive(Debug)]
pub struct Tally<'a> {
    index: &'a Index<'a>,
    found: Vec<bool>,
    nearest: Vec<Nearest>,
}

impl<'a> Tally<'a> {
    /// Of no row.
    pub fn new(index: &'a Index<'a>) -> Self {
        let nearest = vec![Nearest::default(); index.items.all.len()];
        Self { index, found: vec![false; index.grams.ids.len()], nearest }
    }

    /// Adds a row. Of rows that are equally near the first to be added is taken.
    pub fn add(&mut self, row: usize, of_row: &RowMatch) {
        for &gram in &of_row.grams {
            self.found[gram as usize] = true;
        }
        for &(item, count, jaccard) in &of_row.items {
            let of_item = &mut self.nearest[item as usize];
            if count > of_item.most.0 {
                of_item.most = (count, row, jaccard);
            }
            if jaccard > of_item.nearest.0 {
                of_item.nearest = (jaccard, row);
            }
        }
    }

    /// What was found of each item, in their order.
    pub fn finish(&self) -> Vec<Found> {
        let grams = &self.index.grams;
        let mut hits = vec![0; self.nearest.len()];
        for (item, count) in grams.counts((0..).zip(&self.found).filter(|(_, found)| **found).map(|(gram, _)| gram)) {
            hits[item as usize] = count;
        }
        let of_item = |(i, nearest): (usize, &Nearest)| {
            let own = grams.own[i];
            if own == 0 {
                return Found::default();
            }
            let (jaccard, row) = match (nearest.nearest, nearest.most) {
                ((jaccard, row), _) if jaccard >= NEAR => (jaccard, Some(row)),
                (_, (0, ..)) => (0.0, None),
                (_, (_, row, jaccard)) => (jaccard, Some(row)),
            };
            Found { judged: true, overlap: hits[i] as f64 / own as f64, row, jaccard }
        };
        self.nearest.iter().enumerate().map(of_item).collect()
    }
}

#[cfg(test)]
#[path = "contamination_tests.rs"]
mod tests;
