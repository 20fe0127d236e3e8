//! The bytes of a data file, unpacked: gzip and Zstandard, recognised by their first bytes. It knows nothing of rows.

use super::expand::missing;
use super::{foreign, foreign_encoding};
use crate::error::{Error, Result};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Cursor, ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// So much may come out of a compressed file at any ratio.
const FREE: u64 = 256 << 20;
/// The most bytes that come out for each byte that goes in, beyond [`FREE`]. Text packs to a tenth, logs to a fiftieth.
const MAX_RATIO: u64 = 250;
/// The largest window of Zstandard, as a power of two: 128 MiB, which `zstd --long` uses.
const MAX_WINDOW_LOG: u32 = 27;
/// Bytes read at a time.
const BUFFER: usize = 1 << 20;
/// Bytes by which a kind is recognised.
pub(super) const START: usize = 4096;

/// How a file is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// The name, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "not compressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

/// A file's bytes, unpacked, from behind the mark that some editors put at the start.
pub(super) struct Input {
    pub reader: Box<dyn BufRead + Send>,
    /// The first bytes that `reader` will give.
    pub start: Vec<u8>,
    pub compression: Compression,
    /// Bytes taken from the disk.
    pub consumed: Arc<AtomicU64>,
}

/// Opens a regular file; also its length. A pipe is refused before it is opened, which would wait for a writer.
pub(super) fn regular_file(path: &Path) -> Result<(File, u64)> {
    let metadata = fs::metadata(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => missing(path),
        _ => Error::io("open", path)(error),
    })?;
    if metadata.is_dir() {
        return Err(Error::file(path, "is a folder, and a data file is needed"));
    }
    if !metadata.is_file() {
        return Err(Error::file(path, "is not a regular file, but a pipe or a device")
            .with_help("data is read more than once; write the rows to a file first"));
    }
    Ok((File::open(path).map_err(Error::io("open", path))?, metadata.len()))
}

/// The error of Parquet in a compressed file.
pub(super) fn packed_parquet(path: &Path) -> Error {
    Error::file(path, "is a compressed Parquet file, which cannot be read in pieces")
        .with_help("unpack it with `gunzip` or `unzstd`; Parquet compresses what it holds itself")
}

impl Input {
    /// Unpacks a file that stands at its start.
    ///
    /// # Errors
    /// When it is compressed in another way, cut, damaged, UTF-16, or Parquet.
    pub fn open(path: &Path, mut file: File) -> Result<Self> {
        let magic = first_bytes(&mut file, START).map_err(Error::io("read", path))?;
        file.seek(SeekFrom::Start(0)).map_err(Error::io("read", path))?;
        let compression = told_by(path, &magic)?;
        let consumed = Arc::new(AtomicU64::new(0));
        let counted = BufReader::with_capacity(BUFFER, Counted { inner: file, bytes: consumed.clone() });
        let mut reader: Box<dyn BufRead + Send> = match compression {
            Compression::None => Box::new(counted),
            Compression::Gzip => bounded(flate2::bufread::MultiGzDecoder::new(counted), &consumed),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(counted).map_err(Error::io("read", path))?;
                decoder.window_log_max(MAX_WINDOW_LOG).map_err(Error::io("read", path))?;
                bounded(decoder, &consumed)
            }
        };
        let mut start = first_bytes(&mut reader, START).map_err(|error| read_error(path, compression, error))?;
        if compression != Compression::None && start.starts_with(b"PAR1") {
            return Err(packed_parquet(path));
        }
        if let Some(error) = foreign_encoding(path, &start) {
            return Err(error);
        }
        if let Some(foreign) = foreign::of_bytes(&start).filter(|_| !super::kind::is_plain_text(path)) {
            return Err(foreign.error(path));
        }
        if start.starts_with(b"\xEF\xBB\xBF") {
            start.drain(..3);
        }
        let reader = Box::new(Cursor::new(start.clone()).chain(reader));
        Ok(Self { reader, start, compression, consumed })
    }

    /// The error of reading on.
    pub fn error(&self, path: &Path, error: io::Error) -> Error {
        read_error(path, self.compression, error)
    }
}

/// How a file with these first bytes is packed.
fn told_by(path: &Path, magic: &[u8]) -> Result<Compression> {
    if let Some(foreign) = foreign::of_bytes(magic).filter(|_| !super::kind::is_plain_text(path)) {
        return Err(foreign.error(path));
    }
    // The first bytes of a zipped workbook need not show what it is; its name does.
    let zipped = foreign::of_name(path).filter(|_| magic.starts_with(b"PK\x03\x04"));
    if let Some(foreign) = zipped {
        return Err(foreign.error(path));
    }
    let foreign = match magic {
        [0x1F, 0x8B, ..] => return Ok(Compression::Gzip),
        // A frame, or one to be skipped, with which some packers start.
        [0x28, 0xB5, 0x2F, 0xFD, ..] | [0x50..=0x5F, 0x2A, 0x4D, 0x18, ..] => return Ok(Compression::Zstd),
        [0xFD, b'7', b'z', b'X', b'Z', 0, ..] => "xz",
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, ..] => "bzip2",
        [b'P', b'K', 3, 4, ..] => "zip",
        _ => return Ok(Compression::None),
    };
    Err(Error::file(path, format!("is compressed with {foreign}, and only gzip and zstd are read here"))
        .with_help("unpack it, and pack it with `gzip` or `zstd` if it should stay small"))
}

fn bounded<R: Read + Send + 'static>(decoder: R, consumed: &Arc<AtomicU64>) -> Box<dyn BufRead + Send> {
    Box::new(BufReader::with_capacity(BUFFER, Unpacked { decoder, bytes: 0, consumed: consumed.clone() }))
}

/// Up to `count` bytes; fewer only at the end.
fn first_bytes(reader: &mut impl Read, count: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(count);
    reader.take(count as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The error of a failed read.
fn read_error(path: &Path, compression: Compression, error: io::Error) -> Error {
    if compression == Compression::None || error.raw_os_error().is_some() {
        return Error::io("read", path)(error);
    }
    let name = compression.name();
    if error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<Bomb>) {
        let message = format!("unpacks to over {MAX_RATIO} times its size ({name}), which no text does");
        return Error::file(path, message).with_help("if it is what it should be, unpack it first, and train on that");
    }
    if error.kind() == ErrorKind::UnexpectedEof {
        return Error::file(path, format!("ends in the middle: the {name} file was cut short"))
            .with_help("copy or download it again");
    }
    Error::file(path, format!("is damaged: {error} ({name})")).with_help("copy or download it again")
}

/// Counts what is read.
struct Counted<R> {
    inner: R,
    bytes: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.inner.read(buffer) {
                // A signal; whoever reads above does not expect it.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(count) => {
                    self.bytes.fetch_add(count as u64, Ordering::Relaxed);
                    return Ok(count);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Stops what unpacks to too much.
struct Unpacked<R> {
    decoder: R,
    bytes: u64,
    consumed: Arc<AtomicU64>,
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.decoder.read(buffer)?;
        self.bytes += count as u64;
        if self.bytes > FREE && self.bytes / MAX_RATIO > self.consumed.load(Ordering::Relaxed) {
            return Err(io::Error::other(Bomb));
        }
        Ok(count)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("it unpacks to too much")]
struct Bomb;
