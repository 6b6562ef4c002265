//! What the mirror says beside what connect(2) does.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use ipnet::IpNet;
use redirector_user::routes::{self, Outcome, RouteSnapshot};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, getsockname, socket_with};

use crate::namespace::Namespace;

impl Namespace {
    pub fn read(&self) -> RouteSnapshot {
        routes::read(&self.netns).unwrap()
    }

    /// Reads the mirror, compares it with the expectations and, everywhere, with the kernel.
    ///
    /// An expectation is the errno, or the interface ("local" if the packet does not leave) and the source
    /// address.
    #[track_caller]
    pub fn expect(&self, expectations: &[(&str, &str)]) -> RouteSnapshot {
        let mirror = self.read();
        for (destination, expected) in expectations {
            assert_eq!(
                describe(look_up(&mirror, destination.parse().unwrap()), &mirror),
                *expected,
                "{destination} in\n{}",
                list(&mirror)
            );
        }
        let named = expectations.iter().map(|(destination, _)| destination.parse().unwrap());
        let wrong: Vec<_> = named
            .chain(ends(&mirror))
            .filter_map(|destination| self.disagreement(&mirror, destination))
            .collect();
        assert!(wrong.is_empty(), "{wrong:#?} in\n{}", list(&mirror));
        mirror
    }

    /// What connect(2) does that the mirror did not say.
    fn disagreement(&self, mirror: &RouteSnapshot, destination: IpAddr) -> Option<String> {
        let outcome = look_up(mirror, destination);
        // A link-local destination goes nowhere without a scope; if the mirror names no interface, one of
        // them must agree.
        let scopes = match outcome {
            _ if !link_local(destination) => vec![0],
            Outcome::Via { oif, .. } => vec![*oif],
            _ => std::iter::once(0).chain(mirror.interfaces.iter().map(|it| it.index)).collect(),
        };
        let (ours, said) = match outcome {
            Outcome::Local { source } => (true, Ok(source.unwrap_or(destination))),
            Outcome::Via { source, .. } => (false, Ok(source.unwrap_or([0, 0, 0, 0].into()))),
            Outcome::Broadcast { .. } => (false, Err(Errno::NETUNREACH)),
            Outcome::Refused { errno } => (false, Err(Errno::from_raw_os_error(*errno))),
        };
        let (real, bound) = self.inside(|| {
            let real: Vec<_> = scopes.into_iter().map(|scope| try_connect(destination, scope)).collect();
            (real, try_bind(destination))
        });
        let agree =
            real.contains(&said) && (ours || bound.is_err() || destination.is_unspecified() || said.is_err());
        (!agree).then(|| format!("{destination}: mirror {outcome:?}, connect {real:?}, bind {bound:?}"))
    }
}

fn link_local(destination: IpAddr) -> bool {
    matches!(destination, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// The oracle: a non-blocking connect, and the source it got.
fn try_connect(destination: IpAddr, scope: u32) -> Result<IpAddr, Errno> {
    let (family, to) = match destination {
        IpAddr::V4(_) => (AddressFamily::INET, SocketAddr::new(destination, 9)),
        IpAddr::V6(v6) => (AddressFamily::INET6, SocketAddrV6::new(v6, 9, 0, scope).into()),
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None).unwrap();
    match connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::CONNREFUSED) => {
            Ok(SocketAddr::try_from(getsockname(&socket).unwrap()).unwrap().ip())
        }
        Err(errno) => Err(errno),
    }
}

/// Succeeds only for addresses of the namespace (but not for all that are routed to it).
pub fn try_bind(address: IpAddr) -> Result<(), Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    bind(
        socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap(),
        &SocketAddr::new(address, 0),
    )
}

pub fn look_up(mirror: &RouteSnapshot, destination: IpAddr) -> &Outcome {
    let holding = mirror.routes.iter().filter(|route| route.prefix.contains(&destination));
    &holding.max_by_key(|route| route.prefix.prefix_len()).expect("a default for each family").outcome
}

fn list(mirror: &RouteSnapshot) -> String {
    let lines =
        mirror.routes.iter().map(|route| format!("{} {}\n", route.prefix, describe(&route.outcome, mirror)));
    lines.collect::<String>() + &format!("{:?}", mirror.interfaces)
}

pub fn describe(outcome: &Outcome, mirror: &RouteSnapshot) -> String {
    let source = |source: &Option<IpAddr>| source.map_or("itself".into(), |source| source.to_string());
    match outcome {
        Outcome::Local { source: address } => format!("local {}", source(address)),
        Outcome::Via { oif, source: address } => {
            let name = mirror.interfaces.iter().find(|it| it.index == *oif).map_or("?", |it| &it.name);
            format!("{name} {}", address.map_or("none".into(), |address| address.to_string()))
        }
        Outcome::Broadcast { .. } => "broadcast".to_owned(),
        Outcome::Refused { errno } => match *errno {
            libc::ENETUNREACH => "ENETUNREACH".into(),
            libc::EHOSTUNREACH => "EHOSTUNREACH".into(),
            libc::EACCES => "EACCES".into(),
            libc::EINVAL => "EINVAL".into(),
            libc::EADDRNOTAVAIL => "EADDRNOTAVAIL".into(),
            errno => format!("errno {errno}"),
        },
    }
}

/// Both ends of every prefix and the addresses beside them. IPv4-mapped addresses are not the mirror's.
fn ends(mirror: &RouteSnapshot) -> impl Iterator<Item = IpAddr> + '_ {
    mirror
        .routes
        .iter()
        .flat_map(|route| match route.prefix {
            IpNet::V4(net) => {
                let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
                [first, last, first.wrapping_sub(1), last.wrapping_add(1)].map(|bits| IpAddr::V4(bits.into()))
            }
            IpNet::V6(net) => {
                let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
                [first, last, first.wrapping_sub(1), last.wrapping_add(1)].map(|bits| IpAddr::V6(bits.into()))
            }
        })
        .filter(|address| !matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()))
}
