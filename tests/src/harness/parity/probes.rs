//! The connections that are made under a configuration: chosen so that each of its options decides some of them.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::addresses::{
    Destination, FIRST4, FIRST6, LISTED4, NAME_SERVER6, OTHER4, SECOND_POD4, SECOND_POD6,
};
use super::configuration::NAME_SERVER4;
use super::options::UNSERVED;
use super::random::Random;
use crate::harness::oracle::options::{Options, Ports};
use crate::harness::pair::matrix::SERVED;
use crate::harness::probe::scenario::{Family, Owner, Scenario, Udp};
use crate::harness::world::{APP, GUEST_INTERFACE, ROOT, SECOND4, SECOND6, VIP4, VIP6, VNET4, VNET6, at};

/// A user and a group that no option names.
const UNNAMED_ID: u32 = 3000;

/// Probes drawn from all combinations, beside those that are chosen.
const RANDOM_PROBES: usize = 40;

/// Asks the pair for a port of its own.
pub const OWN_PORT: u16 = 1;

/// Where a connection is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Pod,
    Network,
    /// In the pod's guest.
    Guest,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Where it is made.
    pub from: From,
    pub scenario: Scenario,
}

/// The owner at the creation of the socket, and the owner at connect().
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owners {
    creates: Owner,
    connects: Owner,
}

impl Owners {
    fn of(uid: u32, gid: u32) -> Self {
        let owner = Owner { uid, gid };
        Self { creates: owner, connects: owner }
    }
}

impl fmt::Display for Owners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.creates.uid, self.creates.gid)?;
        if self.creates != self.connects {
            write!(f, "(connected-by-{}:{})", self.connects.uid, self.connects.gid)?;
        }
        Ok(())
    }
}

/// A set of probes under construction.
struct Probes {
    list: Vec<Probe>,
    names: HashSet<String>,
}

impl Probes {
    fn add(
        &mut self,
        caller: Owners,
        to: SocketAddr,
        bind: Option<SocketAddr>,
        udp: Option<Udp>,
        mapped: bool,
    ) {
        let family = match to {
            SocketAddr::V4(_) if mapped => Family::Mapped,
            SocketAddr::V4(_) => Family::V4,
            SocketAddr::V6(_) => Family::V6,
        };
        let protocol = match udp {
            None if mapped => "mapped",
            None => "tcp",
            Some(Udp::Connect) => "udp",
            Some(Udp::SendTo) => "udp-sendto",
        };
        let from = bind.map_or_else(|| "anywhere".to_owned(), |bind| bind.to_string());
        let name = format!("{protocol} {caller} to {to} from {from}");
        if self.names.insert(name.clone()) {
            let scenario = Scenario {
                bind,
                udp,
                created_by: Some(caller.creates),
                connected_by: Some(caller.connects),
                ..Scenario::new(name, family, to)
            };
            self.list.push(Probe { from: From::Pod, scenario });
        }
    }

    fn plain(&mut self, caller: Owners, to: SocketAddr) {
        self.add(caller, to, None, None, false);
    }

    fn inbound(&mut self, to: SocketAddr) {
        let name = format!("tcp inbound to {to}");
        if self.names.insert(name.clone()) {
            let scenario = Scenario { name, ..Scenario::to(to) };
            self.list.push(Probe { from: From::Network, scenario });
        }
    }

    fn guest(&mut self, to: SocketAddr, udp: Option<Udp>) {
        let protocol = if udp.is_some() { "udp" } else { "tcp" };
        let name = format!("{protocol} guest to {to}");
        if self.names.insert(name.clone()) {
            let scenario = Scenario { name, udp, ..Scenario::to(to) };
            self.list.push(Probe { from: From::Guest, scenario });
        }
    }
}

