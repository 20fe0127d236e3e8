//! A dataset's files: which of them hold a split, and bringing these to this disk. It never runs a dataset's code.

use super::cache::{Cache, list};
use super::card::{self, Declared};
use super::layout::{self, Split, Subset, canonical};
use super::remote::{Remote, is_transient};
use super::{FetchOptions, FetchProgress, Kind, Place, Reference, is_plain, parse_id};
use crate::error::{Error, Result};
use hf_hub::HFError;
use std::path::PathBuf;

/// Where the Hub keeps its own Parquet copies of a dataset.
const CONVERTED: &str = "refs/convert/parquet";
/// What can be read, for messages.
const READABLE: &str = "Parquet, or .jsonl, .json, .csv, .tsv and .txt, each maybe with .gz or .zst";

/// A dataset on the Hub, and what of it is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatasetConfig<'a> {
    /// `org/name` or `org/name@revision`; a few old datasets have a name without owner.
    pub id: &'a str,
    /// Its split; `None` for the first of the default ones that it has.
    pub split: Option<&'a str>,
    /// Its subset ("configuration"); may be left out where there is one, or one that is the default.
    pub subset: Option<&'a str>,
}

/// The data files of one split, sorted by name, in the Hub's ordinary cache; downloaded where they are not there.
///
/// What the dataset's README declares as `configs` decides which files hold which split; otherwise their names do, by the
/// conventions of the `datasets` library. Of several formats Parquet is taken, then the one with most files. A dataset with
/// no file that can be read (a script, pickles) is taken from the Parquet copies that the Hub makes of it. Where no split is
/// named, `default_splits` are tried in order; `val`, `valid`, `dev` and `validation` are the same, and so on.
///
/// Offline the same is done with the files that the cache has. A missing shard (`…-00001-of-00003`) and a missing file that
/// the README names are noticed; that a split with files of other names is incomplete cannot be known.
///
/// # Errors
/// When the Hub does not have the dataset, does not give it, or cannot be reached; when it has several subsets and none is
/// named; when it has no such subset or split (the message lists those it has); when nothing in it can be read.
pub fn fetch_dataset(
    dataset: &DatasetConfig<'_>,
    default_splits: &[&str],
    options: &FetchOptions,
    progress: &mut dyn FnMut(FetchProgress),
) -> Result<Vec<PathBuf>> {
    fetch_dataset_from(dataset, default_splits, options, progress, &Place::default())
}

pub(super) fn fetch_dataset_from(
    dataset: &DatasetConfig<'_>,
    default_splits: &[&str],
    options: &FetchOptions,
    progress: &mut dyn FnMut(FetchProgress),
    place: &Place,
) -> Result<Vec<PathBuf>> {
    super::check_address(dataset.id)?;
    let id = super::dataset_id(dataset.id);
    let Some(reference) = parse_id(Kind::Dataset, &id) else {
        return Err(Error::invalid(format!("hub: `{}` is not the name of a dataset on the Hub", dataset.id))
            .with_help("a dataset is named `org/name` or `org/name@revision`; local files are named as `path`"));
    };
    let cache = Cache::of(&reference, place.cache.clone().unwrap_or_else(hf_hub::resolve_cache_dir));
    let wanted = Wanted { reference: &reference, dataset, default_splits };
    if options.offline {
        return wanted.find(&mut OnDisk { cache: &cache });
    }
    let remote = Remote::open(&reference, &cache.root, place.endpoint.as_deref())?;
    let mut hub = OnHub { remote, cache: &cache, progress, unreachable: false };
    match wanted.find(&mut hub) {
        // The Hub is down, but the dataset may be here.
        Err(error) if hub.unreachable => wanted
            .find(&mut OnDisk { cache: &cache })
            .inspect(|_| tracing::warn!("{error}; the cached copy is used"))
            .map_err(|_| error),
        found => found,
    }
}

/// A revision of the dataset.
struct Snapshot {
    revision: String,
    commit: String,
    files: Vec<String>,
}

/// Where snapshots come from.
trait Shelf {
    /// A revision; `None` where it is not there. On the Hub, only the converted one may be missing.
    fn open(&mut self, revision: &str) -> Result<Option<Snapshot>>;
    /// One of its files.
    fn get(&mut self, snapshot: &Snapshot, file: &str) -> Result<PathBuf>;
    /// Notes that all that is needed of a snapshot is here.
    fn note(&mut self, snapshot: &Snapshot) -> Result<()>;
    /// In place of an error about what the dataset lacks: only the cache may lack it.
    fn lacks(&self, why: &str) -> Option<Error>;
}

struct OnHub<'a> {
    remote: Remote<'a>,
    cache: &'a Cache,
    progress: &'a mut dyn FnMut(FetchProgress),
    /// Whether the Hub could not be asked.
    unreachable: bool,
}

