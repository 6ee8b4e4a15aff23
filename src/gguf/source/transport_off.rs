//! In place of HTTP where moeplan is built without the feature `remote`.

use std::sync::Arc;

use super::client::{Answer, Limits, Transport};
use super::error::Failure;

/// Sends nothing.
struct Nothing;

/// The one that refuses.
pub(super) fn http(_: &Limits) -> Arc<dyn Transport> {
    Arc::new(Nothing)
}

impl Transport for Nothing {
    fn get(&self, _: &str, _: &[(&str, String)], _: bool) -> Result<Answer, Failure> {
        Err(Failure::NotBuilt)
    }
}
