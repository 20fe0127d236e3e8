//! What Python's `str`, `re` and `string` say of characters.

/// Whether `str.isspace` holds, which `str.split()` and `\s` of `re` ask: Unicode's `White_Space` and the separators
/// U+001C to U+001F.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// The text without the characters of `string.punctuation`, which are those of ASCII.
pub(super) fn without_punctuation(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_punctuation()).collect()
}
