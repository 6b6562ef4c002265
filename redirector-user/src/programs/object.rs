//! Loading the eBPF object.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use redirector_common::abi::{ProgramConstants, name};

use crate::base::error::{Error, Result, chain};
use crate::sys::thread::without_files;

/// The object that this binary carries: committed, made by `cargo xtask ebpf`.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/bpf/redirector.bpf.o"));

/// Identifies this object: the beginning of its sha256, as `cargo xtask ebpf` has recorded it.
pub const ID: &str = include_str!("../../bpf/redirector.bpf.sources").split_at(16).0;

/// A loaded object; nothing of it is attached.
pub struct Loaded {
    ebpf: Ebpf,
}

/// Where the maps of a load come from.
#[derive(Clone, Copy, Debug)]
pub enum Maps<'a> {
    /// New ones, that end with the programs: there are no instances.
    Unpinned,
    /// Those pinned in this directory; they are made if they are not there.
    In(&'a Path),
}

impl Loaded {
    /// Loads these programs, for policies that set no other flags than those of the constants. With `trace` they tell their
    /// decisions.
    ///
    /// # Errors
    ///
    /// [`Error::unsupported`] if the kernel refuses a map or a program, with its reason.
    pub fn new(
        constants: &ProgramConstants,
        maps: Maps<'_>,
        trace: bool,
        programs: impl IntoIterator<Item = &'static str>,
    ) -> Result<Self> {
        let mut loaded = Self::without_programs(constants, maps, trace)?;
        for name in programs {
            loaded.load(name)?;
        }
        Ok(loaded)
    }

    /// The same with the maps alone, so that programs can be loaded one by one.
    ///
    /// # Errors
    ///
    /// [`Error::unsupported`] if the kernel refuses a map, with its reason.
    pub fn without_programs(constants: &ProgramConstants, maps: Maps<'_>, trace: bool) -> Result<Self> {
        let tells = u32::from(trace);
        // Levels of aya-log: 0 is below all of them, 2 is a warning.
        let level = 2 * u8::from(trace);
        // It parses the kernel's BTF (30 ms), of which this object needs nothing, unless it does not find it.
        let loader = without_files(EbpfLoader::new);
        let mut loader = loader.map_err(|e| Error::os("start a thread for the loader", e))?;
        // Asked for only when a program is refused; the last lines say why.
        loader.verifier_log_level(VerifierLogLevel::DEBUG | VerifierLogLevel::STATS).override_global(
            name::CONSTANTS,
            constants,
            true,
        );
        loader.override_global(name::TELLS, &tells, true);
        loader.override_global("AYA_LOG_LEVEL", &level, true);
        loader.map_max_entries("AYA_LOGS", 4096);
        if !trace {
            // A ring buffer cannot be smaller.
            loader.map_max_entries(name::EVENTS, 4096);
        }
        if let Maps::In(dir) = maps {
            for map in name::MAPS.iter().chain(&name::SHARED) {
                loader.map_pin_path(map, dir.join(map));
            }
        }
        let ebpf = loader
            .load(OBJECT)
            .map_err(|e| Error::unsupported(format!("the kernel does not take our maps: {}", chain(&e))))?;
        Ok(Self { ebpf })
    }

    /// Loads a program; how many instructions the verifier followed, if the kernel tells (5.16).
    ///
    /// # Errors
    ///
    /// [`Error::unsupported`] if the kernel refuses it, with its reason.
    pub fn load(&mut self, name: &str) -> Result<Option<u32>> {
        let program = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| Error::failed(format!("the eBPF object has no program {name}")))?;
        load(program).map_err(|e| refused(name, &e))?;
        Ok(program.info().ok().and_then(|info| info.verified_instruction_count()))
    }

    /// Descriptor of a loaded program.
    pub fn program(&self, name: &str) -> Result<BorrowedFd<'_>> {
        let program = self.ebpf.program(name).and_then(|p| p.fd().ok());
        program.map(AsFd::as_fd).ok_or_else(|| Error::failed(format!("program {name} is not loaded")))
    }
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSockAddr(p) => p.load(),
        Program::CgroupSockopt(p) => p.load(),
        Program::SockOps(p) => p.load(),
        Program::SkLookup(p) => p.load(),
        Program::SchedClassifier(p) => p.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// The verifier's log is long; its last lines say what it refused.
fn refused(program: &str, error: &ProgramError) -> Error {
    let why = match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().filter(|l| !l.trim().is_empty()).collect();
            let tail = lines[lines.len().saturating_sub(8)..].join(" | ");
            if tail.is_empty() { io_error.to_string() } else { format!("{io_error}: {tail}") }
        }
        other => chain(other),
    };
    Error::unsupported(format!("the kernel does not take program {program}: {why}. See `redirector check`"))
}
