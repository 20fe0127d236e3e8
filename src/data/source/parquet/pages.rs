//! The pages of a column, checked on their way into the `parquet` crate, which would fill the memory where they lie: by
//! dictionaries of more entries than bytes, by rows without end, which a few bytes can describe, and by differences of more
//! values than the page has.

use super::MAX_ROW;
use ::parquet::basic::{Encoding, Type as Physical};
use ::parquet::bloom_filter::Sbbf;
use ::parquet::column::page::{Page, PageMetadata, PageReader};
use ::parquet::errors::{ParquetError, Result};
use ::parquet::file::metadata::RowGroupMetaData;
use ::parquet::file::reader::RowGroupReader;
use ::parquet::record::reader::RowIter;
use ::parquet::schema::types::Type;

/// The most values of one column in one row.
const MAX_VALUES: u64 = 1 << 20;

/// A row group whose pages are checked.
pub(super) struct CheckedGroup<'a>(pub Box<dyn RowGroupReader + 'a>);

impl RowGroupReader for CheckedGroup<'_> {
    fn metadata(&self) -> &RowGroupMetaData {
        self.0.metadata()
    }

    fn num_columns(&self) -> usize {
        self.0.num_columns()
    }

    fn get_column_page_reader(&self, index: usize) -> Result<Box<dyn PageReader>> {
        let column = self.metadata().column(index).column_descr();
        let width = 16 - (column.max_rep_level() as u16).leading_zeros();
        let defined = column.max_def_level() > 0;
        let pages = self.0.get_column_page_reader(index)?;
        let text = column.physical_type() == Physical::BYTE_ARRAY;
        Ok(Box::new(CheckedPages { pages, row: Row { width, defined, text, values: 0, most: MAX_VALUES } }))
    }

    fn get_column_bloom_filter(&self, index: usize) -> Option<&Sbbf> {
        self.0.get_column_bloom_filter(index)
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>> {
        self.0.get_row_iter(projection)
    }
}

struct CheckedPages {
    pages: Box<dyn PageReader>,
    row: Row,
}

impl PageReader for CheckedPages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.pages.get_next_page()?;
        if let Some(page) = &page {
            self.row.check(page).map_err(|message| ParquetError::General(message.to_string()))?;
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.pages.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.pages.at_record_boundary()
    }
}

impl Iterator for CheckedPages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

/// The row that a column's pages are in, which may go on in the next one.
struct Row {
    /// Bits of a repetition level; 0 in a column without lists.
    width: u32,
    /// Whether there are definition levels.
    defined: bool,
    /// Whether values are texts.
    text: bool,
    /// Values so far.
    values: u64,
    /// The most values: fewer where the dictionary's texts are long, since each use of one is a copy.
    most: u64,
}

