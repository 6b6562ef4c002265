//! `cargo xtask vm`: the end-to-end tests on other kernels, in virtual machines.
//!
//! [`mod@kernels`] fetches distribution kernels through apt, [`programs`] builds the tests, [`initramfs`] packs
//! both with the host's tools, [`boot`] runs QEMU and reads the console, [`report`] says what was seen.

mod arch;
mod boot;
mod cpio;
mod initramfs;
mod kernels;
mod libcni;
mod modules;
mod node;
mod programs;
mod record;
mod report;
mod variant;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;

pub use self::arch::Arch;
use self::{
    boot::{Boot, End, Machine},
    kernels::Kernel,
    programs::Programs,
    report::{Row, State},
    variant::{NODES, Variant},
};
use crate::{deps, dist, envoy, exit, project};

/// The kernels of a run without arguments: the oldest and the newest, and what distributions of the years between have.
const DEFAULT: [&str; 5] = ["5.10", "6.1", "6.12", "6.18", "7.2"];
/// The kernel of another architecture, and the tests: that the same programs load there, and work.
const FOREIGN: &str = "6.12";
const SMOKE: &[&str] = &["kernel", "lifecycle", "oracle", "original_dst", "parity_default", "sockets"];
/// Not run unless named: they need what no guest has (an API server, Python, systemd), count what kernels do
/// differently, or only a node has it.
const ELSEWHERE: &[&str] = &["agent_kubernetes", "costs", "mesh", "systemd", programs::CRI];
/// Left out of its file unless named: it tests the tests, for minutes where machines are emulated.
const SKIPPED: (&str, &str) = ("parity_options", "a_wrong_order_of_rules_is_found");
/// Seconds for one test program, without emulation a small part of it.
const TEST_LIMIT: u64 = 1800;
/// Seconds for `redirector check`.
const CHECK_LIMIT: u64 = 120;
/// Seconds from QEMU's start to the first job.
const BOOT_LIMIT: u64 = 180;
/// How much longer the tests wait in an emulated guest than on a real machine.
const SLOWNESS: u64 = 8;
/// An emulated guest does one of so many shares of what is long only because it has many cases; each guest another.
const SHARES: usize = 10;
/// An emulated guest may hang so often; then it is booted again for the tests that are left. QEMU's threads go round in
/// circles when one of them patches code (the static keys of cgroup hooks) that another is in.
const HANGS: u32 = 4;
/// Seconds without a line of the console after which a guest is taken for hung: each test has one, and none takes that long,
/// except a node's.
const SILENCE: u64 = 600;
/// Tests at a time: more than processors, because many wait.
const THREADS: usize = 3;

/// What to boot and what to run there.
#[derive(Args)]
pub struct Options {
    /// Series (`6.12`: its newest release) or release of a Debian cloud kernel; may be given several times
    #[arg(long = "kernel", value_name = "SERIES")]
    kernels: Vec<String>,
    /// Package file with a kernel; several make up one (image and modules)
    #[arg(long = "deb", value_name = "FILE", conflicts_with = "kernels")]
    debs: Vec<PathBuf>,
    /// Kernel image, bzImage or vmlinuz
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kernels", "debs"])]
    image: Option<PathBuf>,
    /// Modules of `--image`: its lib/modules/RELEASE
    #[arg(long, value_name = "DIR", requires = "image")]
    modules: Option<PathBuf>,
    /// Architecture of the guests [default: this machine's]
    #[arg(long, value_enum, value_name = "ARCH")]
    arch: Option<Arch>,
    /// Nodes: Debian systems with systemd, containerd and runc, on unified cgroups
    #[arg(long, conflicts_with = "variants")]
    node: bool,
    /// How the guest is set up; may be given several times
    #[arg(long = "variant", value_enum, value_name = "VARIANT")]
    variants: Vec<Variant>,
    /// Write what was seen into docs/kernels.json and the tables made from it
    #[arg(long)]
    record: bool,
    /// Test files to run, FILE or FILE:TEST; all if none is given
    #[arg(last = true, value_name = "TESTS")]
    tests: Vec<String>,
}

