//! Attach and detach, again and again, at several pods at once.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};

use crate::harness::campaign::kernel_memory;
use crate::harness::product::bpffs::Bpffs;
use crate::harness::product::exit;
use crate::harness::product::objects::{Objects, counts, expect_untouched};
use crate::harness::world::{Pod, PodOptions, World};

/// An attach waits for the kernel much of its time.
const PODS: usize = 8;

/// The figures.
#[derive(Debug)]
pub struct Cycled {
    cycles: usize,
    time: Duration,
    /// All that were attached.
    attach: Duration,
    detach: Duration,
    /// Programs, maps and links that the cycles have made.
    made: [usize; 3],
    /// Programs, maps and links of the whole machine before and after, and the KiB that the kernel holds for itself.
    machine: [([usize; 3], u64); 2],
    /// What is left of the cycles.
    pub left: Option<String>,
}

impl fmt::Display for Cycled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = |time: Duration| time.as_secs_f64() * 1000.0 / self.cycles.max(1) as f64;
        let [programs, maps, links] = self.made;
        let [(before, kib_before), (after, kib_after)] = self.machine;
        write!(
            f,
            "{} cycles at {PODS} pods at once, {:.1} ms each (attach {:.0} ms and detach {:.0} ms beside seven others); \
             {programs} programs, {maps} maps and {links} links made, {}; the machine's programs, maps, links, MiB: \
             {before:?}, {} before, {after:?}, {} after",
            self.cycles,
            each(self.time),
            each(self.attach),
            each(self.detach),
            self.left.as_deref().unwrap_or("0 left"),
            kib_before / 1024,
            kib_after / 1024,
        )
    }
}

/// What a pod's cycles have made and taken.
#[derive(Default)]
struct Made {
    objects: Objects,
    attach: Duration,
    detach: Duration,
}

/// Makes so many cycles; the last one's detach may be left out, as a bug would.
pub fn cycles(count: usize, has_last_detach: bool) -> anyhow::Result<Cycled> {
    let (world, bpffs) = (World::with(&vec![PodOptions::default(); PODS])?, Bpffs::new()?);
    let machine = || anyhow::Ok((counts()?, kernel_memory()?));
    let before = machine()?;
    let (next, begun) = (AtomicUsize::new(0), Instant::now());
    let work = |pod: &Pod| {
        let mut made = Made::default();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return anyhow::Ok(made);
            }
            let is_left = !has_last_detach && number + 1 == count;
            cycle(&bpffs, pod, number, is_left, &mut made).with_context(|| format!("cycle {number}"))?;
        }
    };
    let mut made = Made::default();
    std::thread::scope(|scope| {
        let pods: Vec<_> = world.pods.iter().map(|pod| scope.spawn(|| work(pod))).collect();
        pods.into_iter().try_for_each(|pod| {
            let of_one = pod.join().map_err(|_| anyhow!("a thread panicked"))??;
            made.objects.extend(of_one.objects);
            made.attach += of_one.attach;
            made.detach += of_one.detach;
            anyhow::Ok(())
        })
    })?;
    let time = begun.elapsed();
    let is_left = || {
        bpffs.expect_empty()?;
        world.pods.iter().try_for_each(expect_untouched)?;
        made.objects.expect_gone()
    };
    let left = is_left().err().map(|error| format!("LEFT: {error:#}"));
    let Objects { programs, maps, links } = &made.objects;
    let made_of_each = [programs.len(), maps.len(), links.len()];
    let machine = [before, machine()?];
    Ok(Cycled {
        cycles: count,
        time,
        attach: made.attach,
        detach: made.detach,
        made: made_of_each,
        machine,
        left,
    })
}

fn cycle(bpffs: &Bpffs, pod: &Pod, number: usize, is_left: bool, made: &mut Made) -> anyhow::Result<()> {
    let name = format!("cycle{number}");
    let begun = Instant::now();
    bpffs.attach(pod, &name, &[])?.expect(exit::OK)?;
    made.attach += begun.elapsed();
    made.objects.extend(Objects::pinned(&bpffs.instance(&name))?);
    if is_left {
        return Ok(());
    }
    let begun = Instant::now();
    bpffs.run(&["detach", "--name", &name])?.expect(exit::OK)?;
    made.detach += begun.elapsed();
    Ok(())
}
