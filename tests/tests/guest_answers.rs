//! `-k` takes what a guest begins, and nothing of what others have begun with it past every socket of the pod.

use anyhow::{Context, ensure};
use redirector_tests::harness::oracle::options::Cidrs;
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::strace::{Fault, chosen, steps, with};
use redirector_tests::harness::world::GUEST_INTERFACE;
use redirector_tests::harness::world::netns::Netns;

/// A port of the pod that is the guest's.
const TRANSLATED: u16 = 2222;
const GUEST: [std::net::IpAddr; 2] = [
    std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 79, 0, 1)),
    std::net::IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 0x79, 0, 0, 0, 0, 0, 1)),
];

fn pod() -> PodOptions {
    PodOptions { guest: true, ..PodOptions::default() }
}

fn has_guests() -> anyhow::Result<bool> {
    has_or_refuses(kernel::TELLS_INTERFACES, &["-k", GUEST_INTERFACE])
}

/// As KubeVirt does in masquerade mode; and a server in the guest.
fn translate(pod: &Pod) -> anyhow::Result<Server> {
    for (program, to) in [("iptables", "10.79.0.1"), ("ip6tables", "[fd00:79::1]")] {
        let rule = format!(
            "-w -t nat -A PREROUTING -i eth0 -p tcp --dport {TRANSLATED} -j DNAT --to-destination {to}:{SERVED}"
        );
        run(pod.netns.command(program).args(rule.split(' ')), "")?;
    }
    Server::start(&pod.in_guest()?, "guest", everywhere(&[SERVED]))
}

/// From outside to the guest, translated and routed.
fn to_guest(pod: &Pod) -> Vec<Scenario> {
    let translated = [pod.v4().into(), pod.v6().into()].map(|ip: std::net::IpAddr| at(ip, TRANSLATED));
    translated.into_iter().chain(GUEST.map(|ip| at(ip, SERVED))).map(Scenario::to).collect()
}

fn roles(seen: &[Observation]) -> Vec<String> {
    let role = |it: &Observation| {
        let role = it.reached.as_ref().map(|reached| reached.role.clone());
        role.or_else(|| it.connect.clone()).unwrap_or_default()
    };
    seen.iter().map(role).collect()
}

/// Beside real iptables, which also leaves alone what enters the pod for these ports.
#[test]
fn connections_to_a_guest() -> anyhow::Result<()> {
    if !require_root() || !has_guests()? {
        return Ok(());
    }
    let listed = Cidrs::List(["10.0.0.0/8", "fd00::/8"].map(str::to_owned).to_vec());
    for outbound_cidrs in [Cidrs::All, listed] {
        let mut options = Options {
            virtual_interfaces: vec![GUEST_INTERFACE.to_owned()],
            outbound_cidrs,
            ..Options::sidecar()
        };
        options.inbound_ports_exclude.extend([TRANSLATED, SERVED]);
        let setup = Setup { pod: pod(), proxy_first: true, ..Setup::default() };
        let pair = Pair::with(options, &setup)?;
        let servers = [&pair.reference, &pair.subject].map(|fixture| translate(fixture.pod()));
        let from_guest = [SERVICE, at(VIP6, SERVED)].map(Scenario::to).to_vec();
        let parts = [
            Part { caller: Caller::Outside, scenarios: to_guest(pair.reference.pod()) },
            Part { caller: Caller::Guest, scenarios: from_guest },
        ];
        let seen = roles(&pair.check(&parts)?);
        assert_eq!(seen, ["guest", "guest", "guest", "guest", "proxy", "proxy"]);
        for server in servers {
            drop(server?);
        }
    }
    Ok(())
}

fn tc(netns: &Netns, words: &str) -> anyhow::Result<String> {
    run(std::process::Command::new("tc").args(["-n", netns.name()]).args(words.split(' ')), "")
}

