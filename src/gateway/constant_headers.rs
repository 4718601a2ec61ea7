//! Header fields that a route sets to a constant value: towards the application, or towards the
//! client.

use http::header::Entry;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::headers::same_folded;

/// Fields with one constant value each.
#[derive(Debug, Default)]
pub struct ConstantHeaders(Box<[(HeaderName, HeaderValue)]>);

impl ConstantHeaders {
    /// These fields. The value of a secret must be marked as sensitive.
    pub fn new(fields: Vec<(HeaderName, HeaderValue)>) -> Self {
        Self(fields.into_boxed_slice())
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &HeaderName> {
        self.0.iter().map(|(name, _)| name)
    }

    /// Whether an application may read a field of this name as one of these.
    pub fn include(&self, name: &HeaderName) -> bool {
        self.0.iter().any(|(own, _)| own == name || same_folded(own.as_str(), name.as_str()))
    }

    /// Sets every field, whatever its value was.
    pub fn replace_in(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.0 {
            headers.insert(name, value.clone());
        }
    }

    /// Sets the fields that are absent.
    pub fn add_to(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.0 {
            if let Entry::Vacant(absent) = headers.entry(name) {
                absent.insert(value.clone());
            }
        }
    }
}

/// What people see of a value: a secret is masked.
pub fn shown(value: &HeaderValue) -> HeaderValue {
    if value.is_sensitive() { HeaderValue::from_static("[secret]") } else { value.clone() }
}
