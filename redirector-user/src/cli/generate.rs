//! `redirector completions`, and the hidden verb that writes what packages hold: man pages, completions, JSON schemas.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Command;
use clap_complete::env::{CompleteEnv, Shells};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, schema_for};

use super::env::Failure;
use super::output;
use super::usage::Version;
use super::{attach, cni, detach, explain, list, refresh, show, status, upgrade};
use crate::base::error::{Context, Error, Result};
use crate::import::Import;
use crate::instance::{connections::Flow, event::Event};
use crate::policy::Policy;
use crate::{check, health, verify};

/// Set by the scripts of the shells.
const VARIABLE: &str = "REDIRECTOR_COMPLETE";

/// A shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Shell {
    Bash,
    Fish,
    Zsh,
}

impl Shell {
    const ALL: [Self; 3] = [Self::Bash, Self::Fish, Self::Zsh];

    fn name(self) -> &'static str {
        match self {
            Self::Bash => "bash",
            Self::Fish => "fish",
            Self::Zsh => "zsh",
        }
    }

    /// Where distributions put the script.
    fn file(self) -> &'static str {
        match self {
            Self::Bash => "redirector",
            Self::Fish => "redirector.fish",
            Self::Zsh => "_redirector",
        }
    }

    fn script(self) -> Result<Vec<u8>> {
        let mut script = Vec::new();
        let shells = Shells::builtins();
        let shell =
            shells.completer(self.name()).ok_or_else(|| Error::failed("no completions for this shell"))?;
        let written =
            shell.write_registration(VARIABLE, "redirector", "redirector", "redirector", &mut script);
        written.context(|| format!("write the completions of {}", self.name()))?;
        Ok(script)
    }
}

/// Print a shell's completions, with the names of instances: source them, or put them where the shell looks.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  source <(redirector completions bash)\n  redirector completions fish > ~/.config/fish/completions/redirector.fish"
)]
pub struct Completions {
    shell: Shell,
}

pub fn completions(args: &Completions) -> Result<ExitCode> {
    output::write(String::from_utf8_lossy(&args.shell.script()?).trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// Answers a shell that asks how to go on, and ends this process then.
pub fn complete(command: fn() -> Command) {
    CompleteEnv::with_factory(command).var(VARIABLE).bin("redirector").complete();
}

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// A man page for each verb.
    Man,
    /// The script of each shell.
    Completions,
    /// JSON schemas of results and of a policy.
    Schemas,
}

/// Write what a package holds into a directory.
#[derive(Debug, clap::Args)]
pub struct Args {
    kind: Kind,
    dir: PathBuf,
}

pub fn run(command: Command, args: &Args) -> Result<ExitCode> {
    let dir = &args.dir;
    std::fs::create_dir_all(dir).context(|| format!("create {}", dir.display()))?;
    match args.kind {
        Kind::Man => {
            clap_mangen::generate_to(command, dir).context(|| format!("write to {}", dir.display()))?
        }
        Kind::Completions => {
            Shell::ALL.iter().try_for_each(|shell| write(dir, shell.file(), &shell.script()?))?
        }
        Kind::Schemas => schemas().iter().try_for_each(|(name, schema)| {
            let text = serde_json::to_vec_pretty(schema)
                .map_err(|e| Error::failed(format!("serialise a schema: {e}")))?;
            write(dir, &format!("{name}.schema.json"), &text)
        })?,
    }
    Ok(ExitCode::SUCCESS)
}

fn write(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = dir.join(name);
    std::fs::write(&path, bytes).context(|| format!("write {}", path.display()))
}

/// By the verb whose `--output json` it is of; the policy, of `--policy` and in results; the line of a command that fails.
fn schemas() -> [(&'static str, Schema); 18] {
    [
        ("policy", schema_for!(Policy)),
        ("status", printed::<status::Answer<'_>>()),
        ("list", printed::<Vec<list::Line>>()),
        ("show", printed::<show::Shown<'_>>()),
        ("connections", printed::<Vec<health::connections::Connection>>()),
        ("original-dst", printed::<Vec<Flow>>()),
        ("explain", printed::<explain::Answer<'_>>()),
        ("verify", printed::<verify::Report>()),
        ("check", printed::<Vec<check::Finding>>()),
        ("trace", printed::<Event>()),
        ("attach", printed::<attach::Answer<'_>>()),
        ("refresh", printed::<refresh::Answer>()),
        ("upgrade", printed::<upgrade::Answer>()),
        ("detach", printed::<detach::Answer<'_>>()),
        ("import", printed::<Import>()),
        ("cni", printed::<cni::Answer>()),
        ("version", printed::<Version>()),
        ("error", printed::<Failure<'_>>()),
    ]
}

/// Of what is written, never read: a null is there.
fn printed<T: JsonSchema>() -> Schema {
    SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<T>()
}
