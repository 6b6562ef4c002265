//! A policy file.

use redirector_user::policy::file;

use super::{connections, round_trip};

/// What is accepted is a valid policy that survives being printed and means what its rules mean.
pub fn run(text: &str) {
    if let Ok(policy) = file::parse(text) {
        round_trip::check(&policy);
        connections::check(&policy, text);
    }
}
