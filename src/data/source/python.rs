//! JSON as Python and others write it: `NaN`, `Infinity` and `-Infinity`, which JSON does not have, and a comma behind a row.

use serde_json::Value;

/// Numbers that JSON does not have. They become null.
const NUMBERS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// A text of JSON as a value. `alone`: it is a line of its own, behind which a comma may stand.
///
/// # Errors
/// At which byte it stops to be JSON, and why.
pub(super) fn from_str(text: &str, alone: bool) -> Result<Value, (usize, String)> {
    let error = match serde_json::from_str(text) {
        Ok(value) => return Ok(value),
        Err(error) => place(text, &error),
    };
    let row = text.trim_end();
    let row = if alone { row.strip_suffix(',').unwrap_or(row) } else { row };
    let Some((plain, changes)) = without_numbers(row) else {
        return if row.len() < text.trim_end().len() {
            serde_json::from_str(row).map_err(|_| error)
        } else {
            Err(error)
        };
    };
    serde_json::from_str(&plain).map_err(|error| {
        let (at, reason) = place(&plain, &error);
        let shift: isize = changes.iter().take_while(|(changed, _)| *changed < at).map(|(_, longer)| longer).sum();
        (at.saturating_add_signed(-shift), reason)
    })
}

/// Where an error lies, in bytes, and what it is.
fn place(text: &str, error: &serde_json::Error) -> (usize, String) {
    let lines = text.split_inclusive('\n').take(error.line().saturating_sub(1));
    let at = lines.map(str::len).sum::<usize>() + error.column().saturating_sub(1);
    let reason = error.to_string();
    (at, reason.split(" at line ").next().unwrap_or_default().to_owned())
}

/// The text with null in the place of [`NUMBERS`], and for each of these where it ends in the new text and by how much it is
/// longer. `None` where there is none.
fn without_numbers(text: &str) -> Option<(String, Vec<(usize, isize)>)> {
    let (mut plain, mut changes) = (String::with_capacity(text.len() + 8), Vec::new());
    let (mut rest, mut before) = (text, b':');
    while let Some(first) = rest.bytes().next() {
        let number = NUMBERS.iter().find(|number| {
            rest.starts_with(**number)
                && matches!(before, b':' | b',' | b'[')
                && rest[number.len()..]
                    .bytes()
                    .next()
                    .is_none_or(|next| matches!(next, b',' | b'}' | b']') || next.is_ascii_whitespace())
        });
        let length = match (number, first) {
            (Some(number), _) => {
                plain.push_str("null");
                changes.push((plain.len(), 4 - number.len() as isize));
                rest = &rest[number.len()..];
                before = b'l';
                continue;
            }
            (None, b'"') => string(rest),
            // What is not ASCII stands in texts alone; elsewhere it is an error, wherever it is cut.
            (None, _) => rest.chars().next().map_or(1, char::len_utf8),
        };
        plain.push_str(&rest[..length]);
        if !first.is_ascii_whitespace() {
            before = first;
        }
        rest = &rest[length..];
    }
    (!changes.is_empty()).then_some((plain, changes))
}

/// The length of the text in quotes that begins here.
fn string(text: &str) -> usize {
    let (mut escaped, mut bytes) = (false, text.bytes().enumerate().skip(1));
    let end = bytes.find(|(_, byte)| {
        let ends = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        ends
    });
    end.map_or(text.len(), |(at, _)| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// What Python 3.12's `json.loads` reads, with null for the three numbers.
    #[test]
    fn numbers_that_json_does_not_have_are_null() {
        for (text, value) in [
            (r#"{"a": NaN, "b": [Infinity,-Infinity , 1]}"#, json!({"a": null, "b": [null, null, 1]})),
            (r#"{"NaN": "x, NaN", "b":NaN}"#, json!({"NaN": "x, NaN", "b": null})),
            (r#"{"a\\": "\": NaN", "é": NaN}"#, json!({"a\\": "\": NaN", "é": null})),
            ("{\"a\": 1},", json!({"a": 1})),
            ("{\"a\": NaN},", json!({"a": null})),
        ] {
            assert_eq!(from_str(text, true).unwrap(), value, "{text}");
        }
        for text in [r#"{"a": NaNa}"#, r#"{"a": -NaN}"#, r"{NaN: 1}", r#"{"a": nan}"#, "{\"a\": 1},,", "NaN NaN"] {
            assert!(from_str(text, true).is_err(), "{text}");
        }
        assert!(from_str("{},", false).is_err());
        let (at, _) = from_str(r#"{"a": NaN, "b": -Infinity, "c": oops}"#, true).unwrap_err();
        assert!((32..=33).contains(&at), "{at}");
    }

    proptest! {
        #[test]
        fn what_is_json_stays_and_nothing_panics(text in r#"[\[\]{}",:\\é NaInfty1-]{0,40}"#) {
            match serde_json::from_str::<Value>(&text) {
                Ok(value) => prop_assert_eq!(from_str(&text, true), Ok(value)),
                Err(_) => if let Err((at, _)) = from_str(&text, true) { prop_assert!(at <= text.len() + 1) },
            }
        }
    }
}
