//! Which columns of a Parquet file are read: those that are needed, without the parts of them that the `parquet` crate makes no
//! value of (`INTERVAL`, and what a type's name does not fit).

use ::parquet::basic::{ConvertedType, Type as Physical};
use ::parquet::errors::Result;
use ::parquet::schema::types::{SchemaDescPtr, SchemaDescriptor, Type, TypePtr};
use std::sync::Arc;

/// The columns that are read.
pub(super) struct Projection {
    pub schema: SchemaDescPtr,
    /// The names of the others.
    pub left_out: Vec<String>,
}

/// A column that is needed and cannot be read.
pub(super) struct Refused {
    pub column: String,
    pub kind: String,
}

impl Projection {
    /// The columns of `whole` that are needed; where none is, one of them, for the rows to be counted.
    pub fn new(whole: &SchemaDescPtr, needs: &dyn Fn(&str) -> bool) -> Result<std::result::Result<Self, Refused>> {
        let root = whole.root_schema();
        let (mut fields, mut left_out) = (Vec::new(), Vec::new());
        for field in root.get_fields() {
            if !needs(field.name()) {
                left_out.push(field.name().to_string());
                continue;
            }
            match readable(field, false)? {
                Some(field) => fields.push(field),
                None => return Ok(Err(Refused { column: field.name().to_string(), kind: kind(field) })),
            }
        }
        if fields.is_empty() {
            let mut all = root.get_fields().iter();
            if let Some(one) = all.find_map(|field| readable(field, false).transpose()).transpose()? {
                left_out.retain(|name| name != one.name());
                fields.push(one);
            }
        }
        let root = Type::group_type_builder(root.name()).with_fields(fields).build()?;
        Ok(Ok(Self { schema: Arc::new(SchemaDescriptor::new(Arc::new(root))), left_out }))
    }
}

/// A column without the parts that cannot be read; `None` where nothing is left. `entire`: all parts or none, as of a map's
/// key and value.
fn readable(field: &TypePtr, entire: bool) -> Result<Option<TypePtr>> {
    if field.is_primitive() {
        return Ok(has_values(field).then(|| field.clone()));
    }
    let info = field.get_basic_info();
    let is_map = matches!(info.converted_type(), ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE);
    let mut kept = Vec::new();
    for part in field.get_fields() {
        kept.extend(readable(part, is_map)?);
    }
    let all = field.get_fields();
    if kept.len() == all.len() && kept.iter().zip(all).all(|(kept, part)| Arc::ptr_eq(kept, part)) {
        return Ok(Some(field.clone()));
    }
    if kept.is_empty() || entire && kept.len() < all.len() {
        return Ok(None);
    }
    let group = Type::group_type_builder(field.name())
        .with_repetition(info.repetition())
        .with_converted_type(info.converted_type())
        .with_logical_type(info.logical_type_ref().cloned())
        .with_fields(kept);
    Ok(Some(Arc::new(group.build()?)))
}

/// Whether the crate makes values of a primitive column: it ends the process for what it does not know.
fn has_values(field: &Type) -> bool {
    use ConvertedType as T;
    let named = field.get_basic_info().converted_type();
    match field.get_physical_type() {
        Physical::INT32 => matches!(
            named,
            T::NONE
                | T::INT_8
                | T::INT_16
                | T::INT_32
                | T::UINT_8
                | T::UINT_16
                | T::UINT_32
                | T::DATE
                | T::TIME_MILLIS
                | T::DECIMAL
        ),
        Physical::INT64 => matches!(
            named,
            T::NONE | T::INT_64 | T::UINT_64 | T::TIME_MICROS | T::TIMESTAMP_MILLIS | T::TIMESTAMP_MICROS | T::DECIMAL
        ),
        Physical::BYTE_ARRAY => matches!(named, T::NONE | T::UTF8 | T::ENUM | T::JSON | T::BSON | T::DECIMAL),
        Physical::FIXED_LEN_BYTE_ARRAY => matches!(named, T::NONE | T::DECIMAL),
        Physical::BOOLEAN | Physical::INT96 | Physical::FLOAT | Physical::DOUBLE => true,
    }
}

/// A column's type, for people.
fn kind(field: &Type) -> String {
    match field.get_basic_info().converted_type() {
        ConvertedType::NONE if field.is_primitive() => field.get_physical_type().to_string(),
        ConvertedType::NONE => "group".to_string(),
        named => named.to_string(),
    }
}
