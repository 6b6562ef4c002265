//! Assigns each line to its table and address family, in every layout that iptables prints.

use super::model::{ImportError, Placed};
use super::{listing, save};
use crate::rules::{Family, Spec, Table};

/// The rules of a text.
pub(super) struct Read {
    /// Chain by chain, in the order of evaluation.
    pub rules: Vec<Placed>,
    /// Whether the text has IPv6 tables, even empty ones.
    pub has_v6: bool,
    pub notes: Vec<String>,
}

/// One table of the text.
#[derive(Default)]
struct Block {
    /// Named by `*TABLE` or `-t TABLE`. `Some(None)` is a table that cannot redirect.
    table: Option<Option<Table>>,
    family: Option<Family>,
    /// Built-in chains. They identify the table if the text does not name it.
    built_in: Vec<String>,
    rules: Vec<Line>,
    user_chains: bool,
}

struct Line {
    chain: String,
    /// `-I CHAIN N`.
    insert: Option<usize>,
    line: usize,
    text: String,
    spec: Result<Spec, String>,
}

/// The layout of the lines that follow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    Save,
    /// `iptables -L`, below the header of a chain.
    Listing,
}

struct Reader {
    blocks: Vec<Block>,
    layout: Layout,
    chain: String,
    /// Named by the comment above.
    family: Option<Family>,
    skipped: Vec<usize>,
    recognised: bool,
}

/// Reads any of the layouts.
pub(super) fn read(text: &str) -> Result<Read, ImportError> {
    let mut reader = Reader {
        blocks: Vec::new(),
        layout: Layout::Save,
        chain: String::new(),
        family: None,
        skipped: Vec::new(),
        recognised: false,
    };
    for (number, line) in (1..).zip(text.lines()) {
        reader.line(number, line.trim())?;
    }
    if !reader.recognised {
        return Err(ImportError::NoRules);
    }
    Ok(reader.finish())
}

impl Reader {
    fn line(&mut self, number: usize, line: &str) -> Result<(), ImportError> {
        if line.is_empty() || line == "COMMIT" {
            return Ok(());
        }
        if let Some(comment) = line.strip_prefix('#') {
            if comment.contains("tables-save") && comment.contains("Generated") {
                self.family = Some(if comment.contains("ip6tables") { Family::V6 } else { Family::V4 });
            }
            return Ok(());
        }
        let known = if let Some(name) = line.strip_prefix('*') {
            self.layout = Layout::Save;
            self.table(name.trim())
        } else if let Some(rest) = line.strip_prefix("Chain ") {
            self.header(rest)
        } else if let Some(rest) = line.strip_prefix(':') {
            self.declaration(rest)
        } else if self.layout == Layout::Listing && line.starts_with("target ") {
            return Err(ImportError::ListingWithoutInterfaces(number));
        } else if self.layout == Layout::Listing && !line.contains(" -A ") && !line.starts_with('-') {
            self.row(number, line)
        } else {
            self.command(number, line)
        };
        self.recognised |= known;
        if !known {
            self.skipped.push(number);
        }
        Ok(())
    }

    /// The block of the next line.
    fn block(&mut self) -> &mut Block {
        if self.blocks.is_empty() {
            self.start(None);
        }
        let last = self.blocks.len() - 1;
        &mut self.blocks[last]
    }

    fn start(&mut self, table: Option<Option<Table>>) {
        // A comment speaks for all tables below it.
        let family = self.family;
        self.blocks.push(Block { table, family, ..Block::default() });
    }

    /// `*TABLE`.
    fn table(&mut self, name: &str) -> bool {
        let known = table(name).is_some() || name == "security";
        if known {
            self.start(Some(table(name)));
        }
        known
    }

    /// `:CHAIN POLICY [0:0]`.
    fn declaration(&mut self, rest: &str) -> bool {
        let mut words = rest.split_whitespace();
        match (words.next(), words.next()) {
            (Some(_), Some("-")) => self.block().user_chains = true,
            (Some(name), Some("ACCEPT" | "DROP")) => self.policy(name),
            _ => return false,
        }
        true
    }