/// Qdiscs, and the filters of what enters.
fn traffic_control(netns: &Netns, device: &str) -> anyhow::Result<String> {
    Ok(tc(netns, &format!("qdisc show dev {device}"))? + &ingress(netns, device)?)
}

fn ingress(netns: &Netns, device: &str) -> anyhow::Result<String> {
    tc(netns, &format!("filter show dev {device} ingress"))
}

struct GuestPod {
    bpffs: Bpffs,
    world: World,
    _servers: [Server; 3],
}

impl GuestPod {
    fn new() -> anyhow::Result<Option<Self>> {
        if !require_root() || !has_guests()? {
            return Ok(None);
        }
        let world = World::with(&[pod()])?;
        // As most distributions have it; strict filtering would drop what goes to a guest.
        world.pod().netns.sysctl(&[("ipv4/conf/all/rp_filter", "2")])?;
        let servers = [
            world.serve_outside(everywhere(&[SERVED]))?,
            world.pod().serve(PROXY, "proxy", everywhere(&[15001, 15006]))?,
            translate(world.pod())?,
        ];
        Ok(Some(Self { bpffs: Bpffs::new()?, world, _servers: servers }))
    }

    fn netns(&self) -> &Netns {
        &self.world.pod().netns
    }

    fn attach(&self, interface: &str) -> anyhow::Result<()> {
        let flags = ["-k", interface, "-d", "2222,80,15008"];
        let flags = if interface.is_empty() { &flags[2..] } else { &flags[..] };
        self.bpffs.attach(self.world.pod(), NAME, flags)?.expect(exit::OK).map(drop)
    }

    fn run(&self, arguments: &[&str]) -> anyhow::Result<()> {
        self.bpffs.run(arguments)?.expect(exit::OK).map(drop)
    }

    /// The roles that answer the outside and the guest.
    fn answers(&self) -> anyhow::Result<Vec<String>> {
        let mut seen = self.world.observe_from_outside(&to_guest(self.world.pod()))?;
        let services = [SERVICE, at(VIP6, SERVED)].map(Scenario::to);
        seen.extend(observe(&self.world.pod().in_guest()?, &services)?);
        Ok(roles(&seen))
    }

