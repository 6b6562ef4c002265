//! Which file of a crate takes something from which other file.
//!
//! A file takes what it names: `use crate::a::B`, `super::c()`, `child::D`. What a parent re-exports counts as taken
//! from the file that has it. `mod child;` and `pub use child::B` of the parent take nothing: they say where things are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::tokens::{Token, tokens, without_tests};

/// The path of a module in its crate: `["agent", "plan"]`.
pub type Module = Vec<String>;

/// One path in the code that leads to another file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Import {
    pub from: Module,
    pub to: Module,
    pub line: usize,
    /// The path as it is written.
    pub text: String,
}

/// The files of a crate and what they take from each other, test code left out.
pub struct Crate {
    pub files: BTreeMap<Module, PathBuf>,
    pub imports: Vec<Import>,
}

/// A path in a file, before it is known where it leads.
struct Mention {
    inline: Module,
    segments: Vec<String>,
    line: usize,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Path,
    Use,
    /// `pub use`, also with a restriction.
    Reexport,
}

/// Names that a module has from elsewhere, with the path as it is written.
type Names = BTreeMap<Module, Vec<(String, Vec<String>)>>;

impl Crate {
    /// Reads the sources in `src`.
    pub fn read(src: &Path) -> Result<Self> {
        let mut sources = BTreeMap::new();
        collect(src, &mut Vec::new(), &mut sources)?;
        Ok(Self::of(sources))
    }

    /// From the texts of its files.
    pub fn of(sources: BTreeMap<Module, (PathBuf, String)>) -> Self {
        let mut tests = BTreeSet::new();
        let mut mentions = BTreeMap::new();
        for (module, (_, text)) in &sources {
            let all = tokens(text);
            let (kept, test_files) = without_tests(&all);
            tests.extend(test_files.into_iter().map(|name| child(module, name)));
            mentions.insert(module.clone(), mentions_in(&kept));
        }
        let is_test = |module: &Module| (1..=module.len()).any(|end| tests.contains(&module[..end]));
        let files: BTreeMap<Module, PathBuf> = sources
            .into_iter()
            .filter(|(module, _)| !is_test(module))
            .map(|(module, (file, _))| (module, file))
            .collect();
        let mut names = Names::new();
        for (module, mentions) in mentions.iter().filter(|(module, _)| files.contains_key(*module)) {
            for mention in
                mentions.iter().filter(|mention| mention.kind != Kind::Path && mention.inline.is_empty())
            {
                if let Some(name) = mention.segments.last() {
                    names.entry(module.clone()).or_default().push((name.clone(), mention.segments.clone()));
                }
            }
        }
        let resolver = Resolver { files: &files, names: &names };
        let mut imports = Vec::new();
        for (module, mentions) in mentions.iter().filter(|(module, _)| files.contains_key(*module)) {
            imports.extend(mentions.iter().filter_map(|mention| resolver.import(module, mention)));
        }
        imports.sort();
        imports.dedup_by(|a, b| (&a.from, &a.to, &a.text) == (&b.from, &b.to, &b.text));
        Self { files, imports }
    }
}

fn child(module: &[String], name: &str) -> Module {
    module.iter().cloned().chain([name.to_owned()]).collect()
}

fn collect(dir: &Path, module: &mut Module, found: &mut BTreeMap<Module, (PathBuf, String)>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        let Some(stem) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
        if path.is_dir() {
            module.push(stem.to_owned());
            collect(&path, module, found)?;
            module.pop();
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let own =
                if ["mod", "lib", "main"].contains(&stem) { module.clone() } else { child(module, stem) };
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            found.insert(own, (path, text));
        }
    }
    Ok(())
}

struct Resolver<'a> {
    files: &'a BTreeMap<Module, PathBuf>,
    names: &'a Names,
}