/// The probes of a configuration.
pub fn probes(options: &Options, random: &mut Random) -> Vec<Probe> {
    let mut probes = Probes { list: Vec::new(), names: HashSet::new() };
    let callers = callers(options);
    let (app, proxy) = (callers[0], callers[1]);
    let ports = outbound_ports(options);

    for caller in [app, proxy] {
        for place in Destination::all() {
            probes.plain(caller, at(place.address, SERVED));
        }
        for to in [VIP4, FIRST4, OTHER4] {
            probes.add(caller, at(to, SERVED), None, None, true);
        }
        for (to, bind) in binds() {
            probes.add(caller, to, Some(bind), None, false);
        }
        for port in &ports {
            for to in [IpAddr::from(VIP4), FIRST4.into(), OTHER4.into(), VIP6.into(), FIRST6.into()] {
                probes.plain(caller, at(to, *port));
            }
        }
    }
    for caller in &callers {
        for to in [IpAddr::from(VIP4), FIRST4.into(), OTHER4.into(), VIP6.into(), FIRST6.into()] {
            probes.plain(*caller, at(to, SERVED));
        }
    }
    for port in inbound_ports(options) {
        for to in [IpAddr::from(FIRST4), FIRST6.into(), SECOND_POD4.into(), SECOND_POD6.into()] {
            probes.inbound(at(to, port));
        }
    }
    if options.virtual_interfaces.iter().any(|name| name == GUEST_INTERFACE) {
        guest(&mut probes, options);
    }
    queries(&mut probes, options, &callers);
    for _ in 0..RANDOM_PROBES {
        let place = random.pick(Destination::all());
        let to = at(place.address, *random.pick(&ports));
        let bind = random.percent(25).then(|| at(*random.pick(place.sources), 0));
        let mapped = random.percent(25) && to.is_ipv4();
        probes.add(*random.pick(&callers), to, bind, None, mapped);
    }
    probes.list
}

/// From behind a virtual interface. A port that none of the lists names is as good as another.
fn guest(probes: &mut Probes, options: &Options) {
    let four = [VIP4, LISTED4, SECOND4, FIRST4, VNET4].map(IpAddr::from);
    let six = [VIP6, SECOND6, FIRST6, VNET6].map(IpAddr::from);
    for to in four.into_iter().chain(six) {
        probes.guest(at(to, SERVED), None);
    }
    for port in
        [UNSERVED, 9000, 53, options.inbound_tunnel_port, options.envoy_port, options.inbound_capture_port]
    {
        for to in [IpAddr::from(VIP4), FIRST4.into(), VIP6.into()] {
            probes.guest(at(to, port), None);
        }
    }
    for to in [at(VIP4, SERVED), at(VIP4, 53), at(VIP6, 53)] {
        probes.guest(to, Some(Udp::Connect));
    }
}

/// The app and the proxy, and whoever is somebody to an option. The first two are an app and a proxy.
fn callers(options: &Options) -> Vec<Owners> {
    let first = options.proxy_uids.first().copied().unwrap_or(1337);
    let mut all = vec![
        Owners::of(APP.uid, APP.gid),
        Owners::of(first, options.proxy_gids.first().copied().unwrap_or(first)),
        Owners::of(UNNAMED_ID, UNNAMED_ID),
    ];
    all.extend(options.proxy_uids.iter().map(|uid| Owners::of(*uid, UNNAMED_ID)));
    all.extend(options.proxy_gids.iter().map(|gid| Owners::of(UNNAMED_ID, *gid)));
    let groups = options.owner_groups.iter().flatten().chain(&options.owner_groups_exclude);
    all.extend(groups.map(|gid| Owners::of(UNNAMED_ID, *gid)));
    let (proxy, stranger) =
        (Owner { uid: first, gid: UNNAMED_ID }, Owner { uid: UNNAMED_ID, gid: UNNAMED_ID });
    all.push(Owners { creates: proxy, connects: stranger });
    all.push(Owners { creates: stranger, connects: proxy });
    all.push(Owners { creates: stranger, connects: ROOT });
    let mut seen: Vec<Owners> = Vec::new();
    for caller in all {
        if !seen.contains(&caller) || seen.len() < 2 {
            seen.push(caller);
        }
    }
    seen
}

/// Ports in and out of each list.
fn outbound_ports(options: &Options) -> Vec<u16> {
    let mut ports = vec![SERVED, 9000, 9001, UNSERVED, options.inbound_tunnel_port];
    ports.extend(&options.outbound_ports);
    ports.extend(&options.outbound_ports_exclude);
    if options.redirect_dns {
        ports.push(53);
    }
    distinct(ports)
}

