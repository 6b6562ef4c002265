//! inotify events of configuration files, and of the paths where targets appear and go.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use crate::base::error::{Context, Result};
use crate::sys::poll;

/// A volume of a ConfigMap or Secret is swapped by this link; the files in it, which are links through it, stay what they are
/// (`AtomicWriter` in pkg/volume/util of Kubernetes).
const SWAPPED: &str = "..data";

/// Which names in a directory matter; a watched file has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// All that end so.
    pub suffixes: Vec<&'static str>,
    /// These.
    pub exactly: BTreeSet<OsString>,
}

impl Names {
    /// One name.
    pub fn one(name: &OsStr) -> Self {
        Self { suffixes: Vec::new(), exactly: BTreeSet::from([name.to_owned()]) }
    }

    /// All that end so.
    pub fn suffix(suffix: &'static str) -> Self {
        Self { suffixes: vec![suffix], exactly: BTreeSet::new() }
    }

    /// These too.
    pub fn add(&mut self, other: Self) {
        self.suffixes.extend(other.suffixes);
        self.exactly.extend(other.exactly);
    }

    fn matter(&self, name: &OsStr) -> bool {
        let ends = |suffix: &&str| name.as_bytes().ends_with(suffix.as_bytes());
        self.exactly.contains(name)
            || self.suffixes.iter().any(ends)
            || (!self.suffixes.is_empty() && name == SWAPPED)
    }
}

/// What to watch: files and directories, by path.
pub type Signs = HashMap<PathBuf, Names>;

/// Watches paths with inotify.
pub struct Watcher {
    fd: AsyncFd<OwnedFd>,
    watched: Mutex<HashMap<PathBuf, (i32, Names)>>,
}

impl Watcher {
    /// Watches nothing yet. Must be called in a tokio runtime.
    ///
    /// # Errors
    ///
    /// If the kernel has no inotify instance left for us.
    pub fn new() -> Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .context(|| "watch files (inotify; see fs.inotify.max_user_instances)".into())?;
        let fd = poll::readable(fd).context(|| "wait for inotify".into())?;
        Ok(Self { fd, watched: Mutex::new(HashMap::new()) })
    }

    /// Watches these from now on and nothing else; true if one of them is new. What has happened to a
    /// new one before this call is not told: look once more.
    pub fn set(&self, signs: Signs) -> bool {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|path, (watch, _)| {
            let keep = signs.contains_key(path);
            if !keep {
                // It goes by itself with what it watched.
                let _ = inotify::remove_watch(&self.fd, *watch);
            }
            keep
        });
        let mut new = false;
        for (path, names) in signs {
            let Some(watch) = self.add(&path) else {
                watched.remove(&path);
                continue;
            };
            let before = watched.insert(path, (watch, names));
            // Another number: the directory was removed and made again.
            new |= before.is_none_or(|(old, _)| old != watch);
        }
        new
    }

    /// None if it is not there; then something above it is watched, too.
    fn add(&self, path: &Path) -> Option<i32> {
        let mut flags = WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF;
        if !path.is_dir() {
            flags |= WatchFlags::MODIFY;
        }
        match inotify::add_watch(&self.fd, path, flags) {
            Ok(watch) => Some(watch),
            Err(Errno::NOENT | Errno::NOTDIR) => None,
            Err(e) => {
                tracing::warn!(path = %path.display(), "cannot watch it, changes are seen late: {e}");
                None
            }
        }
    }

    /// Waits until something happens that matters, and takes all that has.
    pub async fn changed(&self) {
        loop {
            let Ok(mut ready) = self.fd.readable().await else { return };
            let mut matters = false;
            while let Ok(Ok(one)) = ready.try_io(|fd| self.read(fd.get_ref())) {
                matters |= one;
            }
            if matters {
                return;
            }
        }
    }

    /// Whether a bufferful of events matters.
    fn read(&self, fd: &OwnedFd) -> io::Result<bool> {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
        let mut reader = Reader::new(fd, &mut buffer);
        let mut matters = false;
        loop {
            let event = reader.next()?;
            let lost = event.events().contains(ReadFlags::QUEUE_OVERFLOW);
            let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()).to_owned());
            // Two paths may lead to the same thing.
            let mut about =
                watched.values().filter(|(watch, _)| *watch == event.wd()).map(|(_, names)| names);
            matters |= match name {
                _ if lost => true,
                Some(name) => about.any(|names| names.matter(&name)),
                // The watched thing itself.
                None => about.next().is_some(),
            };
            if reader.is_buffer_empty() {
                return Ok(matters);
            }
        }
    }
}
