//! The TCP and UDP sockets of a network namespace, from `NETLINK_SOCK_DIAG`, and where its modules (`inet_diag`, `tcp_diag`,
//! `udp_diag`) are missing from /proc/net, which tells less: what it does not tell is `None`, never "no".

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::net::netlink::SOCK_DIAG;

use super::proc_net;
pub use super::sockets::{Kind, Socket, Sockets};
use super::{Message, Netlink, NetlinkError, Payload};
use crate::base::error::{Context, Result};

/// `SOCK_DIAG_BY_FAMILY` of uapi/linux/sock_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Length of `struct inet_diag_req_v2`; all but its first eight bytes select nothing.
const REQUEST_LEN: usize = 56;
/// Length of `struct inet_diag_msg`.
const ANSWER_LEN: usize = 72;

/// `INET_DIAG_REQ_SK_BPF_STORAGES`, and in it `SK_DIAG_BPF_STORAGE_REQ_MAP_FD`.
const REQ_SK_BPF_STORAGES: u16 = 2;
const STORAGE_REQ_MAP_FD: u16 = 1;
/// Attributes of an answer: `INET_DIAG_SKV6ONLY`, `_ULP_INFO`, `_SK_BPF_STORAGES`, `_CGROUP_ID`.
const SKV6ONLY: u16 = 11;
const ULP_INFO: u16 = 19;
const SK_BPF_STORAGES: u16 = 20;
const CGROUP_ID: u16 = 21;
/// What only listeners are asked for: `INET_DIAG_INFO`, without which `inet_sk_diag_fill` does not tell the ULP either.
const INET_DIAG_INFO: u8 = 2;
/// In `INET_DIAG_ULP_INFO`: `INET_ULP_INFO_NAME`.
const ULP_NAME: u16 = 1;
/// In `INET_DIAG_SK_BPF_STORAGES`: `SK_DIAG_BPF_STORAGE`, and in it `SK_DIAG_BPF_STORAGE_MAP_VALUE`.
const STORAGE: u16 = 1;
const STORAGE_VALUE: u16 = 3;

/// Lists sockets of the namespace that the calling thread is in, with what `storage` (an sk_storage map) holds of each.
///
/// # Errors
///
/// The kernel's. A kernel without the modules is none: then /proc/net is read.
pub fn list(kind: Kind, storage: Option<BorrowedFd<'_>>) -> Result<Sockets> {
    match ask(kind, storage) {
        Ok(list) => Ok(Sockets { list, complete: true }),
        Err(e) if is_missing(&e) => {
            let list = proc_net::list(kind).context(|| "read the sockets in /proc/net".into())?;
            Ok(Sockets { list, complete: false })
        }
        Err(e) => Err(e.into()),
    }
}

/// The TCP connections of the namespace that the calling thread is in. The kernel looks for them in the table of the whole machine
/// (a millisecond), so this asks first for the counts of the namespace, in which closed sockets are not
/// (`sockstat_seq_show`).
///
/// # Errors
///
/// As [`list`].
pub fn connections() -> Result<Vec<Socket>> {
    if proc_net::has_no_tcp() { Ok(Vec::new()) } else { Ok(list(Kind::TcpConnections, None)?.list) }
}

/// No netlink of this kind (EPROTONOSUPPORT), or no handler of the family (`__sock_diag_cmd`) or of the protocol
/// (`inet_diag_lock_handler`), which are ENOENT.
fn is_missing(error: &NetlinkError) -> bool {
    matches!(error.errno(), Some(libc::EPROTONOSUPPORT | libc::ENOENT))
}

fn ask(kind: Kind, storage: Option<BorrowedFd<'_>>) -> Result<Vec<Socket>, NetlinkError> {
    let mut netlink = Netlink::open_protocol(Some(SOCK_DIAG))?;
    let mut all = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let request = request(kind, family as u8, storage);
        all.extend(netlink.list("the sockets", &request, |payload| decode(payload, kind))?);
    }
    Ok(all)
}

fn request(kind: Kind, family: u8, storage: Option<BorrowedFd<'_>>) -> Message {
    let mut header = [0; REQUEST_LEN];
    header[0] = family;
    header[1] = if kind.is_tcp() { libc::IPPROTO_TCP } else { libc::IPPROTO_UDP } as u8;
    if kind == Kind::TcpListeners {
        header[2] = 1 << (INET_DIAG_INFO - 1);
    }
    let states = kind.states().iter().fold(0u32, |all, state| all | 1 << state);
    header[4..8].copy_from_slice(&states.to_ne_bytes());
    let request = Message::new(SOCK_DIAG_BY_FAMILY, 0, &header);
    match storage {
        Some(map) => {
            let mut nested = [8u16.to_ne_bytes(), STORAGE_REQ_MAP_FD.to_ne_bytes()].concat();
            nested.extend((map.as_raw_fd() as u32).to_ne_bytes());
            request.attribute(REQ_SK_BPF_STORAGES, &nested)
        }
        None => request,
    }
}

