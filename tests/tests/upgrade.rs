//! `redirector upgrade`: the programs of an instance are swapped for those of this binary, and nobody notices.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;

use anyhow::Context;
use redirector_tests::harness::load::during;
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::product::objects::set_layout;
use redirector_tests::harness::product::older::{Older, PROGRAMS};
use serde_json::Value;

const CONNECTIONS: u16 = 1000;

struct PodOfOlder {
    bpffs: Bpffs,
    world: World,
    older: Older,
}

impl PodOfOlder {
    fn new() -> anyhow::Result<Option<Self>> {
        require_root!("bpftool");
        Ok(Some(Self { bpffs: Bpffs::new()?, world: World::new()?, older: Older::make()? }))
    }

    fn pod(&self) -> &Pod {
        self.world.pod()
    }

    fn by_older(&self, arguments: &[&str]) -> anyhow::Result<Run> {
        Run::of(&mut self.bpffs.command_of(&self.older.path(), &[], arguments))
    }

    fn attach_by_older(&self) -> anyhow::Result<()> {
        let place = target(self.pod());
        let place = place.each_ref().map(String::as_str);
        self.by_older(&[&["attach", "--name", NAME], &place[..]].concat())?.expect(exit::OK)?;
        Ok(())
    }
}

/// The kernel's tag of the program at a hook: what its instructions are.
fn tag(show: &Value, hook: &str) -> anyhow::Result<String> {
    let hooks = show["hooks"].as_array().context("hooks")?;
    let hook = hooks.iter().find(|status| status["hook"] == hook).context("the hook")?;
    let id = hook["program"].to_string();
    let program = run(Command::new("bpftool").args(["-j", "prog", "show", "id", &id]), "")?;
    let program: Value = serde_json::from_str(&program)?;
    Ok(program["tag"].as_str().context("a tag")?.to_owned())
}

#[test]
fn an_older_version_is_upgraded() -> anyhow::Result<()> {
    let Some(tested) = PodOfOlder::new()? else { return Ok(()) };
    let (bpffs, pod) = (&tested.bpffs, tested.pod());
    bpffs.run(&["upgrade", "--all"])?.refused(exit::NOTHING, &["no instance"])?;
    bpffs.run(&["upgrade", NAME])?.refused(exit::NOTHING, &["there is no instance pod"])?;
    let _proxy = pod.serve(PROXY, "proxy", proxy_listeners(1))?;
    tested.attach_by_older()?;
    let mut held = Held::start(&pod.place(APP)?, at(VIP4, 80))?;
    let names = held.names()?;
    assert_eq!(names.peer.address(), Some(at(VIP4, 80)));
    let before = bpffs.show(NAME)?;
    assert_eq!(before["record"]["programs"], PROGRAMS);
    let [old_connect, old_getsockopt] = [tag(&before, "connect4")?, tag(&before, "getsockopt")?];

    let run = bpffs.run(&["upgrade", NAME])?.expect(exit::OK)?.json()?;
    assert_eq!(run["upgraded"], serde_json::json!([NAME]));
    let after = bpffs.show(NAME)?;
    assert_ne!(after["record"]["programs"], PROGRAMS);
    assert_eq!(after["record"]["policy"], before["record"]["policy"]);
    assert_eq!(after["effective"], true, "{after:#}");
    assert_eq!(after["counters"], before["counters"]);
    assert_eq!(after["connections"], 1);
    assert_ne!(tag(&after, "connect4")?, old_connect, "the programs are the old ones");
    assert_eq!(tag(&after, "getsockopt")?, old_getsockopt);
    assert_eq!(held.names()?, names, "a live connection has kept its names");
    assert!(held.echo()?);
    bpffs.run(&["verify", NAME, "--programs-only"])?.expect(exit::OK)?;

    // Again is no mistake, and what the older one made of it is the same.
    bpffs.run(&["upgrade", "--all"])?.expect(exit::OK)?;
    tested.by_older(&["upgrade", NAME])?.expect(exit::OK)?;
    assert_eq!(tag(&bpffs.show(NAME)?, "connect4")?, old_connect);
    assert_eq!(held.names()?, names);
    drop(held);
    bpffs.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
    bpffs.expect_empty()
}