impl Resolver<'_> {
    fn import(&self, from: &Module, mention: &Mention) -> Option<Import> {
        let mut inside = from.clone();
        inside.extend(mention.inline.iter().cloned());
        let to = self.file_of(&inside, &mention.segments, 0)?;
        let parent_says_where = mention.kind == Kind::Reexport && to.starts_with(from);
        (to != *from && !parent_says_where).then(|| Import {
            from: from.clone(),
            to,
            line: mention.line,
            text: mention.segments.join("::"),
        })
    }

    /// The file that `segments`, written in `module`, lead to; None if out of the crate.
    fn file_of(&self, module: &[String], segments: &[String], depth: usize) -> Option<Module> {
        let mut at = module.to_vec();
        let mut rest = segments;
        let mut relative = false;
        while let Some((first, behind)) = rest.split_first() {
            match first.as_str() {
                "crate" => at.clear(),
                "super" => drop(at.pop()),
                "self" => {}
                _ => break,
            }
            (rest, relative) = (behind, true);
        }
        // A path that begins with a plain name leads to a module of this one, else out of the crate.
        if !relative && !self.files.contains_key(&child(module, rest.first()?)) {
            return None;
        }
        while let Some((name, behind)) = rest.split_first() {
            let below = child(&at, name);
            if !self.files.contains_key(&below) {
                return Some(self.through_names(&at, rest, depth).unwrap_or_else(|| self.enclosing(&at)));
            }
            (at, rest) = (below, behind);
        }
        Some(self.enclosing(&at))
    }

    /// Follows the name that `module` has from elsewhere.
    fn through_names(&self, module: &[String], rest: &[String], depth: usize) -> Option<Module> {
        const MAX_REEXPORTS: usize = 8;
        let (_, path) = self.names.get(module)?.iter().find(|(name, _)| *name == rest[0])?;
        let path: Vec<String> = path.iter().chain(&rest[1..]).cloned().collect();
        if depth == MAX_REEXPORTS { None } else { self.file_of(module, &path, depth + 1) }
    }

    /// The file that a module, perhaps an inline one, stands in.
    fn enclosing(&self, module: &[String]) -> Module {
        let length = (0..=module.len()).rev().find(|length| self.files.contains_key(&module[..*length]));
        module[..length.unwrap_or(0)].to_vec()
    }
}

/// Every path of two and more segments.
fn mentions_in(tokens: &[Token<'_>]) -> Vec<Mention> {
    let mut scan = Scan { tokens, at: 0, depth: 0, inline: Vec::new(), found: Vec::new() };
    while let Some(token) = tokens.get(scan.at) {
        scan.step(token);
    }
    scan.found
}

struct Scan<'a, 'b> {
    tokens: &'a [Token<'b>],
    at: usize,
    depth: usize,
    /// Inline modules around, with the depth of their braces.
    inline: Vec<(String, usize)>,
    found: Vec<Mention>,
}

impl Scan<'_, '_> {
    fn text(&self, at: usize) -> &str {
        self.tokens.get(at).map_or("", |token| token.text)
    }

    fn step(&mut self, token: &Token<'_>) {
        match token.text {
            "{" => self.depth += 1,
            "}" => {
                self.depth = self.depth.saturating_sub(1);
                self.inline.retain(|(_, depth)| *depth < self.depth + 1);
            }
            "mod" if self.text(self.at + 2) == "{" => {
                self.inline.push((self.text(self.at + 1).to_owned(), self.depth + 1));
                self.at += 1;
            }
            // `pub(in crate::a)` takes nothing.
            "pub" if self.text(self.at + 1) == "(" => {
                while !["", ")"].contains(&self.text(self.at)) {
                    self.at += 1;
                }
            }
            "use" => return self.use_item(),
            _ if self.text(self.at + 1) == "::" && !["::", "."].contains(&self.before()) => {
                return self.path();
            }
            _ => {}
        }
        self.at += 1;
    }

    fn before(&self) -> &str {
        self.at.checked_sub(1).map_or("", |before| self.text(before))
    }

