//! Bounded waiting for a condition. The only place of the package that sleeps.

use std::time::{Duration, Instant};

/// How long a test waits for something that normally takes milliseconds; generous because CI machines stall.
const WAIT_TIMEOUT: Duration = Duration::from_secs(15);

/// A time that is long enough on a real machine, on this one: `REDIRECTOR_TESTS_SLOWNESS` times as long, which
/// `cargo xtask vm` sets where the machine is emulated.
pub fn long_enough(time: Duration) -> Duration {
    time * slowness()
}

/// Whether the machine is many times slower than a real one.
pub fn is_slow() -> bool {
    slowness() > 1
}

fn slowness() -> u32 {
    let told = std::env::var("REDIRECTOR_TESTS_SLOWNESS").ok().and_then(|text| text.parse().ok());
    told.unwrap_or(1).max(1)
}

/// How long to wait for something that normally takes milliseconds.
pub fn patience() -> Duration {
    long_enough(WAIT_TIMEOUT)
}

/// Asks `condition` until it gives something, for at most [`patience`].
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + patience();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(found) = condition() {
            return Ok(found);
        }
        anyhow::ensure!(Instant::now() < deadline, "gave up waiting after {:?}: {what}", patience());
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