impl Options {
    /// The ways in which each kernel's guest is set up.
    fn variants(&self) -> &[Variant] {
        match &self.variants[..] {
            _ if self.node => &NODES,
            [] => &[Variant::Plain],
            asked => asked,
        }
    }
}

/// A test program with what of it is to be run.
struct Test {
    file: String,
    only: Vec<String>,
}

/// Boots every kernel that was asked for and prints one table.
pub fn run(options: &Options) -> Result<()> {
    let arch = options.arch.unwrap_or_else(Arch::here);
    let qemu = deps::for_vm(arch)?;
    if nodes(options) {
        deps::for_guest_node()?;
    }
    let kernels = kernels(options, arch)?;
    let all = programs::test_files()?;
    let mut guests = Vec::new();
    for (kernel, variant) in matrix(options, &kernels) {
        let tests = chosen(options, variant, &all)?;
        guests.push(Guest { number: guests.len(), kernel, variant, tests, has_envoy: false });
    }
    // A node gets what users install.
    let product = nodes(options).then(|| dist::program(arch)).transpose()?;
    if let Some(product) = &product
        && !record::is_in(product)?
    {
        let message = "target/dist has other eBPF programs than the repository: `cargo xtask dist` first";
        return Err(exit::with_code(exit::CANNOT, message));
    }
    let programs = Programs::build(
        arch,
        product,
        &guests.iter().flat_map(|guest| &guest.tests).map(|test| test.file.as_str()).collect(),
    )?;
    let envoy = if arch.is_foreign() { None } else { envoy() };
    let tools = arch.is_foreign().then(|| arch.tools()).transpose()?;
    let dir = project::target().join("vm");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let plain = guests.iter().any(|guest| guest.variant.suite().is_none());
    let common =
        plain.then(|| initramfs::common(&programs, tools.as_deref(), envoy.as_deref())).transpose()?;
    let common = common.unwrap_or_default();
    let machine = Machine::new(arch, qemu, &kernels[0])?;

    let object = record::object()?;
    let (mut rows, mut budget) = (Vec::new(), Vec::new());
    for mut guest in guests {
        guest.has_envoy = envoy.is_some();
        let row = guest.run(&machine, &dir, &common, &programs)?;
        budget.extend(record::over_budget(&row)?);
        // At once: what comes next takes long, and may be interrupted.
        if options.record {
            record::write(&row, &object)?;
        }
        rows.push(row);
    }
    println!("\n{}", report::table(&rows));
    for line in &budget {
        println!("over budget: {line}");
    }
    let failures = rows.iter().map(Row::failures).sum::<usize>();
    if failures + budget.len() == 0 {
        return Ok(());
    }
    Err(exit::with_code(
        1,
        format!("{failures} failures, {} over budget; consoles are in {}", budget.len(), dir.display()),
    ))
}

fn nodes(options: &Options) -> bool {
    options.variants().iter().any(|variant| variant.suite().is_some())
}

fn envoy() -> Option<PathBuf> {
    envoy::ensure().map_err(|error| eprintln!("note: no Envoy in the guests: {error:#}")).ok()
}

fn kernels(options: &Options, arch: Arch) -> Result<Vec<Kernel>> {
    if let Some(image) = &options.image {
        return Ok(vec![kernels::of_image(image, options.modules.as_deref())?]);
    }
    if !options.debs.is_empty() {
        return Ok(vec![kernels::of_debs(&options.debs)?]);
    }
    let series = match &options.kernels[..] {
        [] if arch.is_foreign() || nodes(options) => vec![FOREIGN.to_owned()],
        [] => DEFAULT.map(str::to_owned).to_vec(),
        asked => asked.to_vec(),
    };
    kernels::of_series(&series, arch.debian())
}

