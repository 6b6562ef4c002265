//! How long the command takes that starts redirection, and the one that ends it.

use std::time::Instant;

use serde::Serialize;

use super::stats::Estimate;
use super::{Settings, sys};
use redirector_tests::harness::product::{Instance, exit, redirector};
use redirector_tests::harness::world::World;

/// Wall time of the whole process, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Attach {
    /// `redirector attach` to a pod in which nothing runs yet.
    pub attach_ms: Estimate,
    /// `redirector detach`.
    pub detach_ms: Estimate,
}

/// Attaches and detaches a number of times.
pub fn measure(settings: Settings) -> anyhow::Result<Attach> {
    let world = World::new()?;
    let (mut attaches, mut detaches) = (Vec::new(), Vec::new());
    for _ in 0..settings.attaches {
        sys::go_on()?;
        let start = Instant::now();
        let instance = Instance::attach(world.pod(), &[], &[])?;
        attaches.push(start.elapsed().as_secs_f64() * 1e3);
        let start = Instant::now();
        redirector(&["detach", "--name", instance.name()], &[])?.expect(exit::OK)?;
        detaches.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(Attach { attach_ms: Estimate::of(attaches), detach_ms: Estimate::of(detaches) })
}
