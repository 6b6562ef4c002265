//! A network namespace of its own for each test.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use redirector_user::sys::netns::NetNs;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A namespace that goes away with its value.
pub struct Namespace {
    pub name: String,
    pub netns: NetNs,
}

impl Namespace {
    /// `None`, with a message, without the privileges for it.
    pub fn new() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            let required = std::env::var_os("CI").is_some()
                || std::env::var("REDIRECTOR_TESTS_PRIVILEGED").is_ok_and(|value| value == "required");
            assert!(!required, "this test creates network namespaces and must run as root here");
            eprintln!("SKIPPED: creating network namespaces takes root");
            return None;
        }
        let name =
            format!("redirtest-{}-mirror{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        run("ip", &["netns", "add", &name]);
        let netns = NetNs::open(Path::new(&format!("/var/run/netns/{name}"))).unwrap();
        Some(Self { name, netns })
    }

    /// A namespace with lo up and interfaces eth0, eth1... whose peers take everything and answer nothing.
    pub fn with_interfaces(count: usize) -> Option<Self> {
        let namespace = Self::new()?;
        // Addresses are usable at once, and link-local ones are only those a test gives.
        for (key, value) in [("accept_dad", "0"), ("addr_gen_mode", "1")] {
            namespace.sysctl(&format!("ipv6/conf/default/{key}"), value);
            namespace.sysctl(&format!("ipv6/conf/all/{key}"), value);
        }
        namespace.ip("link set lo up");
        for i in 0..count {
            namespace.ip(&format!("link add eth{i} type veth peer name peer{i}"));
            namespace.ip(&format!("link set peer{i} up"));
            namespace.ip(&format!("link set eth{i} up"));
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while namespace.inside(|| run("ip", &["-o", "link", "show", "up"])).matches("state UP").count()
            < 2 * count
        {
            assert!(Instant::now() < deadline, "the interfaces do not come up");
            std::thread::yield_now();
        }
        Some(namespace)
    }

    /// The usual pod: one interface, an address of each family, a default route.
    pub fn pod() -> Option<Self> {
        let pod = Self::with_interfaces(1)?;
        pod.ip("addr add 10.1.2.3/24 dev eth0");
        pod.ip("addr add fd00:1::3/64 dev eth0 nodad");
        pod.ip("route add default via 10.1.2.1");
        pod.ip("route add default via fd00:1::1 dev eth0");
        Some(pod)
    }

    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let enter = || {
                move_into_link_name_space(self.netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            };
            scope.spawn(enter).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    pub fn sysctl(&self, key: &str, value: &str) {
        self.inside(|| fs::write(format!("/proc/sys/net/{key}"), value))
            .unwrap_or_else(|e| panic!("{key}: {e}"));
    }

    pub fn ip(&self, command: &str) {
        let family = if command.contains(':') { "-6" } else { "-4" };
        let mut arguments = vec!["-n", &self.name, family];
        arguments.extend(command.split(' '));
        run("ip", &arguments);
        let words: Vec<&str> = command.split(['/', ' ']).collect();
        if let (["addr", "add", address, ..], "-6") = (&words[..], family) {
            self.wait_for_local(address);
        }
    }

    /// The kernel makes an IPv6 address usable, and its local route, in the background (`addrconf_dad_work`). Not
    /// on an interface that is down.
    fn wait_for_local(&self, address: &str) {
        let deadline = Instant::now() + Duration::from_secs(2);
        let arguments = ["-n", &self.name, "-6", "route", "show", "table", "local", address];
        while run("ip", &arguments).is_empty() && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let gone = Command::new("ip").args(["netns", "del", &self.name]).status();
        if !gone.is_ok_and(|status| status.success()) {
            eprintln!("cannot remove the network namespace {}", self.name);
        }
    }
}

#[track_caller]
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}
