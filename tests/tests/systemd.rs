//! The systemd unit as it is shipped, under a real systemd in namespaces of its own: it starts the agent, which captures
//! another unit by its name; neither its restart nor its end changes what is captured.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use redirector_tests::harness::machine::{Inside, Machine, nothing_left};
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::product::binary;
use redirector_tests::harness::requirements::repository;
use redirector_tests::harness::world::cgroup::mount_point;
use serde_json::Value;

/// The only directory of units: nothing of this machine's is started.
const UNITS: &str = "/run/redirtest-units";
const AGENT: &str = "redirector-agent.service";
/// The captured unit has a network of its own, without a way out.
const SHOP: &str = "[Service]\n\
    StandardError=file:/run/shop.log\n\
    PrivateNetwork=yes\n\
    ExecStartPre=ip link add wire type veth peer name far\n\
    ExecStartPre=ip link set far up\n\
    ExecStartPre=ip address add 10.77.0.2/24 dev wire\n\
    ExecStartPre=ip link set wire up\n\
    ExecStartPre=ip route add default dev wire\n\
    ExecStart=sleep infinity\n";
const TARGET: &str =
    "unit = \"shop.service\"\nallow_partial = true\n[policy]\noutbound_exclude_ports = [5432]\n";

struct Systemd {
    unshare: Inside,
    /// The pid of systemd, as seen from outside: inside of its own namespace it is the first.
    pid: u32,
    machine: Machine,
}

impl Systemd {
    fn start() -> anyhow::Result<Self> {
        let machine = Machine::boot()?;
        // The agent's directory of configuration is made by systemd, in an /etc that is the machine's alone.
        let own = machine.directory().display();
        machine.sh(&format!(
            "touch {own}/console; mkdir -p {own}/etc {own}/work /opt/bin {UNITS}; \
             mount -t overlay -o lowerdir=/etc,upperdir={own}/etc,workdir={own}/work etc /etc; \
             cp {} /opt/bin/redirector",
            binary().display()
        ))?;
        let unit = std::fs::read_to_string(repository().join("deploy/systemd").join(AGENT))?;
        let program = "/usr/local/bin/redirector";
        ensure!(unit.contains(program), "the unit does not start {program}");
        machine.write(&format!("{UNITS}/{AGENT}"), &unit.replace(program, "/opt/bin/redirector"))?;
        machine.write(&format!("{UNITS}/shop.service"), SHOP)?;
        for target in ["sysinit", "basic", "shutdown", "local-fs", "multi-user", "redirtest"] {
            machine.write(&format!("{UNITS}/{target}.target"), "[Unit]\nDefaultDependencies=no\n")?;
        }
        let environment =
            format!("container=redirtest SYSTEMD_UNIT_PATH={UNITS} SYSTEMD_GENERATOR_PATH=/run/none");
        let start = format!(
            "mount --bind {own}/console /dev/console; exec env {environment} /lib/systemd/systemd --unit=redirtest.target --log-target=console --log-level=info"
        );
        let first = ["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "sh", "-c", &start];
        let unshare = machine.daemon("unshare", &first)?;
        let pid = retry::until("the first process", || {
            // Programs on the way there have children, too.
            let parent = unshare.pid().ok()?;
            let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
            let pid: u32 = children.trim().parse().ok()?;
            (std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim() == "systemd").then_some(pid)
        })
        .with_context(|| unshare.daemon.lines().join("\n"))?;
        let this = Self { unshare, pid, machine };
        retry::until("systemd", || this.sh("systemctl is-active redirtest.target").ok())
            .with_context(|| this.log())?;
        Ok(this)
    }

    /// In all namespaces of systemd: it talks to nobody else.
    fn sh(&self, script: &str) -> anyhow::Result<String> {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid.to_string(), "--all", "--", "sh", "-euc", script]);
        run(&mut command, "")
    }

    fn ctl(&self, arguments: &str) -> anyhow::Result<String> {
        self.sh(&format!("systemctl {arguments}")).with_context(|| self.log())
    }

    /// The journal of systemd and its units.
    fn log(&self) -> String {
        let console = std::fs::read_to_string(self.machine.directory().join("console")).unwrap_or_default();
        let shop =
            std::fs::read_to_string(self.machine.outside(Path::new("/run/shop.log"))).unwrap_or_default();
        format!("{}\n{console}\n{shop}", self.unshare.daemon.lines().join("\n"))
    }

    fn instances(&self) -> anyhow::Result<Vec<Value>> {
        // It ends with 1 while the proxy does not listen.
        let list = self.machine.sh("/opt/bin/redirector list --output json || [ $? = 1 ]")?;
        Ok(serde_json::from_str(&list)?)
    }

    /// A process of a user in the captured unit.
    fn shop(&self, owner: Owner) -> anyhow::Result<Place> {
        let cgroup = mount_point()?.join(self.machine.name()).join("system.slice/shop.service");
        let pids = std::fs::read_to_string(cgroup.join("cgroup.procs"))?;
        let pid = pids.lines().next().context("a process of the unit")?;
        Ok(Place { netns: PathBuf::from(format!("/proc/{pid}/ns/net")), cgroup: Some(cgroup), owner })
    }

    fn connect(&self) -> anyhow::Result<String> {
        Ok(observe_one(&self.shop(APP)?, SERVICE)?.summary())
    }
}

