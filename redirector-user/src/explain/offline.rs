//! The lists of a policy without maps: the entries that would be written to them, searched as the kernel does.

use std::collections::HashSet;
use std::iter::once;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use redirector_common::Addr;
use redirector_common::abi::{self, LOOPBACK_IFINDEX, List, ListKey, Slot};
use redirector_common::decision::Lists;

use crate::compile::tables::Compiled;
use crate::policy::Policy;
use crate::routes::{Interface, Outcome, Route, RouteSnapshot};

/// A policy's lists, and what is known of a namespace.
pub struct Offline {
    /// In the kernel's form.
    pub compiled: Compiled,
    interfaces: Vec<(String, u32)>,
}

impl Offline {
    /// Of a live namespace.
    pub fn of(policy: &Policy, mirror: &RouteSnapshot) -> Self {
        let interfaces = mirror.interfaces.iter().map(|it| (it.name.clone(), it.index)).collect();
        Self { compiled: Compiled::new(policy, mirror), interfaces }
    }

    /// Of lists and routes that are in force, and the interfaces that there are.
    pub fn in_force(compiled: Compiled, mirror: &RouteSnapshot) -> Self {
        let interfaces = mirror.interfaces.iter().map(|it| (it.name.clone(), it.index)).collect();
        Self { compiled, interfaces }
    }

    /// Of a namespace of which only these addresses and interfaces are known. Nothing is known of its routes: what
    /// leaves it leaves on no interface in particular.
    pub fn new(policy: &Policy, local: &[IpAddr], interfaces: &[&str]) -> Self {
        Self::of(policy, &imagine(policy, local, interfaces, None))
    }

    /// The same, and all that leaves it does so on `output`.
    pub fn leaving_on(policy: &Policy, local: &[IpAddr], output: &str) -> Self {
        Self::of(policy, &imagine(policy, local, &[output], Some(output)))
    }

    /// Index of an interface; 0 if there is none of the name.
    pub fn index(&self, name: &str) -> u32 {
        self.interfaces.iter().find(|(known, _)| known == name).map_or(0, |(_, index)| *index)
    }

    /// Name of an interface.
    pub fn name(&self, index: u32) -> Option<&str> {
        self.interfaces.iter().find(|(_, known)| *known == index).map(|(name, _)| name.as_str())
    }

    /// How the namespace routes a destination; all zero where that is not known.
    pub fn route(&self, destination: IpAddr) -> abi::Route {
        self.compiled.find(List::Routes, destination.into()).copied().unwrap_or(abi::Route::UNKNOWN)
    }
}

impl Lists for Offline {
    fn holds(&self, list: List, value: u32) -> bool {
        self.compiled.find(list, ListKey::number(Slot::FIRST, list, value).addr).is_some()
    }

    fn covers(&self, list: List, addr: &Addr) -> bool {
        self.compiled.find(list, *addr).is_some()
    }
}

/// A namespace with these addresses, and with every interface that somebody speaks of.
fn imagine(policy: &Policy, local: &[IpAddr], interfaces: &[&str], output: Option<&str>) -> RouteSnapshot {
    let of_policy = policy.exclude_interfaces.iter().chain(&policy.virtual_interfaces).map(String::as_str);
    // Annotations name up to 50,000.
    let mut named = HashSet::new();
    let names = once("lo").chain(of_policy).chain(interfaces.iter().copied());
    let names: Vec<&str> = names.filter(|name| named.insert(*name)).collect();
    let interfaces: Vec<Interface> = (LOOPBACK_IFINDEX..)
        .zip(names)
        .map(|(index, name)| Interface {
            index,
            name: name.into(),
            addresses: Vec::new(),
            loopback: index == LOOPBACK_IFINDEX,
        })
        .collect();

    let host = |addr: IpAddr| (IpNet::from(addr), Outcome::Local { source: None });
    let localhost = Outcome::Local { source: Some(Ipv4Addr::LOCALHOST.into()) };
    let mut routes = vec![
        (IpNet::new_assert(Ipv4Addr::new(127, 0, 0, 0).into(), 8), localhost),
        host(Ipv6Addr::LOCALHOST.into()),
    ];
    if policy.ipv6 {
        // attach puts it on lo.
        routes.push(host(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6).into()));
    }
    routes.extend(local.iter().map(|addr| host(addr.to_canonical())));
    if let Some(out) = output.and_then(|name| interfaces.iter().find(|it| it.name == name)) {
        let outcome = if out.loopback {
            Outcome::Local { source: None }
        } else {
            Outcome::Via { oif: out.index, source: None }
        };
        let everything = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        routes.extend(everything.map(|addr| (IpNet::new_assert(addr, 0), outcome.clone())));
    }
    let routes = routes.into_iter().map(|(prefix, outcome)| Route { prefix, outcome }).collect();
    RouteSnapshot { routes, interfaces }
}