fn inbound_ports(options: &Options) -> Vec<u16> {
    let mut ports = vec![
        SERVED,
        9000,
        UNSERVED,
        options.inbound_tunnel_port,
        options.envoy_port,
        options.inbound_capture_port,
    ];
    if let Ports::List(list) = &options.inbound_ports {
        ports.extend(list);
    }
    ports.extend(&options.inbound_ports_exclude);
    distinct(ports)
}

fn distinct(mut ports: Vec<u16>) -> Vec<u16> {
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Sources that matter to a rule, or to what the ends see.
fn binds() -> Vec<(SocketAddr, SocketAddr)> {
    let passthrough = Ipv4Addr::new(127, 0, 0, 6);
    let passthrough6 = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
    let four = [
        (VIP4, FIRST4, 0),
        (VIP4, Ipv4Addr::UNSPECIFIED, OWN_PORT),
        (VIP4, passthrough, 0),
        (FIRST4, passthrough, 0),
        (FIRST4, FIRST4, 0),
        (FIRST4, Ipv4Addr::LOCALHOST, 0),
        (FIRST4, Ipv4Addr::UNSPECIFIED, OWN_PORT),
        (OTHER4, passthrough, 0),
        (OTHER4, Ipv4Addr::LOCALHOST, 0),
        (Ipv4Addr::LOCALHOST, passthrough, 0),
        (Ipv4Addr::LOCALHOST, FIRST4, 0),
    ];
    let six = [
        (VIP6, FIRST6, 0),
        (VIP6, Ipv6Addr::UNSPECIFIED, OWN_PORT),
        (FIRST6, passthrough6, 0),
        (FIRST6, Ipv6Addr::LOCALHOST, 0),
        (Ipv6Addr::LOCALHOST, passthrough6, 0),
        (Ipv6Addr::LOCALHOST, FIRST6, 0),
    ];
    let four = four.map(|(to, from, port)| (at(to, SERVED), at(from, port)));
    let six = six.map(|(to, from, port)| (at(to, SERVED), at(from, port)));
    four.into_iter().chain(six).collect()
}

/// Queries by UDP, many where DNS is captured. Other UDP is never captured.
fn queries(probes: &mut Probes, options: &Options, callers: &[Owners]) {
    let app = callers[0];
    probes.add(app, at(VIP4, SERVED), None, Some(Udp::Connect), false);
    probes.add(app, at(VIP4, 53), None, Some(Udp::Connect), false);
    if !options.redirect_dns {
        return;
    }
    for to in [VIP4, NAME_SERVER4, LISTED4, SECOND4, FIRST4, OTHER4, Ipv4Addr::LOCALHOST] {
        for caller in &callers[..2] {
            probes.plain(*caller, at(to, 53));
            for udp in [Udp::Connect, Udp::SendTo] {
                probes.add(*caller, at(to, 53), None, Some(udp), false);
            }
        }
    }
    for to in [VIP6, NAME_SERVER6, SECOND6, FIRST6, Ipv6Addr::LOCALHOST] {
        for caller in &callers[..2] {
            probes.plain(*caller, at(to, 53));
            for udp in [Udp::Connect, Udp::SendTo] {
                probes.add(*caller, at(to, 53), None, Some(udp), false);
            }
        }
    }
    for caller in &callers[2..] {
        for to in [IpAddr::from(NAME_SERVER4), FIRST4.into(), NAME_SERVER6.into()] {
            probes.plain(*caller, at(to, 53));
            probes.add(*caller, at(to, 53), None, Some(Udp::Connect), false);
        }
    }
    let passthrough = Ipv4Addr::new(127, 0, 0, 6);
    for (to, from) in [(NAME_SERVER4, FIRST4), (FIRST4, passthrough), (OTHER4, Ipv4Addr::LOCALHOST)] {
        for udp in [Udp::Connect, Udp::SendTo] {
            probes.add(app, at(to, 53), Some(at(from, 0)), Some(udp), false);
        }
    }
}