    /// Everything is as it should be: captured or not.
    fn expect(&self, captured: bool) -> anyhow::Result<()> {
        let service = if captured { "proxy" } else { "remote" };
        assert_eq!(self.answers()?, ["guest", "guest", "guest", "guest", service, service]);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> anyhow::Result<()> {
        self.netns().ip(&format!("link set {from} down\nlink set {from} name {to}\nlink set {to} up\n"))?;
        self.netns().wait_until_links_are_up()?;
        self.netns().ip(&format!(
            "address replace fd00:79:0::2/64 dev {to} nodad\n\
             neighbour replace 10.79.0.1 lladdr 02:00:00:4f:00:01 dev {to} nud permanent\n\
             neighbour replace fd00:79:0::1 lladdr 02:00:00:4f:00:01 dev {to} nud permanent\n"
        ))?;
        self.world.pod().guest.as_ref().context("guest")?.wait_until_links_are_up()
    }
}

/// With the policy and with the interfaces; nothing is left behind.
#[test]
fn the_classifier_comes_and_goes() -> anyhow::Result<()> {
    let Some(tested) = GuestPod::new()? else { return Ok(()) };
    let untouched = traffic_control(tested.netns(), GUEST_INTERFACE)?;
    ensure!(!untouched.contains("clsact"), "{untouched}");
    tested.expect(false)?;
    tested.attach("")?;
    tested.attach(GUEST_INTERFACE)?;
    tested.expect(true)?;
    // The classifier's own lookups do not count.
    let show = tested.bpffs.show(NAME)?;
    let counters = show["counters"].as_array().context("counters")?;
    let captured = counters.iter().find(|it| it["rule"] == "in_virtual_captured").context("the rule")?;
    ensure!(captured["connections"] == 2, "{captured}");
    for command in [&["refresh", NAME][..], &["upgrade", NAME]] {
        tested.run(command)?;
        let filters = ingress(tested.netns(), GUEST_INTERFACE)?;
        ensure!(filters.matches("redirector").count() == 1, "{filters}");
        tested.expect(true)?;
    }
    for other in ["", "vnet7"] {
        tested.attach(other)?;
        assert_eq!(traffic_control(tested.netns(), GUEST_INTERFACE)?, untouched);
        tested.expect(false)?;
        tested.attach(GUEST_INTERFACE)?;
        tested.expect(true)?;
    }
    tested.run(&["detach", "--name", NAME])?;
    assert_eq!(traffic_control(tested.netns(), GUEST_INTERFACE)?, untouched);
    tested.expect(false)
}

/// An interface that the policy names, but that was not there: all is taken until the next refresh. One that is called
/// otherwise now is none of ours.
#[test]
fn an_interface_of_another_name() -> anyhow::Result<()> {
    let Some(tested) = GuestPod::new()? else { return Ok(()) };
    tested.attach("guest0")?;
    tested.rename(GUEST_INTERFACE, "guest0")?;
    let answers = tested.answers()?;
    ensure!(
        !answers.contains(&"guest".to_owned()) && answers.ends_with(&["proxy".into(), "proxy".into()]),
        "{answers:?}"
    );
    tested.run(&["refresh", NAME])?;
    tested.expect(true)?;
    tested.rename("guest0", "guest1")?;
    tested.run(&["refresh", NAME])?;
    assert_eq!(ingress(tested.netns(), "guest1")?, "");
    tested.expect(false)?;
    // Traffic of an interface that has lost its classifier leaves the pod by the proxy, or not at all.
    tested.rename("guest1", "guest0")?;
    tested.run(&["refresh", NAME])?;
    tc(tested.netns(), "filter del dev guest0 ingress")?;
    let answers = tested.answers()?;
    ensure!(!answers.contains(&"remote".to_owned()), "{answers:?}");
    Ok(())
}

/// A qdisc and filters of others stay.
#[test]
fn filters_of_others_stay() -> anyhow::Result<()> {
    let Some(tested) = GuestPod::new()? else { return Ok(()) };
    let tc = |words: &str| tc(tested.netns(), words);
    let program = tested.bpffs.instance(NAME).join("prog_guest").display().to_string();
    for before in [true, false] {
        if before {
            tc("qdisc add dev vnet0 clsact")?;
        }
        tested.attach(GUEST_INTERFACE)?;
        tc(&format!("filter add dev vnet0 egress pref 9 bpf direct-action object-pinned {program}"))?;
        tested.expect(true)?;
        tested.run(&["detach", "--name", NAME])?;
        ensure!(tc("filter show dev vnet0 egress")?.contains("prog_guest"));
        assert_eq!(tc("filter show dev vnet0 ingress")?, "");
        tc("filter del dev vnet0 egress")?;
        if before {
            // Theirs stays, also when it is empty.
            tested.attach(GUEST_INTERFACE)?;
            tested.run(&["detach", "--name", NAME])?;
        }
        tc("qdisc del dev vnet0 clsact")?;
    }
    Ok(())
}

/// Connections that are there are neither captured nor cut when the policy comes and goes.
#[test]
fn connections_stay() -> anyhow::Result<()> {
    let Some(tested) = GuestPod::new()? else { return Ok(()) };
    let outside = tested.world.outside();
    let mut held: Vec<Held> = to_guest(tested.world.pod())
        .into_iter()
        .map(|scenario| Held::start(&outside, scenario.to))
        .collect::<anyhow::Result<_>>()?;
    let guest = tested.world.pod().in_guest()?;
    for to in [SERVICE, at(VIP6, SERVED)] {
        held.push(Held::start(&guest, to)?);
    }
    let mut stay = || -> anyhow::Result<()> {
        for connection in &mut held {
            ensure!(connection.echo()?);
        }
        Ok(())
    };
    tested.attach("")?;
    stay()?;
    tested.attach(GUEST_INTERFACE)?;
    stay()?;
    tested.run(&["refresh", NAME])?;
    stay()?;
    tested.run(&["detach", "--name", NAME])?;
    stay()
}

/// Packets of a guest whose socket at the proxy is gone do not leave the pod.
#[test]
fn nothing_follows_a_socket_that_is_gone() -> anyhow::Result<()> {
    let Some(tested) = GuestPod::new()? else { return Ok(()) };
    tested.attach(GUEST_INTERFACE)?;
    let pod = tested.world.pod();
    let guest = pod.guest.as_ref().context("guest")?;
    let cases = [("iptables", SERVICE, "10.79.0.1"), ("ip6tables", at(VIP6, SERVED), "[fd00:79::1]")];
    for (program, to, from) in cases {
        let rule = |netns: &Netns, words: &str| run(netns.command(program).args(words.split(' ')), "");
        rule(&tested.world.client, &format!("-w -t raw -A PREROUTING -p tcp -d {}", to.ip()))?;
        let arrived = || -> anyhow::Result<bool> {
            let list = rule(&tested.world.client, "-w -t raw -nvxL PREROUTING")?;
            let line = list.lines().find(|line| line.contains(&to.ip().to_string())).context("the rule")?;
            Ok(line.split_whitespace().next() != Some("0"))
        };
        let mut held = Held::start(&pod.in_guest()?, to)?;
        ensure!(held.echo()? && !arrived()?);
        // The guest does not hear that it has ended.
        rule(guest, "-w -A INPUT -p tcp --tcp-flags RST RST -j DROP")?;
        let sockets = || run(pod.netns.command("ss").args(["-KHtn", "dst", from]), "");
        sockets()?;
        let left = run(pod.netns.command("ss").args(["-Hatn", "dst", from]), "")?;
        ensure!(left.is_empty(), "{left}");
        ensure!(!held.echo()? && !arrived()?, "a segment went past the proxy");
    }
    Ok(())
}

/// A command that was killed leaves nothing that the next one does not take away.
#[test]
fn a_killed_attach_or_detach() -> anyhow::Result<()> {
    let Some(tested) = GuestPod::new()? else { return Ok(()) };
    if require_program("strace").is_none() {
        return Ok(());
    }
    let pod = tested.world.pod();
    let untouched = traffic_control(tested.netns(), GUEST_INTERFACE)?;
    let attach =
        |by: &[&str]| tested.bpffs.attach_by(by, pod, NAME, &["-k", GUEST_INTERFACE, "-d", "2222,8080"]);
    let detach = |by: &[&str]| Run::of(&mut tested.bpffs.command(by, &["detach", "--name", NAME]));
    let (run, attaching) = steps("bpf", attach)?;
    run.expect(exit::OK)?;
    let (run, detaching) = steps("bpf", detach)?;
    run.expect(exit::OK)?;
    let mut half_made = 0;
    for at in chosen(&attaching, 24) {
        // How often it looks whether its maps are visible differs.
        if with(Fault::Kill, at, attach)?.code == Some(exit::OK) {
            detach(&[])?.expect(exit::OK)?;
        }
        half_made += usize::from(traffic_control(tested.netns(), GUEST_INTERFACE)? != untouched);
        ensure!(tested.bpffs.list()?.is_empty(), "{at:?}");
        assert_eq!(traffic_control(tested.netns(), GUEST_INTERFACE)?, untouched, "{at:?}");
    }
    for at in chosen(&detaching, 6) {
        attach(&[])?.expect(exit::OK)?;
        with(Fault::Kill, at, detach)?;
        if !tested.bpffs.list()?.is_empty() {
            // It had not begun.
            detach(&[])?.expect(exit::OK)?;
        }
        assert_eq!(traffic_control(tested.netns(), GUEST_INTERFACE)?, untouched, "{at:?}");
    }
    ensure!(half_made > 0, "no kill was between the classifier and the end");
    tested.expect(false)
}