#[test]
fn the_unit_as_it_is_shipped() -> anyhow::Result<()> {
    require_root!("systemctl");
    let systemd = Systemd::start()?;
    systemd.ctl("start shop.service")?;
    systemd.ctl(&format!("start {AGENT}"))?;
    let configured = systemd.machine.outside(Path::new("/etc/redirector/targets.d"));
    retry::until("the directory of the configuration", || configured.is_dir().then_some(()))?;
    systemd.machine.write("/etc/redirector/targets.d/shop.toml", TARGET)?;
    let captured = |what: &str| {
        retry::until(what, || {
            let all = systemd.instances().ok()?;
            all.iter().any(|one| one["name"] == "file-shop" && one["state"] == "active").then_some(())
        })
        .with_context(|| systemd.log())
    };
    captured("the unit to be captured")?;
    let proxy = Server::start(&systemd.shop(PROXY)?, "proxy", proxy_listeners(1))?;
    let expected = format!("proxy:{OUTBOUND} original {VIP4}:8080");
    assert_eq!(systemd.connect()?, expected);

    // It has what the unit says, and no more.
    let pid = systemd.ctl(&format!("show --property=MainPID --value {AGENT}"))?;
    let status = systemd.sh(&format!("cat /proc/{}/status", pid.trim()))?;
    let value = |name: &str| -> anyhow::Result<String> {
        let line = status.lines().find(|line| line.starts_with(name)).context(name.to_owned())?;
        Ok(line.split_whitespace().nth(1).context("a value")?.to_owned())
    };
    // BPF, PERFMON, SYS_ADMIN, SYS_PTRACE, NET_ADMIN, NET_BROADCAST (capability.h).
    let wanted: u64 = [39, 38, 21, 19, 12, 11].iter().map(|bit| 1_u64 << bit).sum();
    assert_eq!(u64::from_str_radix(&value("CapBnd:")?, 16)?, wanted);
    assert_eq!((value("NoNewPrivs:")?, value("Seccomp:")?), ("1".to_owned(), "2".to_owned()));

    systemd.ctl(&format!("restart {AGENT}"))?;
    assert_eq!(systemd.connect()?, expected, "after a restart");
    captured("the unit still to be captured")?;
    systemd.ctl(&format!("stop {AGENT}"))?;
    assert_eq!(systemd.connect()?, expected, "without the agent");

    // The unit ends, and the next agent sweeps what was its.
    drop(proxy);
    systemd.ctl("stop shop.service")?;
    systemd.ctl(&format!("start {AGENT}"))?;
    retry::until("nothing to be left", || systemd.instances().ok()?.is_empty().then_some(()))?;
    let name = systemd.machine.name().to_owned();
    drop(systemd);
    nothing_left(&name)
}
