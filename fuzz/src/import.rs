//! Rules of iptables.

use redirector_user::import;

use super::{connections, round_trip};

/// Whatever the rules are, a valid policy is suggested; if it means exactly what they mean, its own rules say it again.
pub fn run(text: &str) {
    if let Ok(import) = import::import(text) {
        round_trip::check(&import.policy);
        connections::check(&import.policy, text);
    }
}
