//! What a Parquet file says about itself at its end, checked before the `parquet` crate believes it.
//!
//! The footer is a Thrift structure (compact protocol), of which only the outline matters here: the crate allocates as many
//! entries as a list claims, and follows the columns of a schema as deep as they go. Both end the process where a file lies.

use super::damaged;
use crate::error::{Error, Result};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// The largest footer. It takes some hundred bytes a column and row group.
const MAX_FOOTER: u64 = 64 << 20;
/// How deep columns may lie inside of columns, and parts of the footer inside of others.
const MAX_DEPTH: usize = 64;
/// The field of the footer that is the schema, and the one of its entries that counts children.
const SCHEMA: i16 = 2;
const NUM_CHILDREN: i16 = 5;

/// Checks the footer.
///
/// # Errors
/// When there is none, or when it claims what cannot be.
pub(super) fn check(path: &Path, mut file: &File) -> Result<()> {
    let length = file.metadata().map_err(Error::io("read", path))?.len();
    let mut tail = [0; 8];
    let is_parquet = length >= 12 && {
        file.seek(SeekFrom::End(-8)).map_err(Error::io("read", path))?;
        file.read_exact(&mut tail).map_err(Error::io("read", path))?;
        tail[4..] == *b"PAR1"
    };
    if !is_parquet {
        return Err(damaged(path, "it does not end as one; it may have been cut short"));
    }
    let claimed = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
    if claimed > length - 12 || claimed > MAX_FOOTER {
        return Err(damaged(path, &format!("its description claims {claimed} bytes")));
    }
    file.seek(SeekFrom::End(-8 - claimed as i64)).map_err(Error::io("read", path))?;
    let mut footer = vec![0; claimed as usize];
    file.read_exact(&mut footer).map_err(Error::io("read", path))?;
    check_footer(&footer).ok_or_else(|| damaged(path, "its description makes no sense"))
}

fn check_footer(bytes: &[u8]) -> Option<()> {
    let mut footer = Thrift { rest: bytes };
    footer.structure(0, &mut |footer, id, kind| match (id, kind) {
        (SCHEMA, LIST) => footer.schema(),
        _ => footer.skip(kind, 0),
    })
}

/// Thrift's compact protocol, as far as it must be followed to be skipped.
struct Thrift<'a> {
    rest: &'a [u8],
}

const STOP: u8 = 0;
const I32: u8 = 5;
const LIST: u8 = 9;
const STRUCT: u8 = 12;

impl Thrift<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(byte)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn zigzag(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn bytes(&mut self, count: u64) -> Option<()> {
        self.rest = self.rest.get(usize::try_from(count).ok()?..)?;
        Some(())
    }

    /// The fields of a structure, each handed to `field`, which must take it.
    fn structure(&mut self, depth: usize, field: &mut dyn FnMut(&mut Self, i16, u8) -> Option<()>) -> Option<()> {
        if depth > MAX_DEPTH {
            return None;
        }
        let mut id = 0i16;
        loop {
            let header = self.byte()?;
            let (delta, kind) = (header >> 4, header & 0xF);
            if kind == STOP {
                return Some(());
            }
            // Cut to 16 bits, as the crate does it: none must be taken for another field there than here.
            id = if delta == 0 { self.zigzag()? as i16 } else { id.checked_add(i16::from(delta))? };
            field(self, id, kind)?;
        }
    }

    /// How many entries a list has, and of which kind. They must fit into what is left.
    fn list(&mut self) -> Option<(usize, u8)> {
        let header = self.byte()?;
        let size = if header >> 4 == 15 { self.varint()? } else { u64::from(header >> 4) };
        // The least that an entry takes: a structure has a field of two bytes, and an end.
        let least = if header & 0xF == STRUCT { 3 } else { 1 };
        let fits = size.checked_mul(least)? <= self.rest.len() as u64;
        fits.then_some((size as usize, header & 0xF))
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        match kind {
            1 | 2 => Some(()),
            3 => self.bytes(1),
            4..=6 => self.varint().map(|_| ()),
            7 => self.bytes(8),
            8 => {
                let length = self.varint()?;
                self.bytes(length)
            }
            LIST if depth < MAX_DEPTH => {
                let (size, kind) = self.list()?;
                // A footer has no list of yes and no, whose entries implementations skip in different ways.
                let known = kind > 2 || size == 0;
                known.then(|| (0..size).try_for_each(|_| self.skip(kind, depth + 1)))?
            }
            STRUCT => self.structure(depth + 1, &mut |thrift, _, kind| thrift.skip(kind, depth + 1)),
            _ => None,
        }
    }

    /// The schema: columns in the order of a walk through their tree, each with the number of its children.
    fn schema(&mut self) -> Option<()> {
        let (size, kind) = self.list()?;
        let mut open: Vec<i64> = Vec::new();
        for _ in 0..size {
            if kind != STRUCT {
                return None;
            }
            let mut children = 0;
            self.structure(1, &mut |thrift, id, kind| match (id, kind) {
                (NUM_CHILDREN, I32) => {
                    children = thrift.zigzag()?;
                    Some(())
                }
                _ => thrift.skip(kind, 1),
            })?;
            if children < 0 || children > size as i64 {
                return None;
            }
            if let Some(left) = open.last_mut() {
                *left -= 1;
            }
            if children > 0 {
                open.push(children);
            }
            while open.last() == Some(&0) {
                open.pop();
            }
            if open.len() > MAX_DEPTH {
                return None;
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_list_that_claims_more_than_there_is_makes_no_sense() {
        // Field 4 (row groups): a list of 2^31 - 1 structures.
        let lie = [0x49, 0xFC, 0xFF, 0xFF, 0xFF, 0xFF, 0x07, 0x00];
        assert_eq!(check_footer(&lie), None);
        assert_eq!(check_footer(&[0x00]), Some(()));
    }

    #[test]
    fn a_schema_without_bottom_makes_no_sense() {
        let deep = |columns: usize| {
            // Field 2: a list of structures, each with field 5 = 1 child.
            let mut bytes = vec![0x29, 0xFC, (columns & 0x7F) as u8 | 0x80, (columns >> 7) as u8];
            bytes.extend([0x55, 0x02, 0x00].repeat(columns));
            bytes.push(0);
            bytes
        };
        assert_eq!(check_footer(&deep(20)), Some(()));
        assert_eq!(check_footer(&deep(5000)), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_check_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = check_footer(&bytes);
        }
    }
}