impl Row {
    fn check(&mut self, page: &Page) -> Result<(), &'static str> {
        let (levels, values, count, encoding) = match page {
            // A value of a dictionary takes a byte at least, but for the one empty one.
            Page::DictionaryPage { buf, num_values, .. } if *num_values as usize > buf.len().max(1) => {
                return Err("a dictionary claims more values than it has bytes");
            }
            Page::DictionaryPage { buf, .. } => {
                let longest = if self.text { longest(buf) } else { 1 };
                self.most = MAX_VALUES.min((MAX_ROW as u64 / longest).max(1));
                return Ok(());
            }
            Page::DataPage { num_values, rep_level_encoding, def_level_encoding, encoding, buf, .. } => {
                let old = |encoding: &Encoding| *encoding != Encoding::RLE;
                if self.width > 0 && old(rep_level_encoding) || self.defined && old(def_level_encoding) {
                    // Levels as writers of old packed them, of no fewer bits than there are values.
                    let few = self.width == 0 || u64::from(*num_values) <= MAX_VALUES;
                    return if few { Ok(()) } else { Err("a page has too many values") };
                }
                let (levels, rest) = if self.width > 0 { prefixed(buf)? } else { (&buf[..0], &buf[..]) };
                let (_, values) = if self.defined { prefixed(rest)? } else { (&buf[..0], rest) };
                (levels, values, *num_values, *encoding)
            }
            Page::DataPageV2 { num_values, rep_levels_byte_len, def_levels_byte_len, encoding, buf, .. } => {
                let (levels, rest) = buf.split_at_checked(*rep_levels_byte_len as usize).ok_or(SHORT)?;
                (levels, rest.get(*def_levels_byte_len as usize..).ok_or(SHORT)?, *num_values, *encoding)
            }
        };
        if matches!(
            encoding,
            Encoding::DELTA_BINARY_PACKED | Encoding::DELTA_LENGTH_BYTE_ARRAY | Encoding::DELTA_BYTE_ARRAY
        ) {
            check_differences(values, u64::from(count))?;
        }
        if self.width > 0 { self.count(levels, u64::from(count)) } else { Ok(()) }
    }

    /// Counts the values of each row in repetition levels: runs of one level, and groups of eight packed ones. A level of 0
    /// begins a row.
    fn count(&mut self, mut levels: &[u8], mut left: u64) -> Result<(), &'static str> {
        let width = self.width as usize;
        while left > 0 {
            let header = varint(&mut levels).ok_or(SHORT)?;
            if header & 1 == 0 {
                let bytes = width.div_ceil(8);
                let level = levels.get(..bytes).ok_or(SHORT)?;
                let run = (header >> 1).min(left);
                self.values = if level.iter().all(|&byte| byte == 0) { 1 } else { self.values.saturating_add(run) };
                levels = &levels[bytes..];
                left -= run;
            } else {
                let count = ((header >> 1).saturating_mul(8)).min(left);
                // The last group may be cut where no value is left.
                for index in 0..count as usize {
                    let mut bits = index * width..(index + 1) * width;
                    let set = bits.any(|bit| levels.get(bit / 8).is_some_and(|byte| byte >> (bit % 8) & 1 == 1));
                    self.values = if set { self.values + 1 } else { 1 };
                    if self.values > self.most || index * width / 8 > levels.len() {
                        break;
                    }
                }
                let bytes = (header >> 1).saturating_mul(width as u64).min(levels.len() as u64);
                levels = &levels[bytes as usize..];
                left -= count;
            }
            if self.values > self.most {
                return Err("a row has more than a million values, or 64 MiB, in one column");
            }
        }
        Ok(())
    }
}

/// Bytes of the longest text of a dictionary: each has its length before it.
fn longest(mut dictionary: &[u8]) -> u64 {
    let mut longest = 1;
    while let Some((length, rest)) = dictionary.split_first_chunk() {
        let length = u32::from_le_bytes(*length);
        longest = longest.max(u64::from(length));
        dictionary = rest.get(length as usize..).unwrap_or_default();
    }
    longest
}

const SHORT: &str = "a page is cut short";

/// Levels with their length before them, and what follows.
fn prefixed(bytes: &[u8]) -> Result<(&[u8], &[u8]), &'static str> {
    let (length, rest) = bytes.split_first_chunk().ok_or(SHORT)?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or(SHORT)
}

/// Values as differences begin with the sizes of their blocks, and with how many they are.
fn check_differences(mut values: &[u8], count: u64) -> Result<(), &'static str> {
    if values.is_empty() {
        return Ok(());
    }
    let mut next = || varint(&mut values).ok_or(SHORT);
    let (block, parts, total) = (next()?, next()?, next()?);
    if block > MAX_VALUES || parts > block || total > count {
        return Err("a page claims more values than it has");
    }
    Ok(())
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_by_row_and_across_pages() {
        let mut row = Row { width: 1, defined: true, text: false, values: 0, most: MAX_VALUES };
        // A run of one 0, a run of five 1, and packed: 1 1 0 1 0 0 0 0.
        row.count(&[2, 0, 10, 1, 3, 0b1011], 10).unwrap();
        assert_eq!(row.values, 2);
        row.count(&[8, 1], 4).unwrap();
        assert_eq!(row.values, 6);
    }

    #[test]
    fn a_row_without_end_is_refused() {
        let mut row = Row { width: 1, defined: true, text: false, values: 0, most: MAX_VALUES };
        // A run of 2^31 - 1.
        assert!(row.count(&[0xFE, 0xFF, 0xFF, 0xFF, 0x0F, 1], (1 << 31) - 1).is_err());
        assert!(Row { width: 1, defined: true, text: false, values: 0, most: MAX_VALUES }.count(&[], 1).is_err());
        // Ten uses of a text of 32 MiB.
        let mut row = Row { width: 1, defined: true, text: true, values: 0, most: MAX_VALUES };
        let length = 1u32 << 25;
        let mut dictionary = length.to_le_bytes().to_vec();
        dictionary.resize(4 + length as usize, b'a');
        let page =
            Page::DictionaryPage { buf: dictionary.into(), num_values: 1, encoding: Encoding::PLAIN, is_sorted: false };
        row.check(&page).unwrap();
        row.count(&[2, 0], 1).unwrap();
        assert!(row.count(&[20, 1], 10).is_err());
    }
}
