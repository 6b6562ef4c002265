//! Programs that are built from crates, in pinned versions.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::cmd::Cmd;
use crate::{apt, project};

/// A program of the crate that has its name.
pub struct Program {
    /// Name of both.
    pub name: &'static str,
    /// The pinned version.
    pub version: &'static str,
}

impl Program {
    /// Where it is once it is built.
    fn built(&self) -> PathBuf {
        project::cache(self.name).join("bin").join(self.name)
    }

    /// Finds it (ours, then the user's), or builds it into `.cache`.
    pub fn find_or_install(&self) -> Result<PathBuf> {
        let candidates = [Some(self.built()), apt::find_program(self.name)];
        if let Some(found) = candidates.into_iter().flatten().find(|program| self.is_pinned(program)) {
            return Ok(found);
        }
        project::cargo()
            .args(["install", self.name, "--version", self.version, "--locked", "--root"])
            .arg(project::cache(self.name))
            .run()
            .with_context(|| format!("cannot build {} {}", self.name, self.version))?;
        Ok(self.built())
    }

    fn is_pinned(&self, program: &Path) -> bool {
        // Some answer as cargo calls them, with their own name first.
        let verb = self.name.trim_start_matches("cargo-");
        let answers =
            [vec!["--version"], vec![verb, "--version"]].map(|words| Cmd::new(program).args(words).probe());
        answers.iter().flatten().any(|version| version.split(' ').next_back() == Some(self.version))
    }
}
