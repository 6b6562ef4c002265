//! What settings need to know about the target.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

/// Why something about the target is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// The target is known without its root filesystem, or nobody has looked.
    #[error("it is not known for this target")]
    Unknown,
    /// It was looked for and is not there.
    #[error("there is none in the target")]
    Absent,
    /// It could not be read.
    #[error("{0}")]
    Unreadable(String),
}

/// Looks things up in the target, only when a setting needs them.
pub trait TargetInfo {
    /// The uid of a user of the target.
    fn user(&self, name: &str) -> Result<u32, LookupError>;
    /// The gid of a group of the target.
    fn group(&self, name: &str) -> Result<u32, LookupError>;
    /// The nameservers of the target's `resolv.conf`; an empty list if it names none.
    fn nameservers(&self) -> Result<Vec<IpAddr>, LookupError>;
    /// The addresses of the target's interfaces in the kernel's order, all of them (as Go's
    /// `net.InterfaceAddrs`).
    fn addresses(&self) -> Result<Vec<IpAddr>, LookupError>;
}

/// The target's root filesystem and addresses. The default knows nothing.
#[derive(Debug, Clone, Default)]
pub struct TargetDetails {
    /// The target's root filesystem: `/proc/PID/root`, or `/` for the own one. Looked up inside without
    /// leaving it.
    pub root: Option<PathBuf>,
    /// Nameservers, if not those of the root's `etc/resolv.conf`.
    pub nameservers: Option<Vec<IpAddr>>,
    /// Interface addresses in the kernel's order.
    pub addresses: Option<Vec<IpAddr>>,
}

impl TargetInfo for TargetDetails {
    fn user(&self, name: &str) -> Result<u32, LookupError> {
        database_id(&self.read("etc/passwd")?, name)
    }

    fn group(&self, name: &str) -> Result<u32, LookupError> {
        database_id(&self.read("etc/group")?, name)
    }

    fn nameservers(&self) -> Result<Vec<IpAddr>, LookupError> {
        match &self.nameservers {
            Some(servers) => Ok(servers.clone()),
            None => Ok(resolv_conf(&self.read("etc/resolv.conf")?)),
        }
    }

    fn addresses(&self) -> Result<Vec<IpAddr>, LookupError> {
        self.addresses.clone().ok_or(LookupError::Unknown)
    }
}

impl TargetDetails {
    fn read(&self, file: &str) -> Result<String, LookupError> {
        let root = self.root.as_ref().ok_or(LookupError::Unknown)?;
        read_inside(root, file)
            .map_err(|error| LookupError::Unreadable(format!("{}: {error}", root.join(file).display())))
    }
}

/// More than any of these files has; a target cannot make us read without end.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// Reads a regular file of a foreign root filesystem: its symbolic links stay inside.
fn read_inside(root: &Path, file: &str) -> std::io::Result<String> {
    let root = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = rustix::fs::openat2(&root, file, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::RegularFile {
        return Err(std::io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    File::from(fd).take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The id of `name` in a passwd or group file: the third field of its line.
fn database_id(text: &str, name: &str) -> Result<u32, LookupError> {
    let id = |line: &str| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    };
    if name.is_empty() {
        return Err(LookupError::Absent);
    }
    text.lines().find_map(id).ok_or(LookupError::Absent)
}

/// The servers that `etc/resolv.conf` below a root names.
///
/// # Errors
///
/// If it cannot be read.
pub fn nameservers_of(root: &Path) -> std::io::Result<Vec<IpAddr>> {
    read_inside(root, "etc/resolv.conf").map(|text| resolv_conf(&text))
}

/// The nameservers of a resolv.conf as istio-iptables reads it (miekg/dns `ClientConfigFromFile`, then
/// `IPsSplitV4V6`, which drops what is no address).
fn resolv_conf(text: &str) -> Vec<IpAddr> {
    let lines = text.lines().filter(|line| !line.starts_with(['#', ';']));
    lines
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            (fields.next()? == "nameserver").then(|| fields.next()?.parse().ok())?
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwd_and_group_lines() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nistio-proxy:x:1337:99::/:\n\
                      istio-proxy:x:1:1::/:\n\
                      bad:x:y:0";
        assert_eq!(database_id(passwd, "root"), Ok(0));
        assert_eq!(database_id(passwd, "istio-proxy"), Ok(1337), "the first line counts");
        for name in ["broken", "bad", "", "nobody"] {
            assert_eq!(database_id(passwd, name), Err(LookupError::Absent), "{name}");
        }
        assert_eq!(database_id(":x:7:", ""), Err(LookupError::Absent));
    }

    #[test]
    fn resolv_conf_lines() {
        let text = "# nameserver 1.1.1.1\n;nameserver 1.1.1.2\nsearch a b\nnameserver\t10.96.0.10 # x\n\
                    nameserver\nnameserver fd00::a\nnameserver name\nnameserver fe80::1%eth0\n \
                    nameserver 9.9.9.9\n";
        let expected: Vec<IpAddr> =
            ["10.96.0.10", "fd00::a", "9.9.9.9"].map(|a| a.parse().expect("address")).into();
        assert_eq!(resolv_conf(text), expected);
        assert_eq!(resolv_conf(""), Vec::<IpAddr>::new());
    }

    #[test]
    fn nothing_is_known_by_default() {
        let details = TargetDetails::default();
        assert_eq!(details.user("root"), Err(LookupError::Unknown));
        assert_eq!(details.group("root"), Err(LookupError::Unknown));
        assert_eq!(details.nameservers(), Err(LookupError::Unknown));
        assert_eq!(details.addresses(), Err(LookupError::Unknown));
    }

    #[test]
    fn links_stay_inside_the_root() {
        let root = std::env::temp_dir().join(format!("redirector-facts-{}", std::process::id()));
        let etc = root.join("etc");
        std::fs::create_dir_all(&etc).expect("directory");
        std::fs::write(root.join("groups"), "app:x:77:\n").expect("file");
        std::os::unix::fs::symlink("/groups", etc.join("group")).expect("link");
        std::os::unix::fs::symlink("../../../../../../../../etc/passwd", etc.join("passwd")).expect("link");
        std::fs::create_dir(etc.join("resolv.conf")).expect("directory");
        let details = TargetDetails { root: Some(root.clone()), ..TargetDetails::default() };
        let found = (details.group("app"), details.user("root"), details.nameservers());
        std::fs::remove_dir_all(&root).expect("removal");
        assert_eq!(found.0, Ok(77), "an absolute link is the target's");
        assert!(matches!(&found.1, Err(LookupError::Unreadable(_))), "{:?}", found.1);
        assert!(
            matches!(&found.2, Err(LookupError::Unreadable(why)) if why.contains("regular")),
            "{:?}",
            found.2
        );
    }
}