    /// A built-in chain. Where tables have no header, one that cannot be of the same table begins the next.
    fn policy(&mut self, name: &str) {
        let block = self.block();
        let again = block.built_in.iter().any(|known| known == name);
        if block.table.is_none()
            && (again || block.user_chains || !block.rules.is_empty() && self.layout == Layout::Save)
        {
            self.start(None);
        }
        self.block().built_in.push(name.into());
    }

    /// `Chain NAME (policy ACCEPT 0 packets, 0 bytes)` or `Chain NAME (1 references)`.
    fn header(&mut self, rest: &str) -> bool {
        let Some((name, what)) = rest.split_once(" (") else { return false };
        self.layout = Layout::Listing;
        self.chain = name.into();
        if what.starts_with("policy") {
            self.policy(name);
        } else if what.contains("reference") {
            self.block().user_chains = true;
        } else {
            return false;
        }
        true
    }

    fn row(&mut self, line: usize, text: &str) -> bool {
        let Some(spec) = listing::row(text) else {
            return text.starts_with("pkts ") || text.starts_with("num ");
        };
        let chain = self.chain.clone();
        // Its words are those of a listing, but a rule is better known by its options.
        let text =
            spec.as_ref().map_or_else(|_| format!("{chain}: {text}"), |spec| format!("-A {chain} {spec}"));
        self.block().rules.push(Line { chain, insert: None, line, text, spec });
        true
    }

    /// `-A CHAIN …` and its like, perhaps after counters or the name of the program.
    fn command(&mut self, line: usize, text: &str) -> bool {
        let of_iptables = |word: &str| {
            let program = word.rsplit('/').next().unwrap_or(word);
            program.starts_with("iptables") || program.starts_with("ip6tables")
        };
        let shell = text.split_whitespace().find(|word| !word.starts_with('[')).is_some_and(of_iptables);
        let Some(words) = save::words(text, shell) else { return self.unreadable(line, text) };
        let mut words = words.as_slice();
        if words.first().is_some_and(|word| word.starts_with('[') && word.ends_with(']')) {
            words = &words[1..];
        }
        let mut family = None;
        if let Some(program) = words.first().and_then(|word| word.rsplit('/').next())
            && (program.starts_with("iptables") || program.starts_with("ip6tables"))
        {
            family = Some(if program.starts_with("ip6") { Family::V6 } else { Family::V4 });
            words = &words[1..];
        }
        let mut named = None;
        loop {
            match words {
                [flag, name, rest @ ..] if flag == "-t" || flag == "--table" => {
                    named = Some(table(name));
                    words = rest;
                }
                [flag, rest @ ..] if flag == "-w" || flag == "--wait" => words = rest,
                _ => break,
            }
        }
        let [verb, chain, rest @ ..] = words else { return false };
        if named.is_some() || family.is_some() {
            self.switch(named, family);
        }
        match verb.as_str() {
            "-P" | "--policy" => {
                self.layout = Layout::Save;
                self.policy(chain);
            }
            "-N" | "--new-chain" | "--new" => self.block().user_chains = true,
            "-A" | "--append" => self.rule(chain, None, line, text, rest),
            "-I" | "--insert" => match rest.first().and_then(|word| word.parse::<usize>().ok()) {
                Some(position) => self.rule(chain, Some(position), line, text, &rest[1..]),
                None => self.rule(chain, Some(1), line, text, rest),
            },
            _ => return false,
        }
        true
    }

    /// Counts a rule whether or not it can be expressed.
    fn unreadable(&mut self, line: usize, text: &str) -> bool {
        let mut words = text
            .split_whitespace()
            .skip_while(|word| !matches!(*word, "-A" | "--append" | "-I" | "--insert"));
        let Some(chain) = words.nth(1).map(str::to_owned) else { return false };
        let spec = Err("a quote in it is not closed".into());
        self.block().rules.push(Line { chain, insert: None, line, text: text.into(), spec });
        true
    }

