//! Bounded waiting for a condition. The only place of the package that sleeps.

use std::time::{Duration, Instant};

/// How long a test waits for something that normally takes milliseconds; generous because CI machines stall.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Asks `condition` until it gives something, for at most [`PATIENCE`].
///
/// # Errors
/// When the time is up, naming `what` was awaited.
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(found) = condition() {
            return Ok(found);
        }
        anyhow::ensure!(Instant::now() < deadline, "gave up waiting after {PATIENCE:?}: {what}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