impl Shelf for OnHub<'_> {
    fn open(&mut self, revision: &str) -> Result<Option<Snapshot>> {
        match self.remote.describe(revision) {
            Ok((commit, files)) => Ok(Some(Snapshot { revision: revision.into(), commit, files })),
            Err(HFError::RevisionNotFound { .. }) if revision == CONVERTED && self.cache.revision() != CONVERTED => {
                Ok(None)
            }
            Err(error) => {
                self.unreachable = is_transient(&error);
                Err(self.remote.explain(error))
            }
        }
    }

    fn get(&mut self, snapshot: &Snapshot, file: &str) -> Result<PathBuf> {
        // The name becomes a path in the cache.
        if !is_plain(file) {
            let message = format!("the Hub lists a file `{file}`, which is not a path within a dataset");
            return Err(Error::Hub { message, help: Some("do not use this dataset; tell the Hub about it".into()) });
        }
        self.remote.download(&snapshot.commit, file, self.progress)
    }

    fn note(&mut self, snapshot: &Snapshot) -> Result<()> {
        self.cache.note_revision(&snapshot.revision, &snapshot.commit)
    }

    fn lacks(&self, _: &str) -> Option<Error> {
        None
    }
}

struct OnDisk<'a> {
    cache: &'a Cache,
}

impl Shelf for OnDisk<'_> {
    fn open(&mut self, revision: &str) -> Result<Option<Snapshot>> {
        let Some(folder) = self.cache.snapshot_of(revision) else { return Ok(None) };
        let commit = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Some(Snapshot { revision: revision.into(), commit, files: list(&folder)? }))
    }

    fn get(&mut self, snapshot: &Snapshot, file: &str) -> Result<PathBuf> {
        Ok(self.cache.snapshot(&snapshot.commit).join(file))
    }

    fn note(&mut self, _: &Snapshot) -> Result<()> {
        Ok(())
    }

    fn lacks(&self, why: &str) -> Option<Error> {
        Some(self.cache.missing(why))
    }
}

struct Wanted<'a> {
    reference: &'a Reference,
    dataset: &'a DatasetConfig<'a>,
    default_splits: &'a [&'a str],
}

