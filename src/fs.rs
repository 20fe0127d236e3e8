//! Atomic writes: a file or a folder appears whole or not at all. And fingerprints: a file's contents in 32 bytes; and `~` in
//! paths.
//!
//! Everything is written to a hidden sibling, flushed to the disk, and renamed. What a crash leaves behind starts with
//! [`TEMPORARY_PREFIX`] and is swept by [`sweep`].

mod expand;

pub use expand::{Variable, expand, unset};

use crate::error::{Error, Result};
use rayon::prelude::*;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// How the names of unfinished files and folders begin.
pub const TEMPORARY_PREFIX: &str = ".tmp-";

fn temporary_sibling(path: &Path) -> PathBuf {
    static WRITERS: AtomicUsize = AtomicUsize::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let writer = WRITERS.fetch_add(1, Ordering::Relaxed);
    // Process numbers alone would be the same in two containers that share a folder.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
    path.with_file_name(format!("{TEMPORARY_PREFIX}{}-{writer}-{now:x}-{name}", std::process::id()))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes the renames in `folder` survive a power cut. Not every file system can; that it cannot is not an error.
fn sync_folder(folder: &Path) {
    if let Ok(handle) = File::open(folder) {
        let _ = handle.sync_all();
    }
}

/// Writes a file whole or not at all. One that holds these bytes already is left as it is.
///
/// # Errors
/// When the folder is not there or not writable, or the disk is full; then the old file, if any, is untouched.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let same_length = fs::symlink_metadata(path).is_ok_and(|it| it.is_file() && it.len() == bytes.len() as u64);
    if same_length && fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    write_atomic_with(path, |temporary| {
        let mut file = File::create(temporary).map_err(Error::io("create", path))?;
        file.write_all(bytes).map_err(Error::io("write", path))
    })
}

/// As [`write_atomic`], for writers that want a path: `write` gets the path of the sibling to create and fill.
///
/// # Errors
/// What `write` returns, and what the system answers to flushing and renaming.
pub fn write_atomic_with(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let temporary = temporary_sibling(path);
    let written = write(&temporary).and_then(|()| {
        let file = File::open(&temporary).map_err(Error::io("open", path))?;
        file.sync_all().map_err(Error::io("flush", path))?;
        fs::rename(&temporary, path).map_err(Error::io("rename to", path))
    });
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    } else {
        sync_folder(parent(path));
    }
    written
}

/// Writes a folder whole or not at all: `fill` gets an empty sibling, which is then renamed to `path`.
///
/// A folder that is already at `path` is replaced: it is set aside, and removed once the new one stands.
///
/// # Errors
/// What `fill` returns, and what the system answers; then the old folder, if any, is untouched.
pub fn write_folder_atomic(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let temporary = temporary_sibling(path);
    let _ = fs::remove_dir_all(&temporary);
    fs::create_dir_all(&temporary).map_err(Error::io("create", path))?;
    let written = fill(&temporary).and_then(|()| {
        for entry in fs::read_dir(&temporary).map_err(Error::io("read", path))? {
            let entry = entry.map_err(Error::io("read", path))?;
            if let Ok(file) = File::open(entry.path()) {
                file.sync_all().map_err(Error::io("flush", path))?;
            }
        }
        sync_folder(&temporary);
        if path.exists() {
            let old = path.with_file_name(format!(
                "{TEMPORARY_PREFIX}{}-old-{}",
                std::process::id(),
                path.file_name().unwrap_or_default().to_string_lossy()
            ));
            fs::rename(path, &old).map_err(Error::io("replace", path))?;
            fs::rename(&temporary, path).map_err(Error::io("rename to", path))?;
            let _ = fs::remove_dir_all(&old);
            return Ok(());
        }
        fs::rename(&temporary, path).map_err(Error::io("rename to", path))
    });
    if written.is_err() {
        let _ = fs::remove_dir_all(&temporary);
    } else {
        sync_folder(parent(path));
    }
    written
}

/// Removes a folder that others may look at: it goes out of sight at once, and then from the disk. That it cannot be removed
/// costs space, and is not an error.
pub fn remove_folder_atomic(path: &Path) {
    let hidden = temporary_sibling(path);
    if fs::rename(path, &hidden).is_ok() {
        let _ = fs::remove_dir_all(&hidden);
    }
}

/// Removes what crashed writers left in `folder`. Call it only while no other writer is at work there.
pub fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX) {
            let _ =
                if entry.path().is_dir() { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
        }
    }
}

/// A file's contents, of at most so many bytes.
///
/// # Errors
/// When it is larger or cannot be read.
pub fn read_within(path: &Path, most: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > most {
        return Err(Error::file(path, format!("is over {} MiB, which no such file is", most >> 20)));
    }
    Ok(bytes)
}

/// The real place of a file in a folder, if there is one; links are followed.
///
/// # Errors
/// When a link leads out of the folder: but for the Hub's cache, whose snapshots are links to `blobs` beside them.
pub fn file_inside(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    let path = folder.join(name);
    if !path.is_file() {
        return Ok(None);
    }
    let root = folder.canonicalize().map_err(Error::io("open", folder))?;
    let real = path.canonicalize().map_err(Error::io("open", &path))?;
    let in_cache = root.parent().filter(|parent| parent.ends_with("snapshots")).and_then(Path::parent);
    if real.starts_with(&root) || in_cache.is_some_and(|repository| real.starts_with(repository.join("blobs"))) {
        return Ok(Some(real));
    }
    Err(Error::file(path, format!("is a link to {}, outside of the folder", real.display()))
        .with_help("put a copy in the link's place, or remove it"))
}

