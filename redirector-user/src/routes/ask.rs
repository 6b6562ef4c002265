//! What connect(2) would answer, put together from the kernel's own answers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};

use super::dump::ROUTE_HEADER;
use super::prefix::{Block, representatives};
use super::snapshot::Outcome;
use crate::base::error::{Context, Result};
use crate::netlink::{Answer, Message, Netlink, Payload, number};

const WHAT: &str = "the route to a destination";
const RTA_IP_PROTO: u16 = 27;
/// Offset of `rta_error` in struct rta_cacheinfo.
const CACHEINFO_ERROR: usize = 12;

/// A route the kernel found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    /// RTN_*.
    kind: u8,
    oif: u32,
    source: Option<IpAddr>,
}

/// What connect(2) comes to: a route, or the errno.
pub(super) type Verdict = Result<Found, i32>;

/// Asks for routes in the namespace of the calling thread.
pub(super) struct Asker<'a> {
    netlink: &'a mut Netlink,
    /// Indices of the interfaces whose traffic comes straight back.
    loopbacks: Vec<u32>,
    /// Tells the errno of IPv6 destinations without a route.
    probe: Option<OwnedFd>,
}

impl<'a> Asker<'a> {
    pub(super) fn new(netlink: &'a mut Netlink, loopbacks: Vec<u32>) -> Self {
        Self { netlink, loopbacks, probe: None }
    }

    /// The outcome of each of the sorted, distinct prefixes.
    ///
    /// A prefix without addresses of its own says what its first child says, which lets that child be merged
    /// away.
    pub(super) fn outcomes(&mut self, blocks: &[Block]) -> Result<Vec<(Block, Outcome)>> {
        let spoken: Vec<(usize, IpAddr, IpAddr)> = representatives(blocks)
            .into_iter()
            .enumerate()
            .filter_map(|(i, pair)| pair.map(|(low, high)| (i, low, high)))
            .collect();
        let asked: Vec<IpAddr> = spoken.iter().map(|(_, low, _)| *low).collect();
        let mut outcomes: Vec<Option<Outcome>> = vec![None; blocks.len()];
        // A local prefix whose source is the very address that was asked for: the source of the whole prefix,
        // or each its own?
        let (mut doubtful, mut second) = (Vec::new(), Vec::new());
        for ((i, low, high), verdict) in spoken.iter().zip(self.connect(&asked)?) {
            outcomes[*i] = Some(self.outcome(*low, verdict));
            if low != high && verdict.is_ok_and(|found| found.source == Some(*low)) {
                doubtful.push(*i);
                second.push(*high);
            }
        }
        let verdicts = self.connect(&second)?;
        for ((i, asked), verdict) in doubtful.into_iter().zip(second).zip(verdicts) {
            outcomes[i] = Some(self.outcome(asked, verdict));
        }

        let mut answers: Vec<(Block, Outcome)> = Vec::with_capacity(blocks.len());
        for (block, outcome) in blocks.iter().zip(outcomes).rev() {
            let said = outcome.or_else(|| answers.last().map(|(_, child)| child.clone()));
            answers.extend(said.map(|outcome| (*block, outcome)));
        }
        answers.reverse();
        Ok(answers)
    }

    fn outcome(&self, asked: IpAddr, verdict: Verdict) -> Outcome {
        if asked.is_ipv6() && is_group(asked) {
            // tcp_v6_connect, before any lookup.
            return Outcome::Refused { errno: libc::ENETUNREACH };
        }
        let found = match verdict {
            Ok(found) => found,
            Err(errno) => return Outcome::Refused { errno },
        };
        match found.kind {
            // tcp_v4_connect: rt_flags & (RTCF_MULTICAST | RTCF_BROADCAST). __mkroute_output sets them by the
            // address, but a route that shares its next hop with a unicast one may answer from that one's
            // cache.
            _ if asked == IpAddr::V4(Ipv4Addr::BROADCAST) => Outcome::Refused { errno: libc::ENETUNREACH },
            libc::RTN_BROADCAST if !self.loopbacks.contains(&found.oif) => {
                Outcome::Broadcast { oif: found.oif }
            }
            libc::RTN_BROADCAST | libc::RTN_MULTICAST => Outcome::Refused { errno: libc::ENETUNREACH },
            _ if is_group(asked) => Outcome::Refused { errno: libc::ENETUNREACH },
            kind if kind == libc::RTN_LOCAL || self.loopbacks.contains(&found.oif) => {
                // A route over lo in a namespace without addresses: inet_select_addr finds none.
                let source = found.source.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
                Outcome::Local { source: Some(source).filter(|source| *source != asked) }
            }
            _ => Outcome::Via { oif: found.oif, source: found.source },
        }
    }

    /// What connect(2) of an unbound, unmarked TCP socket comes to for each destination.
    ///
    /// IPv4: `ip_route_connect` looks up twice, the second time with the source the first one chose, so that
    /// rules on the source count. IPv6: `ip6_dst_lookup_tail` looks up once if there is a route and takes its
    /// source; EADDRNOTAVAIL if there is none. Without a route it first chooses any source (EADDRNOTAVAIL if
    /// there is none) and tries again with it. Netlink does not offer that choice, so a raw socket, which
    /// takes the same path and sends nothing, is connected to learn it.
    fn connect(&mut self, destinations: &[IpAddr]) -> Result<Vec<Verdict>> {
        let questions: Vec<_> = destinations.iter().map(|destination| (*destination, None)).collect();
        let mut verdicts = self.routes(&questions)?;

        let mut again = Vec::new();
        for (i, (destination, verdict)) in destinations.iter().zip(&mut verdicts).enumerate() {
            match (*verdict, destination) {
                (Ok(Found { source: Some(source), .. }), IpAddr::V4(_)) => again.push((i, source)),
                (Ok(Found { source: None, .. }), IpAddr::V6(_)) => *verdict = Err(libc::EADDRNOTAVAIL),
                (Err(_), IpAddr::V6(v6)) if !is_group(*destination) => match self.probe(*v6)? {
                    Ok(source) => again.push((i, source)),
                    Err(errno) => *verdict = Err(errno),
                },
                _ => {}
            }
        }
        let questions: Vec<_> = again.iter().map(|(i, source)| (destinations[*i], Some(*source))).collect();
        for ((i, source), verdict) in again.into_iter().zip(self.routes(&questions)?) {
            verdicts[i] = verdict.map(|found| Found { source: Some(source), ..found });
        }
        Ok(verdicts)
    }