/// Without arguments: every kernel as it is, and the newest in every other way, too.
fn matrix<'a>(options: &Options, kernels: &'a [Kernel]) -> Vec<(&'a Kernel, Variant)> {
    let asked = options.variants();
    let mut rows: Vec<_> =
        kernels.iter().flat_map(|kernel| asked.iter().map(move |variant| (kernel, *variant))).collect();
    let nothing_asked = options.kernels.is_empty()
        && !options.node
        && options.debs.is_empty()
        && options.image.is_none()
        && options.arch.is_none();
    if nothing_asked
        && options.variants.is_empty()
        && let Some(newest) = kernels.last()
    {
        rows.extend([Variant::Ipv6Off, Variant::Hybrid, Variant::JitHarden].map(|variant| (newest, variant)));
    }
    rows
}

fn chosen(options: &Options, variant: Variant, all: &[String]) -> Result<Vec<Test>> {
    let asked: Vec<&str> = match variant.tests() {
        _ if !options.tests.is_empty() => options.tests.iter().map(String::as_str).collect(),
        Some(tests) => tests.to_vec(),
        None if options.arch.is_some_and(Arch::is_foreign) => SMOKE.to_vec(),
        None => all.iter().map(String::as_str).filter(|name| !ELSEWHERE.contains(name)).collect(),
    };
    let mut tests: Vec<Test> = Vec::new();
    for word in asked {
        let (file, only) = word.split_once(':').unwrap_or((word, ""));
        if !all.iter().any(|name| name == file) {
            let all = all.join(" ");
            return Err(exit::with_code(exit::USAGE, format!("no test file {file}; there are: {all}")));
        }
        let index = tests.iter().position(|test| test.file == file).unwrap_or_else(|| {
            tests.push(Test { file: file.to_owned(), only: Vec::new() });
            tests.len() - 1
        });
        tests[index].only.extend((!only.is_empty()).then(|| only.to_owned()));
    }
    Ok(tests)
}

/// One row of the table to be.
struct Guest<'a> {
    number: usize,
    kernel: &'a Kernel,
    variant: Variant,
    tests: Vec<Test>,
    has_envoy: bool,
}

