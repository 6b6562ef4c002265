//! Throw-away worlds: a namespace standing for the rest of the cluster ("client"), and pods connected to it.
//!
//! ```text
//!   client namespace                                   pod namespace + cgroup
//!   lo   10.96.0.0/16  fd00:96::/64 (services)
//!        10.94.0.0/16  fd00:94::/64 (2nd network)
//!   pod0 10.77.0.1  fd00:77:0::1 ───────────────────── eth0 10.77.0.2  fd00:77:0::2   default route
//!   sec0 10.78.0.1  fd00:78:0::1 ───────────────────── eth1 10.78.0.2  fd00:78:0::2   (optional) 10.94/16, fd00:94::/64
//!
//!   guest namespace (optional)
//!   eth0 10.79.0.1  fd00:79:0::1 ──────────────────── vnet0 10.79.0.2  fd00:79:0::2   the guest's default route
//! ```
//!
//! Two worlds have the same addresses, so that what is seen in one can be compared with what is seen in the other.

pub mod cgroup;
pub mod netns;

use std::iter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;

use anyhow::Context;

use crate::harness::command::run;
use crate::harness::names;
use crate::harness::pair::matrix::SERVED;
use crate::harness::probe::many::{Load, LoadReport};
use crate::harness::probe::observation::Observation;
use crate::harness::probe::scenario::{Owner, Scenario};
use crate::harness::probe::serve::Listen;
use crate::harness::process::Place;
use crate::harness::server::Server;
use crate::harness::world::cgroup::Cgroup;
use crate::harness::world::netns::Netns;

pub const APP: Owner = Owner { uid: 1000, gid: 1000 };
pub const PROXY: Owner = Owner { uid: 1337, gid: 1337 };
/// The proxy's in TPROXY mode: listening for any address takes privileges, so it is known by its group.
pub const TRANSPARENT_PROXY: Owner = Owner { uid: 0, gid: 1337 };
pub const ROOT: Owner = Owner { uid: 0, gid: 0 };

/// A service of the world outside.
pub const VIP4: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// It listens on the ordinary port.
pub const SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(VIP4), SERVED);
/// The same, by IPv6.
pub const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10);
/// A service behind the pod's second interface.
pub const SECOND4: Ipv4Addr = Ipv4Addr::new(10, 94, 0, 10);
/// The same, by IPv6.
pub const SECOND6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x94, 0, 0, 0, 0, 0, 0x10);
/// The gateway's link-local address.
pub const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The second byte of the first interface's network; the second interface has the next.
const FIRST_NET: u8 = 77;
/// The interface index of a pod's `eth0`; fixed, because link-local addresses show it.
pub const ETH0: u32 = 10;

/// The pod's end of the wire to its guest.
pub const GUEST_INTERFACE: &str = "vnet0";
/// The pod's address there.
pub const VNET4: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 2);
/// The same, by IPv6.
pub const VNET6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x79, 0, 0, 0, 0, 0, 2);

/// Routes that refuse, each in its own way; in every pod.
const DEAD_ROUTES: &str = "route add unreachable 10.98.0.0/16\n\
    route add prohibit 10.99.0.0/16\n\
    route add blackhole 10.97.0.0/16\n\
    route add throw 10.95.0.0/16\n\
    route add unreachable fd00:98::/64\n\
    route add prohibit fd00:99::/64\n\
    route add blackhole fd00:97::/64\n";

/// The kernel would make link-local addresses from the interface's random hardware address, and test them for a second.
const NO_LINK_LOCAL: &[(&str, &str)] = &[("ipv6/conf/default/addr_gen_mode", "1")];

/// Properties in which pods differ.
#[derive(Clone, Debug, Default)]
pub struct PodOptions {
    /// Whether there is no IPv6 default route.
    pub without_ipv6_default_route: bool,
    /// Whether there is a second interface, with routes of its own.
    pub second_interface: bool,
    /// Whether a user namespace of its own owns its network namespace (`hostUsers: false`).
    pub user_namespace: bool,
    /// Whether there is a virtual machine in the pod: a namespace behind its `vnet0`, for which the pod is the router.
    pub guest: bool,
    /// More `ip` commands in the pod's namespace.
    pub extra: String,
}

/// A pod: namespace, cgroup, addresses.
pub struct Pod {
    pub netns: Netns,
    /// Its cgroup; the containers' cgroups `app` and `proxy` are inside.
    pub cgroup: Cgroup,
    /// The virtual machine in it.
    pub guest: Option<Netns>,
    number: u8,
}

