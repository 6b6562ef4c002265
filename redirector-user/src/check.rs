//! `redirector check`: what is there and what is not.

use std::path::Path;
use std::time::Instant;

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{is_map_supported, is_program_supported};
use redirector_common::abi::ProgramConstants;
use schemars::JsonSchema;
use serde::Serialize;

use crate::instance::directory::Directory;
use crate::kernel::{Kernel, privileges};
use crate::pod::cgroup;
use crate::programs::hooks;
use crate::programs::object::{Loaded, Maps};
use crate::sys::program_query;

/// One thing that was looked for.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Finding {
    /// What.
    pub name: String,
    /// Whether it is there.
    pub present: bool,
    /// Whether that is known; if not, it is not `present`.
    #[serde(skip)]
    pub known: bool,
    /// Without it attach does not work.
    pub required: bool,
    /// What for.
    pub needed_for: &'static str,
    /// What to do if it is missing; empty if it is there.
    pub remedy: String,
    /// Of a program: how many instructions the verifier followed (told since 5.16).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified_instructions: Option<u32>,
    /// Of a program: how long it took to load, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_ms: Option<u128>,
}

fn finding(name: &str, present: bool, required: bool, needed_for: &'static str, remedy: &str) -> Finding {
    let remedy = if present { String::new() } else { remedy.to_owned() };
    let name = name.to_owned();
    Finding {
        name,
        present,
        known: true,
        required,
        needed_for,
        remedy,
        verified_instructions: None,
        load_ms: None,
    }
}

/// What was not found may be there if the kernel does not let us ask.
fn unless_blind(mut finding: Finding, blinding: &[&str]) -> Finding {
    if !finding.present && !blinding.is_empty() {
        finding.known = false;
        finding.remedy = format!("not probed, for lack of {}; see above", blinding.join(", "));
    }
    finding
}

/// Whether a call of bpf(2) is refused to a process that has every privilege. There is no program of the number 0.
fn is_bpf_forbidden() -> bool {
    program_query::name(0).is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied)
}

/// Looks for everything that instances here need.
pub fn all(root: &Directory) -> Vec<Finding> {
    let obstacle = root.obstacle();
    let missing = privileges::missing();
    let mut blinding = privileges::blinding(&missing);
    let is_forbidden = missing.is_empty() && is_bpf_forbidden();
    let mut list = vec![finding(
        "privileges",
        missing.is_empty(),
        true,
        "everything",
        &format!("run as root, or add {}", missing.join(", ")),
    )];
    list.push(finding(
        "bpf(2) allowed",
        !is_forbidden,
        true,
        "everything",
        "a seccomp filter or a security module forbids it: let the runtime's profile allow bpf(2)",
    ));
    blinding.extend(is_forbidden.then_some("bpf(2)"));
    list.push(finding(
        "cgroup v2",
        cgroup::mount().is_ok(),
        true,
        "attaching to a pod",
        "mount cgroup2 (hybrid or unified layout)",
    ));
    list.push(finding(
        "bpffs",
        obstacle.is_none(),
        true,
        "keeping instances without a daemon",
        obstacle.as_deref().unwrap_or_default(),
    ));
    list.push(finding(
        "kernel BTF",
        Path::new("/sys/kernel/btf/vmlinux").exists(),
        true,
        "the owner of a socket",
        "use a kernel built with CONFIG_DEBUG_INFO_BTF=y",
    ));
    let lockdown = std::fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    list.push(finding(
        "no lockdown=confidentiality",
        !lockdown.contains("[confidentiality]"),
        true,
        "the owner of a socket",
        "boot with lockdown=integrity or none",
    ));
    let last = match Kernel::probe() {
        Ok(kernel) => of_kernel(&kernel),
        Err(e) => vec![finding("our programs load", false, true, "everything", &e.on_command_line())],
    };
    let of_the_kernel = of_kinds().into_iter().chain(last);
    list.extend(of_the_kernel.map(|found| unless_blind(found, &blinding)));
    list
}

/// Whether the kernel has the kinds of programs and maps that are used.
fn of_kinds() -> Vec<Finding> {
    let mut list = Vec::new();
    for (name, kind, since, what) in [
        (
            "cgroup sock_addr programs",
            ProgramType::CgroupSockAddr,
            "4.17",
            "connect, getpeername, getsockname",
        ),
        ("sockops programs", ProgramType::SockOps, "4.13", "handing over the original destination"),
        ("cgroup getsockopt programs", ProgramType::CgroupSockopt, "5.3", "SO_ORIGINAL_DST"),
        ("sk_lookup programs", ProgramType::SkLookup, "5.9", "inbound capture"),
    ] {
        let present = is_program_supported(kind).unwrap_or(false);
        list.push(finding(name, present, true, what, &format!("use Linux {since} or newer")));
    }
    for (name, kind, since, what) in [
        ("sk_storage maps", MapType::SkStorage, "5.2", "state of a socket"),
        ("sockmaps", MapType::SockMap, "4.14", "the registry of listeners"),
        ("LPM tries", MapType::LpmTrie, "4.11", "CIDRs and routes"),
    ] {
        let present = is_map_supported(kind).unwrap_or(false);
        list.push(finding(name, present, true, what, &format!("use Linux {since} or newer")));
    }
    list
}

/// What differs between kernels on which the programs load, and whether they do.
fn of_kernel(kernel: &Kernel) -> Vec<Finding> {
    let mut list = vec![
        finding(
            "bpf_set_retval",
            kernel.has_set_retval,
            false,
            "honest errno of refused connections",
            "use Linux 5.18 or newer; until then a refusal reads EPERM, except ENETUNREACH",
        ),
        finding(
            "sk_lookup ingress_ifindex",
            kernel.offsets.has_ingress_ifindex,
            false,
            "-c and -k (interfaces)",
            "use Linux 5.17 or newer; until then attach refuses them",
        ),
        finding(
            "netns cookie in sockops",
            kernel.has_netns_cookie,
            false,
            "telling namespaces by a number that is never used again",
            "nothing: before Linux 5.15 the inode number of the namespace does it",
        ),
    ];
    // With every feature and with `--trace`: the most the verifier is ever given.
    let constants = kernel.constants(ProgramConstants::SHARED, u32::MAX);
    match Loaded::without_programs(&constants, Maps::Unpinned, true) {
        Err(e) => list.push(finding("our programs load", false, true, "everything", &e.on_command_line())),
        Ok(mut loaded) => {
            let mut programs: Vec<Finding> = hooks::ALL
                .into_iter()
                .map(|hook| program(&mut loaded, hook.program, hook.what(), true))
                .collect();
            let why = programs.iter().find(|program| !program.present).map(|program| program.remedy.as_str());
            list.push(finding(
                "our programs load",
                why.is_none(),
                true,
                "everything",
                why.unwrap_or_default(),
            ));
            programs.push(program(&mut loaded, hooks::GUEST, "-k (virtual interfaces)", false));
            list.extend(programs);
        }
    }
    list
}

fn program(loaded: &mut Loaded, name: &str, what: &'static str, required: bool) -> Finding {
    let begun = Instant::now();
    let verified = loaded.load(name);
    let why = verified.as_ref().err().map(ToString::to_string).unwrap_or_default();
    let mut found = finding(&format!("program {name}"), verified.is_ok(), required, what, &why);
    found.load_ms = verified.is_ok().then(|| begun.elapsed().as_millis());
    found.verified_instructions = verified.ok().flatten();
    found
}