/// Programs that read other maps are not put over these.
#[test]
fn another_layout_is_refused() -> anyhow::Result<()> {
    let Some(tested) = PodOfOlder::new()? else { return Ok(()) };
    let bpffs = &tested.bpffs;
    tested.attach_by_older()?;
    let ids = bpffs.show(NAME)?["hooks"].clone();
    let layout = |abi| set_layout(&bpffs.instance(NAME), abi);
    let ours = layout(99)?;
    let words = ["map layout 99", "the program that made it", "detach --name pod"];
    bpffs.run(&["upgrade", NAME])?.refused(exit::CANNOT, &words)?;
    bpffs.run(&["upgrade", "--all"])?.refused(exit::CANNOT, &words)?;
    bpffs.attach(tested.pod(), NAME, &[])?.refused(exit::CANNOT, &words)?;
    layout(ours)?;
    assert_eq!(bpffs.show(NAME)?["hooks"], ids, "nothing was touched");
    // The remedy of the message works.
    layout(99)?;
    bpffs.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
    bpffs.attach(tested.pod(), NAME, &[])?.expect(exit::OK)?;
    Ok(())
}

/// An instance of version 0.1, whose META is shorter, is recognised and left alone; it can be detached.
#[test]
fn the_first_layout() -> anyhow::Result<()> {
    require_root!("bpftool");
    let tested = TestPod::attached(&[])?;
    let meta = tested.bpffs.instance(NAME).join("META");
    std::fs::remove_file(&meta)?;
    let mut create = Command::new("bpftool");
    create.args(["map", "create"]).arg(&meta);
    run(create.args(["type", "array", "key", "4", "value", "48", "entries", "1", "name", "META"]), "")?;
    let words = ["map layout 1", "this program has 2", "detach --name pod"];
    tested.attach_by(&[], &[])?.refused(exit::CANNOT, &words)?;
    for verb in ["upgrade", "refresh", "show"] {
        tested.bpffs.run(&[verb, NAME])?.refused(exit::CANNOT, &words)?;
    }
    let list = tested.bpffs.list()?;
    assert_eq!((&list[0]["name"], &list[0]["state"]), (&NAME.into(), &"damaged".into()), "{list:#?}");
    assert!(list[0]["problem"].as_str().is_some_and(|problem| problem.contains("map layout 1")), "{list:#?}");
    assert!(list[0]["cgroup"].is_string(), "{list:#?}");
    tested.bpffs.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
    tested.bpffs.expect_empty()
}

/// Connections in both directions while programs are swapped back and forth: none is lost, none escapes.
#[test]
fn no_connection_is_lost() -> anyhow::Result<()> {
    let Some(tested) = PodOfOlder::new()? else { return Ok(()) };
    let (bpffs, pod) = (&tested.bpffs, tested.pod());
    let _proxy = pod.serve(PROXY, "proxy", proxy_listeners(2))?;
    // An escaped connection is answered by another server.
    let ports: Vec<u16> = (2000..2000 + 20).collect();
    let _remote = tested.world.serve_outside(everywhere(&ports))?;
    let _app = pod.serve(APP, "app", everywhere(&ports))?;
    tested.attach_by_older()?;
    let port = |number: u16| 2000 + number % 20;
    let out: Vec<SocketAddr> = (0..CONNECTIONS)
        .map(|number| match number % 2 {
            0 => at(Ipv4Addr::new(10, 96, number.to_be_bytes()[0], number.to_be_bytes()[1]), port(number)),
            _ => at(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 1, number), port(number)),
        })
        .collect();
    let into: Vec<SocketAddr> = (0..CONNECTIONS)
        .map(|number| if number % 2 == 0 { at(pod.v4(), port(number)) } else { at(pod.v6(), port(number)) })
        .collect();

    let (app, outside) = (pod.place(APP)?, tested.world.outside());
    let load = |destinations| Load { threads: 3, ..Load::to(destinations) };
    let loads = [(&app, load(out)), (&outside, load(into))];
    let turns = share::times(10, 3);
    let reports = during(&loads, || {
        (0..turns).try_for_each(|_| {
            bpffs.run(&["upgrade", NAME])?.expect(exit::OK)?;
            tested.by_older(&["upgrade", NAME])?.expect(exit::OK).map(drop)
        })
    })?;
    for (reports, port) in reports.iter().zip([15001, 15006]) {
        for report in reports {
            assert!(report.wrong == 0 && report.failed.is_empty(), "{report:#?}");
            let proxy = report.reached.get(&format!("proxy:{port}")).copied();
            assert_eq!(proxy, Some(usize::from(CONNECTIONS)), "{report:#?}");
        }
    }
    println!("{} swaps while {} connections were made", 2 * turns, {
        reports.iter().map(Vec::len).sum::<usize>() * usize::from(CONNECTIONS)
    });
    let show = bpffs.show(NAME)?;
    assert_eq!((&show["connections"], &show["effective"]), (&0.into(), &true.into()), "{show:#}");
    Ok(())
}
