//! The names that Hub and git give to files: SHA-256 of large ones, SHA-1 of git's blobs for small ones.

use super::folder::Found;
use super::token::Token;
use crate::error::{Error, Result};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::io::Read;

/// What is larger always goes over LFS; the Hub says of the rest.
pub(super) const LARGEST_REGULAR: u64 = 10 << 20;
/// Bytes from a file's beginning by which the Hub tells text from the rest.
const SAMPLE: usize = 512;

/// A file and its names.
pub(super) struct Hashed {
    pub file: Found,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
    /// The id of git's blob, of files that may be one.
    pub blob: Option<String>,
    pub sample: Vec<u8>,
}

/// Reads a file once. `progress` gets the bytes of each piece.
///
/// # Errors
/// When it cannot be read, is not as long as it was, or holds the token.
pub(super) fn hash(file: Found, token: &Token, progress: &mut dyn FnMut(u64)) -> Result<Hashed> {
    let small = file.size <= LARGEST_REGULAR;
    let (mut sha256, mut sha1) = (Sha256::new(), Sha1::new());
    sha1.update(format!("blob {}\0", file.size));
    let (mut seam, mut sample, mut read) = (Vec::new(), Vec::new(), 0u64);
    let mut reader = file.content.open(0).map_err(Error::io("open", &file.path))?;
    let mut buffer = vec![0; 1 << 18];
    loop {
        let bytes = reader.read(&mut buffer).map_err(Error::io("read", &file.path))?;
        let piece = &buffer[..bytes];
        read += bytes as u64;
        if bytes == 0 || read > file.size {
            break;
        }
        sha256.update(piece);
        // The end of the piece before, since a token may stand across.
        seam.extend_from_slice(piece);
        if token.is_in(&seam) {
            return Err(Error::file(&file.path, "holds your token of the Hub; nothing was sent")
                .with_help("take it out of the file; if others have seen the file, make a new token"));
        }
        seam.drain(..seam.len().saturating_sub(SAMPLE));
        if small {
            sha1.update(piece);
        }
        sample.extend_from_slice(&piece[..bytes.min(SAMPLE - sample.len())]);
        progress(bytes as u64);
    }
    if read != file.size {
        return Err(
            Error::file(&file.path, "changes while it is read").with_help("wait until it is written, and try again")
        );
    }
    Ok(Hashed {
        sha256: format!("{:x}", sha256.finalize()),
        blob: small.then(|| format!("{:x}", sha1.finalize())),
        sample,
        file,
    })
}

#[cfg(test)]
mod tests {
    use super::super::folder::Content;
    use super::*;

    fn found(bytes: &[u8]) -> Found {
        Found { path: "a".into(), size: bytes.len() as u64, content: Content::Bytes(bytes.into()) }
    }

    #[test]
    fn the_names_are_those_of_git_and_of_lfs() {
        let token = Token::new("hf_secret").unwrap();
        let hashed = hash(found(b"hello\n"), &token, &mut |_| {}).unwrap();
        // `echo hello | git hash-object --stdin`, `echo hello | sha256sum`.
        assert_eq!(hashed.blob.as_deref(), Some("ce013625030ba8dba906f756967f9e9ca394464a"));
        assert_eq!(hashed.sha256, "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
        assert_eq!(hashed.sample, b"hello\n");
        let large = hash(found(&vec![7; LARGEST_REGULAR as usize + 1]), &token, &mut |_| {}).unwrap();
        assert!(large.blob.is_none() && large.sample == [7; SAMPLE]);
    }

    #[test]
    fn a_file_with_the_token_in_it_is_not_sent_and_one_that_changes_neither() {
        let token = Token::new("hf_secret").unwrap();
        let error = hash(found(b"HF_TOKEN=hf_secret"), &token, &mut |_| {}).err().unwrap();
        let told = format!("{error:?} {error}");
        assert!(told.contains("holds your token") && !told.contains("hf_secret"), "{told}");
        for size in [3, 9] {
            let changing = Found { size, ..found(b"hello\n") };
            assert!(hash(changing, &token, &mut |_| {}).err().unwrap().to_string().contains("changes"));
        }
    }
}
