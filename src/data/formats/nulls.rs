//! Nulls that a table put into an object: Parquet and Arrow have one struct for all rows, so each row's has a member, null,
//! for every key that any row has. `datasets` and pandas write them into JSON too.

use serde_json::{Map, Value};
use std::borrow::Cow;

/// Whether an object inside of `value` (or `value` itself) has a member that is null.
fn has(value: &Value) -> bool {
    match value {
        Value::Object(object) => object.values().any(|member| member.is_null() || has(member)),
        Value::Array(list) => list.iter().any(has),
        _ => false,
    }
}

/// Takes members that are null out of all objects in `value`. Entries of a list stay: no table adds one.
fn take_out(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|_, member| !member.is_null());
            object.values_mut().for_each(take_out);
        }
        Value::Array(list) => list.iter_mut().for_each(take_out),
        _ => {}
    }
}

/// A value whose objects have no member that is null. JSON in a text keeps its nulls.
pub(super) fn without(value: &Value) -> Cow<'_, Value> {
    if !has(value) {
        return Cow::Borrowed(value);
    }
    let mut value = value.clone();
    take_out(&mut value);
    Cow::Owned(value)
}

/// An object whose values are as [`without`] has them; its own members stay.
pub(super) fn within(object: &Map<String, Value>) -> Cow<'_, Map<String, Value>> {
    if !object.values().any(has) {
        return Cow::Borrowed(object);
    }
    let mut object = object.clone();
    object.values_mut().for_each(take_out);
    Cow::Owned(object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn members_go_at_every_depth_and_entries_and_texts_stay() {
        let value = json!({"a": null, "b": {"c": null, "d": [1, null, {"e": null, "f": 0}]}, "g": "{\"h\": null}"});
        assert_eq!(*without(&value), json!({"b": {"d": [1, null, {"f": 0}]}, "g": "{\"h\": null}"}));
        let turn = json!({"content": null, "tool_calls": [{"x": {"y": null}}]});
        assert_eq!(json!(*within(turn.as_object().unwrap())), json!({"content": null, "tool_calls": [{"x": {}}]}));
        assert!(matches!(without(&json!([null, 1])), Cow::Borrowed(_)));
    }
}
