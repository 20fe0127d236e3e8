//! The pages of a column, checked on their way into the `parquet` crate, which would fill the memory where they lie: by
//! dictionaries of more entries than bytes, and by rows without end, which a few bytes can describe.

use ::parquet::basic::Encoding;
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
        let max_level = self.metadata().column(index).column_descr().max_rep_level();
        let width = 16 - (max_level as u16).leading_zeros();
        Ok(Box::new(CheckedPages { pages: self.0.get_column_page_reader(index)?, row: Row { width, values: 0 } }))
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
    /// Values so far.
    values: u64,
}

impl Row {
    fn check(&mut self, page: &Page) -> Result<(), &'static str> {
        match page {
            // A value of a dictionary takes a byte at least, but for the one empty one.
            Page::DictionaryPage { buf, num_values, .. } if *num_values as usize > buf.len().max(1) => {
                Err("a dictionary claims more values than it has bytes")
            }
            Page::DictionaryPage { .. } => Ok(()),
            _ if self.width == 0 => Ok(()),
            Page::DataPage { num_values, rep_level_encoding: Encoding::RLE, buf, .. } => {
                let length = buf.get(..4).ok_or("a page is too short")?;
                let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
                let levels = buf.get(4..).and_then(|rest| rest.get(..length)).ok_or("a page is too short")?;
                self.count(levels, u64::from(*num_values))
            }
            // An encoding of old, of no fewer bits than there are values.
            Page::DataPage { num_values, .. } if u64::from(*num_values) <= MAX_VALUES => Ok(()),
            Page::DataPage { .. } => Err("a page has too many values"),
            Page::DataPageV2 { num_values, rep_levels_byte_len, buf, .. } => {
                let levels = buf.get(..*rep_levels_byte_len as usize).ok_or("a page is too short")?;
                self.count(levels, u64::from(*num_values))
            }
        }
    }

    /// Counts the values of each row in repetition levels: runs of one level, and groups of eight packed ones. A level of 0
    /// begins a row.
    fn count(&mut self, mut levels: &[u8], mut left: u64) -> Result<(), &'static str> {
        let width = self.width as usize;
        while left > 0 {
            let header = varint(&mut levels).ok_or("the lists of a page are cut short")?;
            if header & 1 == 0 {
                let bytes = width.div_ceil(8);
                let level = levels.get(..bytes).ok_or("the lists of a page are cut short")?;
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
                    if self.values > MAX_VALUES || index * width / 8 > levels.len() {
                        break;
                    }
                }
                let bytes = (header >> 1).saturating_mul(width as u64).min(levels.len() as u64);
                levels = &levels[bytes as usize..];
                left -= count;
            }
            if self.values > MAX_VALUES {
                return Err("a row has more than a million values in one column");
            }
        }
        Ok(())
    }
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
        let mut row = Row { width: 1, values: 0 };
        // A run of one 0, a run of five 1, and packed: 1 1 0 1 0 0 0 0.
        row.count(&[2, 0, 10, 1, 3, 0b1011], 10).unwrap();
        assert_eq!(row.values, 2);
        row.count(&[8, 1], 4).unwrap();
        assert_eq!(row.values, 6);
    }

    #[test]
    fn a_row_without_end_is_refused() {
        let mut row = Row { width: 1, values: 0 };
        // A run of 2^31 - 1.
        assert!(row.count(&[0xFE, 0xFF, 0xFF, 0xFF, 0x0F, 1], (1 << 31) - 1).is_err());
        assert!(Row { width: 1, values: 0 }.count(&[], 1).is_err());
    }
}
