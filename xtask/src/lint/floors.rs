//! The rooms of redirector-user: its modules at the top, each on a floor of the table in ARCHITECTURE.md.
//!
//! A room imports from its own floor and those below. Neither rooms nor the files of one room import each other in a
//! circle. Test code is exempt: a test may hold a lower room against a higher one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context as _, Result, bail, ensure};

use super::circles::circles;
use super::imports::{Crate, Import, Module};
use crate::project;

const SOURCES: &str = "redirector-user/src";
const TABLE: &str = "ARCHITECTURE.md";
const HEADING: &str = "## Floors";

/// Fails with every import that goes up and every circle.
pub fn check() -> Result<()> {
    let root = project::root();
    let page = fs::read_to_string(root.join(TABLE)).context(TABLE)?;
    let read = Crate::read(&root.join(SOURCES))?;
    let floors = floors(&page)?;
    complete(&floors, &read)?;
    let found: Vec<String> = upward(&floors, &read).into_iter().chain(in_circles(&read)).collect();
    ensure!(found.is_empty(), "the floors of {TABLE} do not hold:\n{}", found.join("\n"));
    Ok(())
}

/// Rows `| 3 | pod, rules |` of the table under the heading.
fn floors(page: &str) -> Result<BTreeMap<String, u32>> {
    let (_, section) = page.split_once(HEADING).with_context(|| format!("{TABLE} has no `{HEADING}`"))?;
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    let mut floors = BTreeMap::new();
    for row in section.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let (Some(Ok(floor)), Some(rooms)) = (cells.get(1).map(|cell| cell.parse()), cells.get(2)) else {
            continue;
        };
        for room in rooms.split(',').map(|room| room.trim().trim_matches('`')) {
            ensure!(floors.insert(room.to_owned(), floor).is_none(), "{TABLE} has the room {room} twice");
        }
    }
    Ok(floors)
}

/// The table has the rooms that there are.
fn complete(floors: &BTreeMap<String, u32>, read: &Crate) -> Result<()> {
    let rooms: BTreeSet<&String> = read.files.keys().filter_map(|module| module.first()).collect();
    let listed: BTreeSet<&String> = floors.keys().collect();
    if let Some(room) = rooms.symmetric_difference(&listed).next() {
        let (has, lacks) = if rooms.contains(room) { (SOURCES, TABLE) } else { (TABLE, SOURCES) };
        bail!("{has} has the room {room}, {lacks} has not");
    }
    Ok(())
}

fn upward(floors: &BTreeMap<String, u32>, read: &Crate) -> Vec<String> {
    let floor = |module: &Module| floors.get(module.first()?).copied();
    read.imports
        .iter()
        .filter_map(|import| {
            let (from, to) = (floor(&import.from)?, floor(&import.to)?);
            (from < to).then(|| format!("up: {} (floor {from}) -> floor {to}", shown(read, import)))
        })
        .collect()
}

/// Circles of rooms, and of files in one room; with the imports that tie them.
fn in_circles(read: &Crate) -> Vec<String> {
    let room = |module: &Module| module.first().cloned();
    let mut between = BTreeSet::new();
    let mut within: BTreeMap<String, BTreeSet<(Module, Module)>> = BTreeMap::new();
    for import in &read.imports {
        let (Some(from), Some(to)) = (room(&import.from), room(&import.to)) else { continue };
        if from == to {
            within.entry(from).or_default().insert((import.from.clone(), import.to.clone()));
        } else {
            between.insert((from, to));
        }
    }
    let mut found = Vec::new();
    let mut describe = |what: String, ties: &dyn Fn(&Import) -> bool| {
        let ties = read
            .imports
            .iter()
            .filter(|import| ties(import))
            .map(|import| format!("  {}", shown(read, import)));
        found.push([what].into_iter().chain(ties).collect::<Vec<_>>().join("\n"));
    };
    for circle in circles(&between) {
        let is_tie = |import: &Import| match (room(&import.from), room(&import.to)) {
            (Some(from), Some(to)) => from != to && circle.contains(&from) && circle.contains(&to),
            _ => false,
        };
        describe(format!("circle of rooms: {}", circle.join(", ")), &is_tie);
    }
    for (room, edges) in &within {
        for circle in circles(edges) {
            let is_tie = |import: &Import| circle.contains(&import.from) && circle.contains(&import.to);
            let names: Vec<String> = circle.iter().map(|module| module.join("::")).collect();
            describe(format!("circle in {room}: {}", names.join(", ")), &is_tie);
        }
    }
    found
}

fn shown(read: &Crate, import: &Import) -> String {
    let file = |module: &Module| {
        let root = project::root();
        read.files
            .get(module)
            .map_or_else(String::new, |file| file.strip_prefix(&root).unwrap_or(file).display().to_string())
    };
    format!("{}:{} -> {} ({})", file(&import.from), import.line, file(&import.to), import.text)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const PAGE: &str = "# A\n## Floors\n\n| Floor | Rooms |\n|---|---|\n| 2 | `high` |\n| 1 | `low`, `other` |\n\n## B\n| 3 | x |\n";

    fn read(files: &[(&str, &str)]) -> Crate {
        let sources = files.iter().map(|(path, text)| {
            let module = path.split('/').map(str::to_owned).collect();
            (module, (PathBuf::from(format!("{path}.rs")), (*text).to_owned()))
        });
        Crate::of(sources.collect())
    }

    #[test]
    fn an_import_that_goes_up_names_both_ends() {
        let floors = floors(PAGE).unwrap();
        let fine = read(&[("high", "use crate::low::X;"), ("low", "use crate::other::Y;"), ("other", "")]);
        assert!(upward(&floors, &fine).is_empty());
        let planted = read(&[("high", ""), ("low", "\nfn f() { crate::high::g() }"), ("other", "")]);
        assert_eq!(
            upward(&floors, &planted),
            ["up: low.rs:2 -> high.rs (crate::high::g) (floor 1) -> floor 2"]
        );
    }

    #[test]
    fn circles_are_found_between_rooms_and_within_one() {
        let fine =
            read(&[("low", "use crate::other::a::X;"), ("other/a", "use super::b::Y;"), ("other/b", "")]);
        assert!(in_circles(&fine).is_empty());
        let rooms = read(&[("low", "use crate::other::X;"), ("other", "use crate::low::Y;")]);
        assert_eq!(
            in_circles(&rooms),
            [
                "circle of rooms: low, other\n  low.rs:1 -> other.rs (crate::other::X)\n  other.rs:1 -> low.rs (crate::low::Y)"
            ]
        );
        let files = read(&[("low", ""), ("low/a", "use super::b::X;"), ("low/b", "use crate::low::a::Y;")]);
        assert!(in_circles(&files)[0].starts_with("circle in low: low::a, low::b\n"));
    }

    #[test]
    fn the_table_has_every_room_and_no_other() {
        let floors = floors(PAGE).unwrap();
        assert_eq!(floors.len(), 3);
        let files = [("high", ""), ("low", ""), ("other", ""), ("new", "")];
        complete(&floors, &read(&files[..3])).unwrap();
        assert!(complete(&floors, &read(&files)).unwrap_err().to_string().contains("room new"));
        assert!(complete(&floors, &read(&files[..2])).unwrap_err().to_string().contains("room other"));
    }
}
