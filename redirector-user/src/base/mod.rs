//! What every room uses: errors, bounded input, text that is shown.

pub mod error;
pub mod input;
pub mod text;

pub use error::{Context, Error, Result};