    /// `ip route get DESTINATION [from SOURCE] ipproto tcp`: inet_rtm_getroute, inet6_rtm_getroute.
    fn routes(&mut self, questions: &[(IpAddr, Option<IpAddr>)]) -> Result<Vec<Verdict>> {
        let messages = questions.iter().map(|(destination, source)| {
            // connect(2) takes the unspecified address for the loopback address. So does inet_rtm_getroute,
            // but the second lookup of ip_route_connect is for the address the first one put in its place,
            // which is the source.
            let destination = match (destination, source) {
                (IpAddr::V6(v6), _) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
                (IpAddr::V4(v4), Some(source)) if v4.is_unspecified() => *source,
                (other, _) => *other,
            };
            let (family, bits) = match destination {
                IpAddr::V4(_) => (libc::AF_INET as u8, 32),
                IpAddr::V6(_) => (libc::AF_INET6 as u8, 128),
            };
            let mut header = [0; ROUTE_HEADER];
            header[0] = family;
            header[1] = bits;
            header[2] = source.map_or(0, |_| bits);
            let message = Message::new(libc::RTM_GETROUTE, 0, &header)
                .address(libc::RTA_DST, destination)
                .attribute(RTA_IP_PROTO, &[libc::IPPROTO_TCP as u8]);
            match source {
                Some(source) => message.address(libc::RTA_SRC, *source),
                None => message,
            }
        });
        let answers = self.netlink.ask(WHAT, messages, decode)?;
        questions
            .iter()
            .zip(answers)
            .map(|((destination, _), answer)| verdict(*destination, answer))
            .collect()
    }

    /// connect(2) of a datagram socket: the source it chooses, or the errno.
    fn probe(&mut self, destination: Ipv6Addr) -> Result<Result<IpAddr, i32>> {
        let what = || "use a probing socket in the network namespace".to_owned();
        let socket = match &self.probe {
            Some(socket) => socket,
            None => self.probe.insert(open_probe().context(what)?),
        };
        // Port 0 as in the netlink question: no rule on ports matches.
        let connected = net::connect(socket, &SocketAddr::new(destination.into(), 0));
        match connected {
            Ok(()) => {
                let name = net::getsockname(socket).context(what)?;
                net::connect_unspec(socket).context(what)?;
                let name = SocketAddr::try_from(name).context(what)?;
                Ok(Ok(name.ip()))
            }
            Err(errno) => Ok(Err(errno.raw_os_error())),
        }
    }
}

/// A raw TCP socket routes as TCP does, and no cgroup program sees it connect (rawv6_prot has no
/// pre_connect). Without CAP_NET_RAW a UDP socket differs only under policy rules that select a protocol.
fn open_probe() -> Result<OwnedFd, Errno> {
    let open = |kind, protocol| net::socket_with(AddressFamily::INET6, kind, SocketFlags::CLOEXEC, protocol);
    match open(SocketType::RAW, Some(net::ipproto::TCP)) {
        Err(Errno::PERM | Errno::ACCESS) => open(SocketType::DGRAM, None),
        socket => socket,
    }
}

/// Never the destination of a connection.
fn is_group(address: IpAddr) -> bool {
    address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST)
}

/// Reads an RTM_NEWROUTE: the route, or the error inside it. `None` if it is malformed.
pub(super) fn decode(payload: &[u8]) -> Option<Verdict> {
    let route = Payload::split(payload, ROUTE_HEADER)?;
    // rt6_fill_node puts dst->error, negative.
    let error = route.get(libc::RTA_CACHEINFO).and_then(|info| number(info.get(CACHEINFO_ERROR..)?));
    let kind = route.byte(7);
    let errno = match (error.unwrap_or_default().cast_signed(), kind) {
        (0, libc::RTN_BLACKHOLE) => libc::EINVAL,
        (0, libc::RTN_UNREACHABLE) => libc::EHOSTUNREACH,
        (0, libc::RTN_PROHIBIT) => libc::EACCES,
        (0, libc::RTN_THROW) => libc::ENETUNREACH,
        (0, _) => {
            let oif = route.get_number(libc::RTA_OIF).unwrap_or_default();
            return Some(Ok(Found { kind, oif, source: route.get_address(libc::RTA_PREFSRC) }));
        }
        (error, _) => error.wrapping_abs(),
    };
    Some(Err(errno))
}

/// Tells what the routes say from a kernel that could not answer.
fn verdict(destination: IpAddr, answer: Answer<Verdict>) -> Result<Verdict> {
    match answer {
        Ok(verdict) => Ok(verdict),
        Err(
            errno @ (0
            | libc::EPERM
            | libc::ENOMEM
            | libc::ENOBUFS
            | libc::EAGAIN
            | libc::EINTR
            | libc::EOPNOTSUPP),
        ) => Err(io::Error::from_raw_os_error(errno))
            .context(|| format!("ask the kernel how it routes {destination}")),
        Err(errno) => Ok(Err(errno)),
    }
}
