//! The order of the rows of q and k. For Llama-family models llama.cpp interleaves the two halves of each head, to suit
//! its rotary embedding. Rows hold whole quantization blocks, so changing the order moves bytes and loses nothing.

/// Rows in GGUF's order, brought into Hugging Face's: within a head of `d` rows, Hugging Face's row `j·d/2 + i` is
/// GGUF's row `2i + j`.
///
/// `None` when the rows do not divide into `heads` heads of an even number of rows, or the bytes into rows.
pub fn to_hugging_face(bytes: &[u8], rows: usize, heads: usize) -> Option<Vec<u8>> {
    reorder(bytes, rows, heads, |row, half| 2 * (row % half) + row / half)
}

/// The inverse of [`to_hugging_face`], for what is written to GGUF.
pub fn to_gguf(bytes: &[u8], rows: usize, heads: usize) -> Option<Vec<u8>> {
    reorder(bytes, rows, heads, |row, half| (row % 2) * half + row / 2)
}

/// What is wrong when [`to_hugging_face`] is `None`.
pub(in crate::weights) fn misfit(tensor: &str, rows: usize, heads: usize) -> String {
    format!("tensor `{tensor}`: {rows} rows are not {heads} heads of an even number of rows")
}

/// Row `r` of each head of the result is the head's row `source(r, d/2)`.
fn reorder(bytes: &[u8], rows: usize, heads: usize, source: impl Fn(usize, usize) -> usize) -> Option<Vec<u8>> {
    if heads == 0 || rows == 0 || !rows.is_multiple_of(2 * heads) || !bytes.len().is_multiple_of(rows) {
        return None;
    }
    let (row_bytes, dimension) = (bytes.len() / rows, rows / heads);
    let mut out = Vec::with_capacity(bytes.len());
    for head in 0..heads {
        for row in 0..dimension {
            let from = (head * dimension + source(row, dimension / 2)) * row_bytes;
            out.extend_from_slice(&bytes[from..from + row_bytes]);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// llama.cpp's converter: `w.reshape(heads, 2, d/2, in).swapaxes(1, 2)`, written out for 2 heads of 6 rows.
    #[test]
    fn the_order_is_llama_cpps() {
        let hugging_face: Vec<u8> = (0..12).flat_map(|row| [row, 100 + row]).collect();
        let gguf: Vec<u8> =
            [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11].into_iter().flat_map(|row| [row, 100 + row]).collect();
        assert_eq!(to_gguf(&hugging_face, 12, 2).unwrap(), gguf);
        assert_eq!(to_hugging_face(&gguf, 12, 2).unwrap(), hugging_face);
    }

    #[test]
    fn odd_heads_and_ragged_rows_are_refused() {
        assert!(to_hugging_face(&[0; 6], 6, 2).is_none());
        assert!(to_hugging_face(&[0; 7], 4, 2).is_none());
        assert!(to_hugging_face(&[0; 8], 4, 0).is_none());
        assert!(to_hugging_face(&[], 0, 1).is_none());
    }
}
