//! Sockets from /proc/net, for kernels that have no `NETLINK_SOCK_DIAG`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::sockets::{Kind, Socket};

/// Sockets of the namespace that the calling thread is in.
pub(super) fn list(kind: Kind) -> io::Result<Vec<Socket>> {
    let files = if kind.is_tcp() { ["tcp", "tcp6"] } else { ["udp", "udp6"] };
    let mut all = Vec::new();
    for (file, v6) in files.into_iter().zip([false, true]) {
        match std::fs::read_to_string(format!("/proc/thread-self/net/{file}")) {
            Ok(text) => all.extend(text.lines().skip(1).filter_map(|line| parse(line, v6, kind))),
            // A kernel without IPv6.
            Err(e) if v6 && e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}

/// Whether the namespace that the calling thread is in has no TCP socket that is more than closed. Without the files it may have.
pub(super) fn has_no_tcp() -> bool {
    ["sockstat", "sockstat6"].iter().all(|file| {
        match std::fs::read_to_string(format!("/proc/thread-self/net/{file}")) {
            Ok(text) => text
                .lines()
                .any(|line| ["TCP: inuse 0 ", "TCP6: inuse 0"].iter().any(|none| line.starts_with(none))),
            // A kernel without IPv6.
            Err(e) => *file == "sockstat6" && e.kind() == io::ErrorKind::NotFound,
        }
    })
}

/// `sl local remote state queues timer retransmits uid timeout inode …`
pub fn parse(line: &str, v6: bool, kind: Kind) -> Option<Socket> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, remote) = (address(fields.next()?)?, address(fields.next()?)?);
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    if !kind.states().contains(&state) {
        return None;
    }
    Some(Socket {
        v6,
        local,
        remote,
        uid: fields.nth(3)?.parse().ok()?,
        inode: fields.nth(1)?.parse().ok()?,
        device: None,
        cookie: None,
        cgroup: None,
        v6_only: None,
        mptcp: None,
        queue: None,
        storage: None,
    })
}

/// `0100007F:3A99`: words of the address in host byte order, the port in the usual one.
pub(crate) fn address(field: &str) -> Option<SocketAddr> {
    let (address, port) = field.split_once(':').filter(|(address, _)| matches!(address.len(), 8 | 32))?;
    let mut bytes = Vec::with_capacity(16);
    for word in address.as_bytes().chunks(8) {
        bytes.extend(u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?.to_ne_bytes());
    }
    let ip = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(v4) => IpAddr::from(Ipv4Addr::from(v4)),
        Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?).to_canonical(),
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As the kernel prints it (`%08X` of each word).
    fn printed(ip: IpAddr, port: u16) -> String {
        let bytes = match ip {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let words = bytes.chunks(4).filter_map(|word| word.first_chunk());
        let words: String = words.map(|word| format!("{:08X}", u32::from_ne_bytes(*word))).collect();
        format!("{words}:{port:04X}")
    }

    proptest! {
        #[test]
        fn every_address_is_read(ip in any::<IpAddr>(), port: u16) {
            prop_assert_eq!(address(&printed(ip, port)), Some(SocketAddr::new(ip.to_canonical(), port)));
        }

        #[test]
        fn no_line_makes_it_panic(line in ".*", fields in prop::collection::vec("[0-9A-Fa-f:+-]{0,40}", 0..12)) {
            for line in [line, fields.join(" ")] {
                let _ = parse(&line, true, Kind::TcpListeners);
            }
        }
    }

    #[test]
    fn lines_of_the_kernel() {
        let line = "   0: 00000000:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1337        0 \
                    12345 1 ffff 100 0 0 10 0";
        let socket = parse(line, false, Kind::TcpListeners).unwrap();
        assert_eq!(
            (socket.local.to_string(), socket.uid, socket.inode),
            ("0.0.0.0:15001".into(), 1337, 12345)
        );
        assert_eq!(parse(line, false, Kind::TcpConnections), None);
        assert_eq!(parse("garbage", false, Kind::TcpListeners), None);
    }

    #[test]
    fn addresses() {
        for (field, text) in [
            ("0100007F:3A99", "127.0.0.1:15001"),
            ("00000000000000000000000001000000:3A9E", "[::1]:15006"),
            ("0000000000000000FFFF00000100007F:0050", "127.0.0.1:80"),
        ] {
            assert_eq!(address(field).unwrap().to_string(), text);
        }
        for bad in ["", "0100007F", "01:1", "xyz:1", "0100007F:x"] {
            assert_eq!(address(bad), None, "{bad}");
        }
    }
}