impl Pod {
    /// Its IPv4 address.
    pub fn v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.number, 2)
    }

    /// Its IPv6 address.
    pub fn v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x77, self.number.into(), 0, 0, 0, 0, 2)
    }

    /// A process of this user in the pod: the proxy's in the proxy's container, all others in the app's.
    pub fn place(&self, owner: Owner) -> anyhow::Result<Place> {
        let is_proxy = owner.uid == PROXY.uid || owner.gid == PROXY.gid;
        self.container(if is_proxy { "proxy" } else { "app" }, owner)
    }

    /// A process of this user in a container.
    pub fn container(&self, name: &str, owner: Owner) -> anyhow::Result<Place> {
        Ok(Place { netns: self.netns.file().to_owned(), cgroup: Some(self.cgroup.child(name)?), owner })
    }

    /// A process in the pod's guest.
    pub fn in_guest(&self) -> anyhow::Result<Place> {
        let guest = self.guest.as_ref().context("a pod without a guest")?;
        Ok(Place { netns: guest.file().to_owned(), cgroup: None, owner: ROOT })
    }

    /// Starts a server in the pod.
    pub fn serve(&self, owner: Owner, role: &str, listeners: Vec<Listen>) -> anyhow::Result<Server> {
        Server::start(&self.place(owner)?, role, listeners)
    }

    /// Runs scenarios, one after the other, as this user.
    pub fn observe(&self, owner: Owner, scenarios: &[Scenario]) -> anyhow::Result<Vec<Observation>> {
        observe(&self.place(owner)?, scenarios)
    }

    /// Where the app's connection ends, in a few words.
    pub fn connect(&self, to: SocketAddr) -> anyhow::Result<String> {
        Ok(observe_one(&self.place(APP)?, to)?.summary())
    }

    pub fn load(&self, owner: Owner, load: &Load) -> anyhow::Result<LoadReport> {
        self.place(owner)?.load(load)
    }
}

/// A world. Everything is removed on drop.
pub struct World {
    /// The pods; dropped before the client, whose end of the wires goes with them.
    pub pods: Vec<Pod>,
    /// The namespace standing for the rest of the cluster.
    pub client: Netns,
}

impl World {
    /// A world with one plain pod.
    pub fn new() -> anyhow::Result<Self> {
        Self::with(&[PodOptions::default()])
    }

    /// A world with pods as described.
    pub fn with(pods: &[PodOptions]) -> anyhow::Result<Self> {
        Self::named(&names::unique(), pods)
    }

    /// The same with a name of the caller's: namespaces NAME-client and NAME-podN, cgroups NAME-podN.
    pub fn named(name: &str, pods: &[PodOptions]) -> anyhow::Result<Self> {
        let client = Netns::new(&format!("{name}-client"))?;
        // Reverse path filtering would drop what comes from a pod's second address: not what is tested here.
        client.sysctl(&[("ipv4/conf/all/rp_filter", "0"), ("ipv4/conf/default/rp_filter", "0")])?;
        client.sysctl(NO_LINK_LOCAL)?;
        client.ip(&format!(
            "address add {VIP4}/32 dev lo\n\
             address add {VIP6}/128 dev lo nodad\n\
             route add local 10.96.0.0/16 dev lo\n\
             route add local 10.94.0.0/16 dev lo\n\
             route add local fd00:96::/64 dev lo\n\
             route add local fd00:94::/64 dev lo\n"
        ))?;
        let mut world = Self { pods: Vec::new(), client };
        for (number, options) in (0_u8..).zip(pods) {
            let pod = world.add_pod(&format!("{name}-pod{number}"), number, options)?;
            world.pods.push(pod);
        }
        world.client.wait_until_links_are_up()?;
        for netns in world.pods.iter().flat_map(|pod| iter::once(&pod.netns).chain(&pod.guest)) {
            netns.wait_until_links_are_up()?;
        }
        Ok(world)
    }

    fn add_pod(&self, name: &str, number: u8, options: &PodOptions) -> anyhow::Result<Pod> {
        let netns = if options.user_namespace { Netns::in_user_namespace(name)? } else { Netns::new(name)? };
        netns.sysctl(NO_LINK_LOCAL)?;
        let cgroup = Cgroup::new(name)?;
        wire(&self.client, &netns, FIRST_NET, number, [&format!("pod{number}"), "eth0"])?;
        netns.ip(&format!("route add default via 10.77.{number}.1\n{DEAD_ROUTES}"))?;
        if !options.without_ipv6_default_route {
            netns.ip(&format!("route add default via fd00:77:{number}::1\n"))?;
        }
        if options.second_interface {
            wire(&self.client, &netns, FIRST_NET + 1, number, [&format!("sec{number}"), "eth1"])?;
            netns.ip(&format!(
                "route add 10.94.0.0/16 via 10.78.{number}.1\n\
                 route add fd00:94::/64 via fd00:78:{number}::1\n"
            ))?;
        }
        let guest = options.guest.then(|| self.add_guest(&netns, name, number)).transpose()?;
        if !options.extra.is_empty() {
            netns.ip(&options.extra)?;
        }
        Ok(Pod { netns, cgroup, guest, number })
    }