/// A `struct inet_diag_msg` and its attributes.
fn decode(payload: &[u8], kind: Kind) -> Option<Socket> {
    let message = Payload::split(payload, ANSWER_LEN)?;
    let v6 = message.byte(0) == libc::AF_INET6 as u8;
    let port = |at| u16::from_be_bytes([message.byte(at), message.byte(at + 1)]);
    let address = |at: usize| -> Option<IpAddr> {
        Some(if v6 {
            Ipv6Addr::from(*payload.get(at..)?.first_chunk::<16>()?).to_canonical()
        } else {
            Ipv4Addr::from(*payload.get(at..)?.first_chunk::<4>()?).into()
        })
    };
    let ulp = message.get(ULP_INFO).and_then(|ulp| Payload::split(ulp, 0)?.get(ULP_NAME));
    Some(Socket {
        v6,
        local: SocketAddr::new(address(8)?, port(4)),
        remote: SocketAddr::new(address(24)?, port(6)),
        device: Some(message.number(40)),
        cookie: Some(u64::from(message.number(44)) | u64::from(message.number(48)) << 32),
        uid: message.number(64),
        inode: message.number(68).into(),
        cgroup: message.get(CGROUP_ID).and_then(|id| Some(u64::from_ne_bytes(*id.first_chunk()?))),
        v6_only: message.get(SKV6ONLY).and_then(|only| Some(*only.first()? != 0)),
        mptcp: (kind == Kind::TcpListeners).then(|| ulp.is_some_and(|name| name.starts_with(b"mptcp"))),
        queue: (kind == Kind::TcpListeners).then(|| (message.number(56), message.number(60))),
        storage: storage(&message),
    })
}

fn storage(message: &Payload<'_>) -> Option<Vec<u8>> {
    let all = Payload::split(message.get(SK_BPF_STORAGES)?, 0)?;
    let one = Payload::split(all.get(STORAGE)?, 0)?;
    one.get(STORAGE_VALUE).map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsFd;

    use proptest::prelude::*;

    use super::*;
    use crate::sys::sockopt;

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), ANSWER_LEN - 1..ANSWER_LEN + 80)) {
            let _ = decode(&bytes, Kind::TcpListeners);
        }
    }

    fn find(kind: Kind, local: SocketAddr) -> [Socket; 2] {
        let of = |list: Vec<Socket>| list.into_iter().find(|socket| socket.local == local);
        let told = list(kind, None).expect("the kernel lists sockets");
        assert!(told.complete, "no sock_diag here");
        let proc = proc_net::list(kind).expect("/proc/net");
        [of(told.list).expect("sock_diag has it"), of(proc).expect("/proc/net has it")]
    }

    #[test]
    fn both_sources_tell_the_same() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = tcp.local_addr().unwrap();
        let client = TcpStream::connect(local).unwrap();
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        let cases = [
            (Kind::TcpListeners, local, tcp.as_fd()),
            (Kind::TcpConnections, client.local_addr().unwrap(), client.as_fd()),
            (Kind::UdpServers, udp.local_addr().unwrap(), udp.as_fd()),
        ];
        for (kind, address, fd) in cases {
            let [told, proc] = find(kind, address);
            assert_eq!(told.cookie, sockopt::cookie(fd).ok(), "{kind:?}");
            assert_eq!(told.uid, rustix::process::geteuid().as_raw(), "{kind:?}");
            let mptcp = (kind == Kind::TcpListeners).then_some(false);
            assert_eq!((told.device, told.mptcp), (Some(0), mptcp), "{kind:?}");
            assert_eq!(told.queue, (kind == Kind::TcpListeners).then_some((1, 128)), "{kind:?}");
            assert_eq!(told.inode, rustix::fs::fstat(fd).unwrap().st_ino, "{kind:?}");
            let less = Socket {
                device: None,
                cookie: None,
                cgroup: None,
                v6_only: None,
                mptcp: None,
                queue: None,
                ..told
            };
            assert_eq!(proc, less, "{kind:?}");
        }
        assert_eq!(find(Kind::TcpConnections, client.local_addr().unwrap())[0].remote, local);
    }

    #[test]
    fn ipv4_in_ipv6_and_v6_only() {
        let dual = TcpListener::bind("[::]:0").unwrap();
        let port = dual.local_addr().unwrap().port();
        let [told, _] = find(Kind::TcpListeners, dual.local_addr().unwrap());
        assert_eq!((told.v6, told.v6_only), (true, Some(false)));
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let [accepted, _] = find(Kind::TcpConnections, client.peer_addr().unwrap());
        assert_eq!((accepted.v6, accepted.remote), (true, client.local_addr().unwrap()));
    }

    #[test]
    fn what_is_cut_off_is_no_socket() {
        for length in [0, 1, ANSWER_LEN - 1] {
            assert_eq!(decode(&vec![0; length], Kind::TcpListeners), None);
        }
        let mut bytes = vec![0; ANSWER_LEN];
        bytes.extend([255, 255, CGROUP_ID as u8, 0, 1]);
        assert_eq!(decode(&bytes, Kind::TcpListeners).unwrap().cgroup, None);
    }
}
