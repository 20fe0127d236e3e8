//! How large values may get that a template makes.
//!
//! minijinja counts steps and bytes, but not what a value is when it is written out, compared or dropped: a list may hold one
//! list twice, and so on, or itself by way of a namespace. So what is made by `[…]`, `{…}`, `+`, `*` and `set` is walked through
//! once, as if it were written out. A template of somebody else's must not take all memory, or the stack.

use super::functions::MAX_TEXT;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// The deepest nesting, of which JSON from a file has 127.
const MAX_DEPTH: usize = 200;
/// The most values in one.
const MAX_VALUES: usize = 4 << 20;
/// The most bytes of its texts.
const MAX_BYTES: usize = 4 * MAX_TEXT;
/// How many values cost a step.
const VALUES_A_STEP: usize = 4;

/// The filter that [`translate`](super::translate) puts behind what a template makes. Lists that minijinja puts together when
/// they are read become lists.
///
/// # Errors
/// When the value is too large, nested too deeply, or has a namespace in it.
pub fn measured(state: &State, value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Iterable => {
            let items = super::python::collected(state, value.try_iter()?)?;
            measured(state, Value::from(items))
        }
        ValueKind::Seq | ValueKind::Map if !is_namespace(&value) => {
            let mut walk = Walk { values: 0, bytes: 0 };
            walk.through(&value, 0)?;
            state.consume_fuel((walk.values / VALUES_A_STEP) as u64)?;
            Ok(value)
        }
        _ => Ok(value),
    }
}

/// The same of what a namespace is given, which may be no namespace: such a one could hold itself.
///
/// # Errors
/// As [`measured`].
pub fn of_namespace(state: &State, value: Value) -> Result<Value, Error> {
    if is_namespace(&value) { Err(namespace_inside()) } else { measured(state, value) }
}

/// `namespace(mapping, **more)`.
pub fn namespace(state: &State, first: Option<Value>, more: Kwargs) -> Result<Value, Error> {
    let given = super::functions::dict(state, first, more)?;
    minijinja::functions::namespace(Some(given.into()))
}

fn is_namespace(value: &Value) -> bool {
    value.kind() == ValueKind::Map
        && value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

fn namespace_inside() -> Error {
    Error::new(ErrorKind::InvalidOperation, "a namespace may not be part of another value")
}

struct Walk {
    values: usize,
    bytes: usize,
}

impl Walk {
    fn through(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.values += 1;
        if depth > MAX_DEPTH || self.values > MAX_VALUES || self.bytes > MAX_BYTES {
            return Err(Error::new(ErrorKind::OutOfFuel, "a value is too large, or nested too deeply"));
        }
        match value.kind() {
            ValueKind::String => self.bytes += value.as_str().unwrap_or_default().len(),
            ValueKind::Seq | ValueKind::Iterable => {
                for item in value.try_iter()? {
                    self.through(&item, depth + 1)?;
                }
            }
            ValueKind::Map if is_namespace(value) => return Err(namespace_inside()),
            ValueKind::Map => {
                for key in value.try_iter()? {
                    self.through(&key, depth + 1)?;
                    self.through(&value.get_item(&key)?, depth + 1)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}