    fn add_guest(&self, pod: &Netns, name: &str, number: u8) -> anyhow::Result<Netns> {
        let guest = Netns::new(&format!("{name}-guest"))?;
        guest.sysctl(NO_LINK_LOCAL)?;
        let net = FIRST_NET + 2;
        wire(&guest, pod, net, number, ["eth0", GUEST_INTERFACE])?;
        guest.ip(&format!(
            "route add default via 10.{net}.{number}.2\nroute add default via fd00:{net}:{number}::2\n"
        ))?;
        pod.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
        self.client.ip(&format!(
            "route add 10.{net}.{number}.0/24 via 10.{FIRST_NET}.{number}.2\n\
             route add fd00:{net}:{number}::/64 via fd00:{FIRST_NET}:{number}::2\n"
        ))?;
        Ok(guest)
    }

    /// Lets everything stay after this process.
    pub fn keep(self) {
        self.client.keep();
        for pod in self.pods {
            pod.netns.keep();
            if let Some(guest) = pod.guest {
                guest.keep();
            }
            pod.cgroup.keep();
        }
    }

    /// Removes what a world of this name left behind, with all that runs in its pods.
    pub fn remove(name: &str, pods: usize) -> anyhow::Result<()> {
        for number in 0..pods {
            drop(Cgroup::existing(&format!("{name}-pod{number}"))?);
            drop(Netns::existing(&format!("{name}-pod{number}")));
        }
        drop(Netns::existing(&format!("{name}-client")));
        Ok(())
    }

    pub fn pod(&self) -> &Pod {
        &self.pods[0]
    }

    /// A process in the rest of the cluster.
    pub fn outside(&self) -> Place {
        Place { netns: self.client.file().to_owned(), cgroup: None, owner: ROOT }
    }

    /// Starts a service in the rest of the cluster; it answers at every address of the outside.
    pub fn serve_outside(&self, listeners: Vec<Listen>) -> anyhow::Result<Server> {
        Server::start(&self.outside(), "remote", listeners)
    }

    /// Where a connection from the rest of the cluster to the first pod's address ends, in a few words.
    pub fn connect_to_pod(&self) -> anyhow::Result<String> {
        Ok(observe_one(&self.outside(), at(self.pod().v4(), SERVED))?.summary())
    }

    /// Runs scenarios from the rest of the cluster.
    pub fn observe_from_outside(&self, scenarios: &[Scenario]) -> anyhow::Result<Vec<Observation>> {
        observe(&self.outside(), scenarios)
    }
}

/// A pair of virtual Ethernet interfaces between two namespaces, each with its addresses, up, and knowing the other.
///
/// Neighbours are written down instead of discovered: discovery fails for a while after a packet with an odd source
/// address (which some scenarios send), and would make one scenario depend on another.
fn wire(
    client: &Netns,
    pod: &Netns,
    net: u8,
    number: u8,
    [client_end, pod_end]: [&str; 2],
) -> anyhow::Result<()> {
    let index = ETH0 + u32::from(net - FIRST_NET);
    let mac = |end: u8| format!("02:00:00:{net:02x}:{number:02x}:{end:02x}");
    let arguments = format!(
        "link add name {pod_end} index {index} address {} netns {} type veth peer name {client_end} address {} netns {}",
        mac(2),
        pod.name(),
        mac(1),
        client.name()
    );
    run(Command::new("ip").args(arguments.split(' ')), "")?;
    for (netns, device, own, other) in [(client, client_end, 1, 2), (pod, pod_end, 2, 1)] {
        let mac = mac(other);
        netns.ip(&format!(
            "address add 10.{net}.{number}.{own}/24 dev {device}\n\
             address add fd00:{net}:{number}::{own}/64 dev {device} nodad\n\
             address add fe80::{own}/64 dev {device} nodad\n\
             link set {device} up\n\
             neighbour add 10.{net}.{number}.{other} lladdr {mac} dev {device} nud permanent\n\
             neighbour add fd00:{net}:{number}::{other} lladdr {mac} dev {device} nud permanent\n\
             neighbour add fe80::{other} lladdr {mac} dev {device} nud permanent\n"
        ))?;
    }
    Ok(())
}

/// Makes one connection in a place.
pub fn observe_one(place: &Place, to: SocketAddr) -> anyhow::Result<Observation> {
    observe(place, &[Scenario::to(to)])?.pop().context("an observation")
}

/// Runs scenarios in a place.
pub fn observe(place: &Place, scenarios: &[Scenario]) -> anyhow::Result<Vec<Observation>> {
    let mut input = String::new();
    for scenario in scenarios {
        input.push_str(&serde_json::to_string(scenario)?);
        input.push('\n');
    }
    let output = run(&mut place.probe(&["connect"]), &input)?;
    output.lines().map(|line| serde_json::from_str(line).context("an observation")).collect()
}

/// An address with a port.
pub fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}
