//! Where each key and value of a YAML text stands. It owns places, not meaning: the values are read by serde.

use saphyr_parser::{Event, Parser, Span};
use std::collections::HashMap;

/// Nothing that a recipe holds lies deeper; what does is not recorded, so that hostile nesting costs nothing.
const MAX_DEPTH: usize = 8;
/// No recipe nests so deep; deeper text is not handed on, since reading it takes time by the square of its depth.
const TOO_DEEP: usize = 32;
/// The most places that are recorded.
const MAX_PLACES: usize = 10_000;

/// A stretch of one line. All three count characters, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub line: usize,
    pub column: usize,
    pub width: usize,
}

impl Place {
    fn of(span: Span) -> Self {
        let one_line = span.start.line() == span.end.line();
        let width = if one_line { span.end.col().saturating_sub(span.start.col()) } else { usize::MAX };
        Self { line: span.start.line(), column: span.start.col() + 1, width }
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    key: Option<Place>,
    value: Place,
}

/// A key that stands twice in its mapping.
#[derive(Debug, Clone)]
pub(super) struct Duplicate {
    pub path: String,
    pub first: Place,
    pub second: Place,
}

/// The places of a text, by dotted path (`lora.target_modules[0]`).
#[derive(Debug, Default)]
pub(super) struct Locations {
    entries: HashMap<String, Entry>,
    pub duplicates: Vec<Duplicate>,
    /// Where a second document begins.
    pub second_document: Option<Place>,
    /// Where the first key or value stands.
    pub start: Option<Place>,
    /// Where the nesting passes what any recipe needs.
    pub too_deep: Option<Place>,
    /// Where and why the reading ended early.
    pub error: Option<(Place, String)>,
}

enum Frame {
    Mapping { path: Option<String>, key: Option<(String, Place)> },
    Sequence { path: Option<String>, next: usize },
}

/// Reads as far as the text is YAML.
pub(super) fn locate(text: &str) -> Locations {
    let mut locations = Locations::default();
    let mut stack: Vec<Frame> = Vec::new();
    let mut open: Vec<Option<String>> = Vec::new();
    let mut documents = 0;
    let mut parser = Parser::new_from_str(text);
    while let Some(parsed) = parser.next_event() {
        let (event, span) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => {
                let at = *error.marker();
                locations.error = Some((Place::of(Span::empty(at)), error.info().to_owned()));
                break;
            }
        };
        let place = Place::of(span);
        if stack.len() > TOO_DEEP {
            locations.too_deep = Some(place);
            break;
        }
        match event {
            Event::StreamEnd => break,
            Event::DocumentStart(_) => {
                documents += 1;
                if documents == 2 {
                    locations.second_document = Some(place);
                    break;
                }
            }
            Event::Scalar(text, ..) => {
                node(&mut locations, &mut stack, place, Some(&text));
            }
            Event::Alias(_) => {
                node(&mut locations, &mut stack, place, None);
            }
            Event::MappingStart(..) => {
                let path = node(&mut locations, &mut stack, place, None);
                open.push(path.clone());
                stack.push(Frame::Mapping { path, key: None });
            }
            Event::SequenceStart(..) => {
                let path = node(&mut locations, &mut stack, place, None);
                open.push(path.clone());
                stack.push(Frame::Sequence { path, next: 0 });
            }
            Event::MappingEnd | Event::SequenceEnd => {
                stack.pop();
                if let Some(Some(path)) = open.pop() {
                    locations.close(&path, span);
                }
            }
            Event::Nothing | Event::StreamStart | Event::DocumentEnd => {}
        }
    }
    locations
}

/// Takes in a key or a value; returns the path of what lies below it, unless that lies too deep.
fn node(locations: &mut Locations, stack: &mut [Frame], place: Place, text: Option<&str>) -> Option<String> {
    if text.is_some() {
        locations.start.get_or_insert(place);
    }
    let depth = stack.len();
    let (path, key) = match stack.last_mut() {
        None => (Some(String::new()), None),
        Some(Frame::Mapping { path, key }) => match key.take() {
            None => {
                *key = Some((text.unwrap_or("?").to_owned(), place));
                return None;
            }
            Some((name, key_place)) => (path.as_deref().map(|path| join(path, &name)), Some(key_place)),
        },
        Some(Frame::Sequence { path, next }) => {
            *next += 1;
            (path.as_deref().map(|path| format!("{path}[{}]", *next - 1)), None)
        }
    };
    let path = path.filter(|_| depth < MAX_DEPTH && locations.entries.len() < MAX_PLACES)?;
    let seen = locations.entries.get(&path).and_then(|entry| entry.key);
    if let (Some(first), Some(second)) = (seen, key) {
        locations.duplicates.push(Duplicate { path: path.clone(), first, second });
    } else {
        locations.entries.insert(path.clone(), Entry { key, value: place });
    }
    Some(path)
}

/// `section.key`, or `key` at the top.
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// The path one step up: `lora.r` → `lora`, `a[0]` → `a`, `lora` → the empty path; `None` above the top.
pub(super) fn parent(path: &str) -> Option<&str> {
    if path.is_empty() { None } else { Some(path.rfind(['.', '[']).map_or("", |end| &path[..end])) }
}

impl Locations {
    /// Widens a list or mapping in brackets to its closing one.
    fn close(&mut self, path: &str, span: Span) {
        if let Some(entry) = self.entries.get_mut(path)
            && entry.value.line == span.end.line()
        {
            entry.value.width = (span.end.col() + 1).saturating_sub(entry.value.column);
        }
    }

    /// The key's place.
    pub fn key(&self, path: &str) -> Option<Place> {
        self.entries.get(path).and_then(|entry| entry.key)
    }

    /// The value's place; the key's where the value is empty or begins on a line below.
    pub fn value(&self, path: &str) -> Option<Place> {
        let entry = self.entries.get(path)?;
        match entry.key {
            Some(key) if key.line != entry.value.line || entry.value.width == 0 => Some(key),
            _ => Some(entry.value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_are_found() {
        let text = "# x\nlora:\n  r: 16 # rank\n  target_modules: [q_proj, \"é\", v]\nname: é # y\ndata:\n  train:\n";
        let locations = locate(text);
        let place = |line, column, width| Some(Place { line, column, width });
        assert_eq!(locations.key("lora"), place(2, 1, 4));
        assert_eq!(locations.value("lora"), place(2, 1, 4), "a section's value begins below, so its key is shown");
        assert_eq!(locations.value("lora.r"), place(3, 6, 2));
        assert_eq!(locations.value("lora.target_modules"), place(4, 19, 16));
        assert_eq!(locations.value("lora.target_modules[2]"), place(4, 33, 1));
        assert_eq!(locations.value("name"), place(5, 7, 1));
        assert_eq!(locations.value("data.train"), place(7, 3, 5));
        assert_eq!(locations.start, place(2, 1, 4));
    }

    #[test]
    fn duplicates_and_second_documents_are_noticed() {
        let locations = locate("lora:\n  r: 1\n  r: 2\n---\na: b\n");
        assert_eq!(locations.duplicates.len(), 1);
        assert_eq!((locations.duplicates[0].path.as_str(), locations.duplicates[0].second.line), ("lora.r", 3));
        assert_eq!(locations.second_document.map(|place| place.line), Some(4));
    }

    #[test]
    fn deep_nesting_is_not_recorded() {
        let locations = locate(&"[".repeat(100_000));
        assert!(locations.entries.len() <= MAX_DEPTH + 1);
    }
}
