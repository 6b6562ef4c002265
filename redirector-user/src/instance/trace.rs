//! Decisions of an instance, live: its programs write them into a ring buffer, if they are those that tell; and by aya-log
//! what troubles them.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aya::maps::{Map, MapData, MapInfo, PerCpuArray, RingBuf};
use aya::programs::ProgramInfo;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use redirector_common::abi::{meta_flag, name};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::directory::Directory;
use super::event::{Event, Reader};
use super::maps::Instance;
use crate::base::error::{Context, Error, Result, chain};
use crate::programs::hooks;
use crate::sys::bpf::Link;

/// Whether the programs are still the same, and have lost events, is asked this often.
const LOOK: Duration = Duration::from_secs(1);

/// The ring buffer of an instance. It has one reader: of two, each gets a part.
pub struct Trace {
    ring: RingBuf<MapData>,
    troubles: EbpfLogger<Words>,
    words: Troubles,
    lost: PerCpuArray<MapData, u64>,
    /// How many have been lost that nobody was told of.
    known_lost: u64,
    reader: Reader,
    link: PathBuf,
    program: u32,
}

/// What there is to tell.
#[derive(Debug)]
pub enum Told<'a> {
    /// A decision.
    Decision(&'a Event),
    /// Trouble of the programs, in words; also that decisions were dropped, because nobody had read those before.
    Trouble(&'a str),
}

/// Trouble that nobody has been told of.
type Troubles = Arc<Mutex<Vec<String>>>;

/// Keeps what aya-log reads.
struct Words(Troubles);

impl Log for Words {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if let Ok(mut words) = self.0.lock() {
            words.push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// Why there are no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nobody wants them.
    Closed,
    /// Nothing writes into this ring any more: the instance was detached, or has other programs now.
    Replaced,
}

impl Trace {
    /// Opens the ring buffer. What has been decided up to now is forgotten: it keeps what nobody has read.
    ///
    /// # Errors
    ///
    /// [`Error::input`] if the instance was attached without `--trace`.
    pub fn open(root: &Directory, name: &str) -> Result<Self> {
        let instance = Instance::open(root, name)?;
        if instance.meta()?.flags & meta_flag::TRACE == 0 {
            return Err(Error::input(format!("{name} was attached without --trace"))
                .usage("detach it and attach it with --trace"));
        }
        let sockops = instance.dir.join(hooks::SOCKOPS.program_pin());
        let of_sockops = ProgramInfo::from_pin(&sockops)
            .map_err(|e| Error::failed(format!("inspect {}: {}", sockops.display(), chain(&e))))?
            .id();
        let hook = hooks::ALL.iter().find(|hook| hook.netns);
        let hook = hook.ok_or_else(|| Error::failed("no hook of the network namespace"))?;
        let link = instance.dir.join(hook.link_pin());
        let info = Link::open(&link).and_then(|link| link.info());
        let program = info.context(|| format!("inspect {}", link.display()))?.program;
        let (ring, lost) = maps_of(&instance.dir.join(hook.program_pin()))?;
        let ring = RingBuf::try_from(Map::RingBuf(ring)).context(|| "open the ring buffer".into())?;
        let lost = PerCpuArray::try_from(Map::PerCpuArray(lost)).context(|| "open LOST".into())?;
        let reader = Reader::of(instance)?;
        let words = Troubles::default();
        let troubles = EbpfLogger::init_from_id_with_logger(of_sockops, Words(words.clone()));
        let troubles =
            troubles.map_err(|e| Error::failed(format!("open the log of {name}: {}", chain(&e))))?;
        let mut this = Self { ring, troubles, words, lost, known_lost: 0, reader, link, program };
        while this.ring.next().is_some() {}
        let _ = this.troubles();
        this.known_lost = this.lost()?;
        Ok(this)
    }

    /// How many events the ring buffer had no room for.
    fn lost(&self) -> Result<u64> {
        Ok(self.lost.get(&0, 0).context(|| "read LOST".into())?.iter().sum())
    }

    /// What troubles the programs, since this was asked last.
    fn troubles(&mut self) -> Vec<String> {
        self.troubles.flush();
        self.words.lock().map_or_else(|_| Vec::new(), |mut words| std::mem::take(&mut *words))
    }

    /// Tells decisions until there are no more, `stop` is ready, or `tell` wants no more.
    ///
    /// # Errors
    ///
    /// If the ring buffer cannot be waited for.
    pub async fn follow(mut self, stop: impl Future, mut tell: impl FnMut(&Told<'_>) -> bool) -> Result<End> {
        let what = format!("read the ring buffer of {}", self.link.display());
        let fd = self.ring.as_fd().try_clone_to_owned().context(|| what.clone())?;
        #[expect(deprecated, reason = "its successor is unsafe; a descriptor that nobody changes")]
        let ready = AsyncFd::with_interest(fd, Interest::READABLE);
        let ready = ready.context(|| what.clone())?;
        let mut look = tokio::time::interval(LOOK);
        tokio::pin!(stop);
        loop {
            tokio::select! {
                _ = &mut stop => return Ok(End::Closed),
                _ = look.tick() => {
                    let info = Link::open(&self.link).and_then(|link| link.info());
                    if !info.is_ok_and(|info| info.program == self.program && info.target != 0) {
                        return Ok(End::Replaced);
                    }
                    let now = self.lost()?;
                    let lost = now - std::mem::replace(&mut self.known_lost, now);
                    let mut troubles = self.troubles();
                    if lost > 0 {
                        troubles.push(format!("{lost} events were dropped: they came faster than they were read"));
                    }
                    if !troubles.iter().all(|trouble| tell(&Told::Trouble(trouble))) {
                        return Ok(End::Closed);
                    }
                }
                ready = ready.readable() => {
                    ready.context(|| what.clone())?.clear_ready();
                    while let Some(entry) = self.ring.next() {
                        let Some(event) = self.reader.read(&entry) else { continue };
                        if !tell(&Told::Decision(&event)) {
                            return Ok(End::Closed);
                        }
                    }
                }
            }
        }
    }
}

/// The ring buffer that a program writes into, and the count of what it could not write.
fn maps_of(program: &Path) -> Result<(MapData, MapData)> {
    let what = || format!("ask for the maps of {}", program.display());
    let ids = ProgramInfo::from_pin(program)
        .and_then(|info| info.map_ids())
        .map_err(|e| Error::failed(format!("{}: {}", what(), chain(&e))))?;
    let infos: Vec<_> =
        ids.unwrap_or_default().into_iter().filter_map(|id| MapInfo::from_id(id).ok()).collect();
    let find = |name: &str| {
        let found = infos.iter().find(|info| info.name_as_str() == Some(name));
        let found =
            found.ok_or_else(|| Error::failed(format!("{} uses no map {name}", program.display())))?;
        MapData::from_id(found.id()).context(what)
    };
    Ok((find(name::EVENTS)?, find(name::LOST)?))
}