impl Wanted<'_> {
    fn find(&self, shelf: &mut dyn Shelf) -> Result<Vec<PathBuf>> {
        let main = shelf.open(&self.reference.revision)?;
        let split = main.as_ref().map(|snapshot| self.choose(snapshot, shelf)).transpose()?.flatten();
        let (snapshot, split) = match (main, split) {
            (Some(snapshot), Some(split)) => (snapshot, split),
            (main, _) => {
                let found = self.converted(main.as_ref(), shelf)?;
                // Its README was read: the next lookup without network needs it too.
                if let Some(main) = main.filter(|main| main.files.iter().any(|file| file == README)) {
                    shelf.note(&main)?;
                }
                found
            }
        };
        let reference = self.reference;
        if let Some(absent) = split.absent.first() {
            return Err(shelf.lacks(&format!("its copy in the cache lacks {absent}")).unwrap_or_else(|| Error::Hub {
                message: format!("{reference}: its README names `{absent}`, which the repository does not have"),
                help: Some("the dataset is incomplete; tell its owner, or take another one".into()),
            }));
        }
        if let Some(absent) = layout::absent_shard(&split.files).filter(|_| !split.listed) {
            if let Some(error) = shelf.lacks(&format!("its copy in the cache lacks {absent}")) {
                return Err(error);
            }
            tracing::warn!("{reference} has no {absent}: split `{}` is only a part of what it was", split.name);
        }
        let paths = split.files.iter().map(|file| shelf.get(&snapshot, file)).collect::<Result<Vec<_>>>()?;
        shelf.note(&snapshot)?;
        Ok(paths)
    }

    /// The split in the repository itself; `None` where no file of it can be read.
    fn choose(&self, snapshot: &Snapshot, shelf: &mut dyn Shelf) -> Result<Option<Split>> {
        if snapshot.revision == CONVERTED {
            return self.split_of_subset(layout::converted(&snapshot.files), shelf).map(Some);
        }
        let declared = self.declared(snapshot, shelf)?;
        if declared.is_empty() {
            let subsets = layout::by_names(&snapshot.files);
            return if subsets.is_empty() { Ok(None) } else { self.split_of_subset(subsets, shelf).map(Some) };
        }
        let names: Vec<(&str, bool)> = declared.iter().map(|one| (one.name.as_str(), one.default)).collect();
        let subset = &declared[self.subset(&names, shelf)?];
        let splits = layout::of_declared(subset, &snapshot.files).map_err(|error| Error::Hub {
            message: format!("{}: the pattern of a file in its README cannot be used: {error}", self.reference),
            help: Some("tell the dataset's owner".into()),
        })?;
        if splits.iter().all(|split| split.files.is_empty()) {
            return Ok(None);
        }
        self.split(splits, shelf).map(Some)
    }

    fn declared(&self, snapshot: &Snapshot, shelf: &mut dyn Shelf) -> Result<Vec<Declared>> {
        if !snapshot.files.iter().any(|file| file == README) {
            return Ok(Vec::new());
        }
        let readme = shelf.get(snapshot, README)?;
        Ok(card::declared(&readme).unwrap_or_else(|error| {
            tracing::warn!("{}: the head of its README cannot be read ({error}); file names are used", self.reference);
            Vec::new()
        }))
    }

    /// The split in the Hub's Parquet copies.
    fn converted(&self, main: Option<&Snapshot>, shelf: &mut dyn Shelf) -> Result<(Snapshot, Split)> {
        let reference = self.reference;
        let nothing = || {
            let files = main.map(|main| listed(main.files.iter().map(String::as_str))).unwrap_or_default();
            Error::Hub {
                message: format!("{reference}: there is no data in it that can be read ({READABLE})"),
                help: Some(format!("convert it, and name the files as `path`; its files are: {files}")),
            }
        };
        // The copies are of the newest revision.
        if reference.revision != "main" {
            let why = format!("no data file of it is in the cache ({READABLE})");
            return Err(shelf.lacks(&why).unwrap_or_else(|| {
                let help = format!("the Hub's own Parquet copy of its newest revision is `{reference}@{CONVERTED}`");
                nothing().with_help(help)
            }));
        }
        let Some(snapshot) = shelf.open(CONVERTED)? else {
            return Err(shelf.lacks("it is not in the cache").unwrap_or_else(nothing));
        };
        let subsets = layout::converted(&snapshot.files);
        if subsets.is_empty() {
            return Err(shelf.lacks("no data file of it is in the cache").unwrap_or_else(nothing));
        }
        let split = self.split_of_subset(subsets, shelf)?;
        if split.files.iter().any(|file| file.contains("/partial-")) {
            tracing::warn!("{reference}: the Hub has copied only the beginning of split `{}` to Parquet", split.name);
        }
        Ok((snapshot, split))
    }

    fn split_of_subset(&self, mut subsets: Vec<Subset>, shelf: &dyn Shelf) -> Result<Split> {
        let names: Vec<(&str, bool)> = subsets.iter().map(|subset| (subset.name.as_str(), false)).collect();
        let at = self.subset(&names, shelf)?;
        self.split(subsets.swap_remove(at).splits, shelf)
    }

    /// The place of the subset that is wanted, among names and whether each is declared as the default.
    fn subset(&self, names: &[(&str, bool)], shelf: &dyn Shelf) -> Result<usize> {
        let reference = self.reference;
        let all = listed(names.iter().map(|(name, _)| *name));
        if let Some(wanted) = self.dataset.subset {
            return names.iter().position(|(name, _)| *name == wanted).ok_or_else(|| {
                let why = format!("subset `{wanted}` is not in the cache, which has: {all}");
                let message = format!("subset: {reference} has no subset `{wanted}`");
                shelf
                    .lacks(&why)
                    .unwrap_or_else(|| Error::invalid(message).with_help(format!("its subsets are: {all}")))
            });
        }
        if names.len() == 1 {
            return Ok(0);
        }
        let default = names.iter().position(|(_, default)| *default);
        default.or_else(|| names.iter().position(|(name, _)| *name == "default")).ok_or_else(|| {
            Error::invalid(format!("subset: {reference} has several subsets, and none is named"))
                .with_help(format!("name one as `subset`; they are: {all}"))
        })
    }

    fn split(&self, mut splits: Vec<Split>, shelf: &dyn Shelf) -> Result<Split> {
        let place = |wanted: &str| {
            let same = |split: &Split| canonical(wanted).is_some_and(|kind| canonical(&split.name) == Some(kind));
            splits.iter().position(|split| split.name == wanted).or_else(|| splits.iter().position(same))
        };
        let reference = self.reference;
        let at = match self.dataset.split {
            Some(wanted) => place(wanted),
            None => self.default_splits.iter().find_map(|wanted| place(wanted)),
        };
        let Some(at) = at else {
            let all = listed(splits.iter().map(|split| split.name.as_str()));
            let wanted = self.dataset.split.map_or_else(|| self.default_splits.join("` or `"), String::from);
            let why = format!("split `{wanted}` is not in the cache, which has: {all}");
            return Err(shelf.lacks(&why).unwrap_or_else(|| {
                Error::invalid(format!("split: {reference} has no split `{wanted}`"))
                    .with_help(format!("name one as `split`; they are: {all}"))
            }));
        };
        let split = splits.swap_remove(at);
        if split.files.is_empty() && split.absent.is_empty() {
            let name = &split.name;
            return Err(shelf.lacks(&format!("no file of split `{name}` is in the cache")).unwrap_or_else(|| {
                Error::Hub {
                    message: format!(
                        "{reference}: what its README declares as split `{name}` is not a file that can be read"
                    ),
                    help: Some(format!("take another split; what can be read is {READABLE}")),
                }
            }));
        }
        Ok(split)
    }
}

const README: &str = "README.md";

/// Names, the first 30 of them.
fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    let more = if names.len() > 30 { format!(" and {} more", names.len() - 30) } else { String::new() };
    names.iter().take(30).copied().collect::<Vec<_>>().join(", ") + &more
}