/// The bytes that may still be written to the disk of `folder`, or of the next folder above that is there.
pub fn free_space(folder: &Path) -> Option<u64> {
    let there = folder.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("."));
    let disk = rustix::fs::statvfs(if there.as_os_str().is_empty() { Path::new(".") } else { there }).ok()?;
    // No disk at all, such as /proc.
    if disk.f_blocks == 0 {
        return None;
    }
    disk.f_bavail.checked_mul(disk.f_frsize)
}

/// The bytes of a file, or of the files below a folder; 0 of what cannot be read.
pub fn size(path: &Path) -> u64 {
    match fs::symlink_metadata(path) {
        Ok(it) if it.is_dir() => fs::read_dir(path).into_iter().flatten().flatten().map(|it| size(&it.path())).sum(),
        Ok(it) => it.len(),
        Err(_) => 0,
    }
}

/// Bytes that are hashed in one go, by one thread.
const SEGMENT: usize = 4 << 20;

/// A hash of bytes that come bit by bit: BLAKE3 of the BLAKE3 of each 4 MiB, so that all cores can hash a file, and read it.
#[derive(Default)]
pub struct Fingerprint {
    segment: blake3::Hasher,
    filled: usize,
    segments: blake3::Hasher,
}

impl Fingerprint {
    /// Takes more bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(SEGMENT - self.filled));
            self.segment.update(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == SEGMENT {
                self.close();
            }
        }
    }

    fn close(&mut self) {
        self.segments.update(self.segment.finalize().as_bytes());
        self.segment.reset();
        self.filled = 0;
    }

    /// The hash.
    pub fn finish(mut self) -> [u8; 32] {
        if self.filled > 0 {
            self.close();
        }
        *self.segments.finalize().as_bytes()
    }
}

/// The [`Fingerprint`] of a file's contents.
///
/// # Errors
/// When the file cannot be read.
pub fn fingerprint(path: &Path) -> Result<[u8; 32]> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let length = file.metadata().map_err(Error::io("read", path))?.len();
    fingerprint_of(&file, path, length)
}

/// The [`Fingerprint`] of a file's first `length` bytes, computed on all cores.
///
/// # Errors
/// When the file cannot be read, or is shorter; `path` is what the error names.
pub fn fingerprint_of(file: &File, path: &Path, length: u64) -> Result<[u8; 32]> {
    let segments = length.div_ceil(SEGMENT as u64);
    let hash = |segment: u64| -> Result<[u8; 32]> {
        // Pieces that stay in the cache between reading and hashing.
        let (mut buffer, mut hash) = (vec![0; 1 << 16], blake3::Hasher::new());
        let mut at = segment * SEGMENT as u64;
        let end = length.min(at + SEGMENT as u64);
        while at < end {
            let piece = &mut buffer[..(end - at).min(1 << 16) as usize];
            file.read_exact_at(piece, at).map_err(Error::io("read", path))?;
            hash.update(&*piece);
            at += piece.len() as u64;
        }
        Ok(*hash.finalize().as_bytes())
    };
    let hashes: Vec<[u8; 32]> = (0..segments).into_par_iter().map(hash).collect::<Result<_>>()?;
    let mut all = blake3::Hasher::new();
    for hash in &hashes {
        all.update(hash);
    }
    Ok(*all.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_litter() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write_atomic(&path, b"old").unwrap();
        let failed = write_atomic_with(&path, |temporary| {
            fs::write(temporary, b"half").unwrap();
            Err(Error::invalid("stop"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        for name in ["one", "two"] {
            write_folder_atomic(&path, |temporary| {
                fs::write(temporary.join(name), b"x").unwrap();
                Ok(())
            })
            .unwrap();
        }
        let names: Vec<_> = fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["two"]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_fingerprint_is_that_of_the_contents_however_they_come() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        for length in [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT + 5] {
            let mut bytes: Vec<u8> = (0..length).map(|i| (i * 31 % 251) as u8).collect();
            let streamed = |bytes: &[u8], piece: usize| {
                let mut hash = Fingerprint::default();
                bytes.chunks(piece).for_each(|piece| hash.update(piece));
                hash.finish()
            };
            fs::write(&path, &bytes).unwrap();
            let whole = fingerprint(&path).unwrap();
            assert_eq!(whole, streamed(&bytes, 1 << 30), "{length}");
            assert_eq!(whole, streamed(&bytes, 1_000_003), "{length}");
            if let Some(last) = bytes.last_mut() {
                *last ^= 1;
                assert_ne!(whole, streamed(&bytes, 1 << 30), "{length}");
            }
        }
    }

    #[test]
    fn a_file_that_is_there_already_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write_atomic(&path, b"one").unwrap();
        let node = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
        // A link to the file keeps its number from being given to another.
        fs::hard_link(&path, folder.path().join("b")).unwrap();
        let before = node(&path);
        write_atomic(&path, b"one").unwrap();
        assert_eq!(node(&path), before);
        write_atomic(&path, b"two").unwrap();
        assert_ne!(node(&path), before);
        assert_eq!((size(&path), size(folder.path()), size(&folder.path().join("gone"))), (3, 6, 0));
    }
}