    fn path(&mut self) {
        let line = self.tokens[self.at].line;
        let mut segments = vec![self.text(self.at).to_owned()];
        while self.text(self.at + 1) == "::" && is_name(self.text(self.at + 2)) {
            segments.push(self.text(self.at + 2).to_owned());
            self.at += 2;
        }
        self.at += 1;
        self.mention(segments, line, Kind::Path);
    }

    fn use_item(&mut self) {
        let kind = if ["pub", ")"].contains(&self.before()) { Kind::Reexport } else { Kind::Use };
        self.at += 1;
        self.use_tree(&[], kind);
    }

    /// `a::{b, c as d, e::*}`; ends on the `,`, `}` or `;` behind it.
    fn use_tree(&mut self, prefix: &[String], kind: Kind) {
        let mut segments = prefix.to_vec();
        let line = self.tokens.get(self.at).map_or(0, |token| token.line);
        loop {
            match self.text(self.at) {
                "{" => {
                    while !["", "}"].contains(&self.text(self.at)) {
                        self.at += 1;
                        if self.text(self.at) != "}" {
                            self.use_tree(&segments, kind);
                        }
                    }
                    self.at += 1;
                    return;
                }
                "::" | "*" => {}
                // The name it gets is of interest to nobody outside of this file.
                "as" => self.at += 1,
                "self" if !segments.is_empty() => {}
                name if is_name(name) => segments.push(name.to_owned()),
                _ => return self.mention(segments, line, kind),
            }
            self.at += 1;
        }
    }

    fn mention(&mut self, segments: Vec<String>, line: usize, kind: Kind) {
        let inline = self.inline.iter().map(|(name, _)| name.clone()).collect();
        self.found.push(Mention { inline, segments, line, kind });
    }
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edges(files: &[(&str, &str)]) -> Vec<String> {
        let sources = files.iter().map(|(module, text)| {
            let module: Module =
                module.split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect();
            (module, (PathBuf::new(), (*text).to_owned()))
        });
        let found = Crate::of(sources.collect()).imports;
        found.iter().map(|import| format!("{}>{}", import.from.join("::"), import.to.join("::"))).collect()
    }

    #[test]
    fn every_way_to_write_a_path_is_seen() {
        for text in [
            "use crate::b::c::X;",
            "use crate::{b::{c::{X as Y}}};",
            "use super::b::c;",
            "pub(crate) use crate::b::c::*;",
            "fn f() { g(crate::b::c::h()) }",
            "fn f(x: &'static super::b::c::X) {}",
            "mod inner { use super::super::b::c; }",
            "fn f() -> impl crate::b::c::T { println!(\"{}\", 1) }",
        ] {
            assert_eq!(edges(&[("a", text), ("b", ""), ("b::c", "")]), ["a>b::c"], "{text}");
        }
    }

    #[test]
    fn what_leads_nowhere_else_is_no_import() {
        let text = "use std::fs; use crate::a::X; pub(in crate::b) struct Y; // crate::b::c\n const S: &str = \"crate::b\";";
        assert!(edges(&[("a", text), ("b", "")]).is_empty());
        assert!(edges(&[("a", "mod inner { use super::X; }")]).is_empty());
        let tests = "#[cfg(test)] mod tests { use crate::b::X; } #[cfg(test)] mod more;";
        assert!(edges(&[("a", tests), ("a::more", "use crate::b::X;"), ("b", "")]).is_empty());
    }

    #[test]
    fn a_reexport_leads_to_the_file_that_has_it() {
        let files = [
            ("", "mod b; pub use b::Y;"),
            ("a", "use crate::{b::X, Y};"),
            ("b", "mod c; pub use c::{X, Y};"),
            ("b::c", ""),
        ];
        assert_eq!(edges(&files), ["a>b::c", "a>b::c"]);
    }

    #[test]
    fn a_parent_takes_from_its_children_only_what_it_uses() {
        assert!(edges(&[("a", "mod b; pub use b::X;"), ("a::b", "")]).is_empty());
        assert_eq!(
            edges(&[("a", "mod b; fn f() { b::g() }"), ("a::b", "use super::H;")]),
            ["a>a::b", "a::b>a"]
        );
    }
}