    /// A command that says its table or family goes to a block of that table and family.
    fn switch(&mut self, named: Option<Option<Table>>, family: Option<Family>) {
        let current = self.blocks.last();
        let table = named.or_else(|| current.and_then(|block| block.table));
        let fits = |block: &Block| {
            let same_table = named.is_none() || block.table.is_none_or(|of| Some(of) == named);
            same_table && (family.is_none() || block.family.is_none() || block.family == family)
        };
        if current.is_some_and(fits) {
            return;
        }
        self.start(table);
        if family.is_some() {
            self.block().family = family;
        }
    }

    fn rule(&mut self, chain: &str, insert: Option<usize>, line: usize, text: &str, words: &[String]) {
        let spec = save::spec(words);
        self.block().rules.push(Line { chain: chain.into(), insert, line, text: text.into(), spec });
    }

    fn finish(self) -> Read {
        let mut read = Read { rules: Vec::new(), has_v6: false, notes: Vec::new() };
        let mut others = 0;
        for mut block in self.blocks {
            let Some(table) = block.table.unwrap_or_else(|| Some(block.by_chains())) else {
                others += block.rules.len();
                continue;
            };
            let family = block.family.or_else(|| block.by_addresses()).unwrap_or_else(|| {
                // Nothing tells: the second table of a name is that of the other family.
                let seen = read.rules.iter().any(|rule| rule.table == table && rule.family == Family::V4);
                if seen && !block.rules.is_empty() { Family::V6 } else { Family::V4 }
            });
            read.has_v6 |= family == Family::V6;
            for line in block.in_order() {
                let Line { chain, line, text, spec, .. } = line;
                read.rules.push(Placed { family, table, chain, line, text, spec });
            }
        }
        if others > 0 {
            read.notes.push(format!("{others} rules are in tables that redirector does not look at"));
        }
        if let Some(first) = self.skipped.first() {
            let count = self.skipped.len();
            read.notes.push(format!(
                "{count} lines are not of iptables and were skipped (the first is line {first})"
            ));
        }
        read
    }
}

impl Block {
    /// The table whose built-in chains these are.
    fn by_chains(&self) -> Table {
        let has = |name: &str| self.built_in.iter().any(|known| known == name);
        match (has("FORWARD"), has("PREROUTING"), has("INPUT") || has("POSTROUTING")) {
            (true, true, _) => Table::Mangle,
            (true, false, _) => Table::Filter,
            (false, true, false) if has("OUTPUT") && self.rules.iter().all(Line::is_raw) => Table::Raw,
            _ => Table::Nat,
        }
    }

    fn by_addresses(&self) -> Option<Family> {
        let specs = self.rules.iter().filter_map(|line| line.spec.as_ref().ok());
        let mut nets = specs.flat_map(|spec| [&spec.source, &spec.destination]).flatten();
        nets.next().map(|is| if is.value.addr().is_ipv4() { Family::V4 } else { Family::V6 })
    }

    /// The rules after every `-I` took its place.
    fn in_order(&mut self) -> Vec<Line> {
        let mut list: Vec<Line> = Vec::new();
        for line in std::mem::take(&mut self.rules) {
            let nth = |list: &[Line], n: usize| {
                let mut of_chain = list.iter().enumerate().filter(|(_, known)| known.chain == line.chain);
                of_chain.nth(n.saturating_sub(1)).map(|(at, _)| at)
            };
            match line.insert.and_then(|n| nth(&list, n)) {
                Some(at) => list.insert(at, line),
                None => list.push(line),
            }
        }
        list
    }
}

impl Line {
    fn is_raw(&self) -> bool {
        use crate::rules::Target::{Jump, Zone};
        self.spec.as_ref().is_ok_and(|spec| match &spec.target {
            Zone(_) => true,
            Jump(chain) => chain == "ISTIO_OUTPUT_DNS" || chain == "ISTIO_INBOUND",
            _ => false,
        })
    }
}

/// A table by name. `None`: the table cannot redirect.
fn table(name: &str) -> Option<Table> {
    [Table::Raw, Table::Mangle, Table::Nat, Table::Filter].into_iter().find(|table| table.name() == name)
}
