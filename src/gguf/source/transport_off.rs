//! In place of HTTP where moeplan is built without the feature `remote`.

use std::io::Read;

use super::client::Limits;
use super::error::Failure;

/// What a server answered.
pub(super) struct Answer {
    /// The status code.
    pub status: u16,
    /// Header names in lower case, and their values.
    pub headers: Vec<(String, String)>,
    /// The body, not yet read.
    pub body: Box<dyn Read + Send>,
}

/// Sends nothing.
#[derive(Debug, Clone)]
pub(super) struct Transport;

impl Transport {
    /// The one that refuses.
    pub fn new(_: &Limits) -> Self {
        Self
    }

    /// Refuses.
    pub fn get(&self, _: &str, _: &[(&str, String)], _: bool) -> Result<Answer, Failure> {
        Err(Failure::NotBuilt)
    }
}
