//! upgrade: the programs of this version in place of those that an instance runs.

use super::directory::Directory;
use super::refresh::{Refreshed, renew};
use crate::base::error::Result;

/// Swaps in the programs of this version, link by link and without a moment in which none runs, and
/// refreshes.
///
/// # Errors
///
/// [`crate::Error::unsupported`] if the instance has another map layout: its programs would not understand it.
pub fn upgrade(root: &Directory, name: &str) -> Result<Refreshed> {
    renew(root, name, None, true)
}