impl Guest<'_> {
    fn run(&self, machine: &Machine, dir: &Path, common: &[u8], programs: &Programs) -> Result<Row> {
        let mut name = self.kernel.series.clone();
        if machine.arch.is_foreign() {
            name += &format!(" {}", machine.arch.rust());
        }
        if self.variant != Variant::Plain {
            name += &format!(" {}", self.variant.name());
        }
        let file = name.replace([' ', '/'], "-");
        let (initramfs, log) = (dir.join(format!("{file}.cpio")), dir.join(format!("{file}.log")));
        let mut row = Row::new(&name, &self.kernel.release);
        for test in self.tests.iter().filter(|test| self.is_absent(test)) {
            row.set(&test.file, State::Absent);
        }
        let jobs = self.tests.len() as u64;
        let slowness = if machine.kvm { 1 } else { SLOWNESS };
        let limit = Duration::from_secs(BOOT_LIMIT + CHECK_LIMIT + jobs * TEST_LIMIT * slowness / SLOWNESS);
        let mut hung = 0;
        loop {
            let disks = self.media(&self.jobs(machine.kvm, &row), &initramfs, common, programs)?;
            eprintln!("vm: {name}: booting {}; console: {}", self.kernel.release, log.display());
            let (kernel, words, initramfs) = (self.kernel, self.variant.words(), &initramfs);
            let silence =
                Duration::from_secs(if self.variant.suite().is_some() { TEST_LIMIT } else { SILENCE });
            let boot = Boot { kernel, initramfs, disks: &disks, words, limit, silence, log: &log };
            let end = machine.run(&boot, |line| row.read(line))?;
            // Three hundred megabytes that can be made again.
            let _ = fs::remove_file(initramfs);
            match end {
                // Emulated, a processor may stand still between any two packets of a test that knows no excuse for that.
                End::Done
                    if !machine.kvm && row.forgive(self.tests.iter().map(|test| test.file.as_str())) =>
                {
                    let kept = log.with_extension("first.log");
                    fs::rename(&log, &kept).with_context(|| log.display().to_string())?;
                    eprintln!("vm: {name}: booting again for {} ({})", row.again.join(" "), kept.display());
                }
                End::Done => break,
                End::Hung if hung < HANGS && !machine.kvm => {
                    hung += 1;
                    let kept = log.with_extension(format!("hung-{hung}.log"));
                    fs::rename(&log, &kept).with_context(|| log.display().to_string())?;
                    eprintln!(
                        "vm: {name}: its processors hang ({}); booting again for the rest",
                        kept.display()
                    );
                }
                End::Hung => {
                    row.died("its processors hang");
                    break;
                }
                End::Died(why) => {
                    row.died(&why);
                    break;
                }
            }
        }
        for Test { file, .. } in &self.tests {
            if !row.has(file) {
                row.set(file, State::Fail);
            }
        }
        Ok(row)
    }

    /// Writes what the guest is booted from; its disks.
    fn media(
        &self,
        jobs: &str,
        initramfs: &Path,
        common: &[u8],
        programs: &Programs,
    ) -> Result<Vec<PathBuf>> {
        let node = self.variant.suite().map(|suite| -> Result<_> {
            let directory = initramfs.parent().context("a file is in a directory")?;
            Ok((node::initramfs()?, vec![node::system(suite)?, node::programs(programs, jobs, directory)?]))
        });
        let (first, disks) = node.transpose()?.unzip();
        let particular = initramfs::particular(self.kernel.modules.as_deref(), jobs)?;
        fs::write(initramfs, [first.as_deref().unwrap_or(common), &particular].concat())
            .with_context(|| format!("cannot write {}", initramfs.display()))?;
        Ok(disks.unwrap_or_default())
    }

    fn is_absent(&self, test: &Test) -> bool {
        test.file == "envoy" && !self.has_envoy
    }

    /// Lines of name, seconds, command; of tests, those that have not been run yet.
    fn jobs(&self, kvm: bool, row: &Row) -> String {
        let home = initramfs::HOME;
        let mut jobs = format!("{}|{CHECK_LIMIT}|{home}/redirector check --output json\n", report::CHECK);
        if self.variant.suite().is_some() {
            jobs = format!("{}|{CHECK_LIMIT}|/bin/sh {home}/facts.sh\n{jobs}", report::FACTS);
        }
        let mut environment = format!(
            "REDIRECTOR_BIN={home}/redirector REDIRECTOR_ENVOY={home}/envoy REDIRECTOR_TESTS_PRIVILEGED=required \
             REDIRECTOR_TESTS_RESOLVE={home}/{}",
            programs::RESOLVE
        );
        if !kvm {
            let share = self.number % SHARES + 1;
            environment += &format!(
                " REDIRECTOR_TESTS_SLOWNESS={SLOWNESS} REDIRECTOR_TESTS_SHARE={share}/{SHARES} RUST_TEST_THREADS={THREADS}"
            );
        }
        for Test { file, only } in self.tests.iter().filter(|test| !row.has(&test.file)) {
            let mut words = only.join(" ");
            if !kvm && only.is_empty() && file == SKIPPED.0 {
                words += &format!("--skip {}", SKIPPED.1);
            }
            if let Some(left_out) = self.variant.left_out().filter(|_| only.is_empty()) {
                words += &format!(" --skip {left_out}");
            }
            jobs += &format!("{file}|{TEST_LIMIT}|{environment} {home}/deps/{file} {words}\n");
        }
        jobs
    }
}
