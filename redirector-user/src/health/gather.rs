//! Reads what the kernel shows of an instance, and has it judged.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use redirector_common::abi::{LISTENERS_OF_POLICY, Slot, name};

use super::connections::{self, Connection};
use super::finding::{Finding, Health};
use super::listeners::{self, Listener, Role, Surroundings};
use super::processes::{self, NodeProcesses, Process};
use super::proxy_user::{self, Owner};
use super::snapshot::{self, Difference};
use super::{
    captures, hooks, netfilter, raw_sockets, refusers, resolvers, room, routing, state, traffic_control,
    waiting,
};
use crate::base::error::{Context, Error, Result};
use crate::compile::id_map::as_the_kernel_counts;
use crate::compile::mapped_policy::IdMappedPolicy;
use crate::compile::tables::Compiled;
use crate::explain::Offline;
use crate::instance::directory::Directory;
use crate::instance::find;
use crate::instance::maps::Instance;
use crate::instance::phase::Phase;
use crate::instance::status::{self, Status};
use crate::instance::telling;
use crate::netlink::sock_diag::{self, Kind, Socket, Sockets};
use crate::pod::{Target, descriptors, sandbox};
use crate::policy::Policy;
use crate::routes::{self, RouteSnapshot};
use crate::sys::bpf;

/// So long the proxy of a pod may take to listen, from the sandbox's network on: images are pulled and the proxy is
/// configured meanwhile.
const STARTING: Duration = Duration::from_secs(120);

/// Looks at an instance.
///
/// # Errors
///
/// Only if there is no such instance; what is wrong with it is in the findings.
pub fn instance(root: &Directory, name: &str, node: &NodeProcesses) -> Result<Health> {
    let status = match status::status(root, name) {
        Ok(status) => status,
        Err(e) if !root.instance(name).exists() => return Err(e),
        Err(e) => {
            let mut health = Health { pod: find::recorded_pod(root, name), ..state::unopened(name, &e) };
            health.findings.splice(..0, room::read_only(root));
            return Ok(health);
        }
    };
    let mut findings = Vec::new();
    let policy = &status.record.policy;
    let ended = status.problem.as_ref().is_some_and(|problem| problem.contains("is gone;"));
    if let Some(problem) = &status.problem {
        findings.push(state::told_by_status(name, problem));
    }
    findings.extend((status.state == "inert").then(|| state::inert(root, name)));
    if status.state == "active" && !ended {
        findings.extend(state::missing_pins(&root.instance(name), name));
        match Gathered::new(root, &status, node) {
            Ok(gathered) => gathered.judge(&status, &mut findings),
            Err(e) => findings.push(Finding::unknown("the pod", &e)),
        }
    }
    findings.sort_by_key(|finding| finding.level);
    Ok(Health {
        name: name.to_owned(),
        state: status.state,
        pod: status.record.pod,
        captures: Some(captures::line(policy)),
        findings,
    })
}

/// The connections of an instance's pod.
///
/// # Errors
///
/// If the instance is not there or not active, or the kernel does not list sockets.
pub fn connections_of(root: &Directory, name: &str) -> Result<Vec<Connection>> {
    let status = status::status(root, name)?;
    let gathered = Gathered::new(root, &status, &NodeProcesses::read()?)?;
    gathered.connections(&gathered.sockets(Kind::TcpConnections)?)
}

/// The policy of an instance with the addresses, routes and interfaces that its programs know, and how those differ from the
/// present ones.
///
/// # Errors
///
/// If the instance is not there or not active.
pub fn known_to_programs(root: &Directory, name: &str) -> Result<(Policy, Offline, Difference)> {
    let status = status::status(root, name)?;
    let gathered = Gathered::new(root, &status, &NodeProcesses::default())?;
    let difference = gathered.difference(&status)?;
    let policy = status.record.policy;
    // Users and groups as the pod counts them, which is how they are asked for.
    let compiled = Compiled::new(&policy, &gathered.now).with_namespace_of(&gathered.in_force.compiled);
    Ok((policy, Offline::in_force(compiled, &gathered.now), difference))
}

/// What was read of an active instance.
struct Gathered {
    root: Directory,
    instance: Instance,
    slot: Slot,
    target: Target,
    /// With the kernel's numbers of users and groups.
    policy: Policy,
    in_force: Offline,
    now: RouteSnapshot,
    /// Captured cgroups by id: the instance's and those below.
    cgroups: HashMap<u64, PathBuf>,
    processes: Vec<Process>,
    outside: HashSet<u32>,
    owners: HashMap<u64, Vec<u32>>,
}

impl Gathered {
    fn new(root: &Directory, status: &Status, node: &NodeProcesses) -> Result<Self> {
        let instance = Instance::open(root, &status.name)?;
        let Phase::Active(slot) = Phase::of(&instance.meta()?) else {
            return Err(Error::failed(format!("the instance {} is not active", status.name))
                .usage("see `redirector list`"));
        };
        let target = find::target(root, &status.name)?;
        let policy = as_the_kernel_counts(&status.record.policy, &target.netns)?;
        let now = routes::read(&target.netns)?;
        let scalars = instance.policy(slot)?;
        let compiled = Compiled::in_force(scalars, &instance.tables()?, slot)?;
        let in_force = Offline::in_force(compiled, &now);
        let cgroups = target.cgroup.ids();
        let pids = node.of(target.netns.inode);
        let inside = target.cgroup.processes()?;
        let outside = if pids.iter().any(|pid| !inside.contains(pid)) {
            target.processes_outside()?
        } else {
            Vec::new()
        };
        let processes: Vec<Process> = pids.iter().filter_map(|pid| Process::read(*pid)).collect();
        let (owners, _) = descriptors::owners_of_sockets(processes.iter().map(|process| process.pid));
        let outside = outside.into_iter().collect();
        let root = root.clone();
        Ok(Self { root, instance, slot, target, policy, in_force, now, cgroups, processes, outside, owners })
    }

    fn judge(&self, status: &Status, findings: &mut Vec<Finding>) {
        let name = &status.name;
        findings.extend(hooks::judge_own(name, &status.hooks));
        let mut add = |subject: &str, part: Result<Vec<Finding>>| match part {
            Ok(found) => findings.extend(found),
            Err(e) => findings.push(Finding::unknown(subject, &e)),
        };
        let below: Vec<PathBuf> =
            self.cgroups.values().filter(|path| **path != self.target.cgroup.path).cloned().collect();
        let foreign = hooks::foreign(&status.hooks, &self.target.cgroup, self.target.netns.as_fd(), &below);
        let foreign =
            foreign.map(|foreign| hooks::without(foreign, || find::programs_of_others(&self.root, name)));
        add("programs of others", foreign.map(|foreign| hooks::judge_foreign(name, &foreign)));
        add("programs that refuse", refusers::judge(&self.target.cgroup, &below, &self.policy));
        add("programs at lo", refusers::judge_loopback(&self.target.netns, &self.policy));
        add("traffic control", traffic_control::judge(&self.target.netns, &self.policy));
        add("what is shared", hooks::judge_found(&self.instance));
        add("listeners", self.listeners(status));
        add("processes", self.judge_processes());
        match self.sockets(Kind::TcpConnections) {
            Ok(sockets) => {
                add("ports", room::judge_ports(&self.target.netns, &sockets.list));
                add("connections", self.judge_connections(&sockets));
            }
            Err(e) => ["ports", "connections"]
                .into_iter()
                .for_each(|subject| add(subject, Ok(vec![Finding::unknown(subject, &e)]))),
        }
        let asked = resolvers::read(&self.policy, &self.processes);
        add(
            "resolv.conf",
            asked.map(|asked| resolvers::judge(name, &self.policy, &asked).into_iter().collect()),
        );
        let owners = |inode| self.owners_of(inode).into_iter().map(Process::told).collect();
        let raw = raw_sockets::judge(&self.target.netns, owners);
        add("raw sockets", raw.map(|found| found.into_iter().collect()));
        let stale = |difference| snapshot::judge(name, &difference).into_iter().collect();
        add("addresses and routes", self.difference(status).map(stale));
        add(
            "rules of netfilter",
            netfilter::judge(&self.target.netns, &self.policy, (&self.now, &self.processes)),
        );
        add("rules of routing", routing::judge(&self.target.netns));
        let noted = self.instance.meta().map(|meta| meta.flags);
        let undone =
            noted.and_then(|noted| routing::judge_undone(name, &self.target.netns, &self.policy, noted));
        add("what attach has changed", undone.map(|found| found.into_iter().collect()));
        add("lo", routing::judge_loopback(&self.target.netns, &self.policy, status, &self.now));
        findings.extend(room::judge(status, &self.now));
        match telling::is_left_telling(&self.instance) {
            Ok(true) => findings.push(Finding::notice(
                "trace_killed",
                "a trace was killed, and the programs still tell their decisions".into(),
                "capture is the same, and each connection costs more",
                format!("redirector refresh {name}"),
            )),
            Ok(false) => {}
            Err(e) => findings.push(Finding::unknown("trace", &e)),
        }
    }

    /// Sockets of the namespace.
    fn sockets(&self, kind: Kind) -> Result<Sockets> {
        let map = bpf::obj_get(&self.instance.dir.join(name::SOCKETS)).ok();
        self.target.netns.run(|| {
            let all = sock_diag::list(kind, map.as_ref().map(AsFd::as_fd));
            // A kernel that does not tell what maps hold (before 5.7) refuses the question.
            if map.is_some() && all.is_err() { sock_diag::list(kind, None) } else { all }
        })
    }

    fn process(&self, pid: u32) -> Option<&Process> {
        self.processes.iter().find(|process| process.pid == pid)
    }

    fn owners_of(&self, inode: u64) -> Vec<&Process> {
        let pids = self.owners.get(&inode).map(Vec::as_slice).unwrap_or_default();
        pids.iter().filter_map(|pid| self.process(*pid)).collect()
    }

    fn listeners(&self, status: &Status) -> Result<Vec<Finding>> {
        let ports: Vec<u16> = Role::of(&self.policy).iter().map(|role| role.port(&self.policy)).collect();
        let all = self.sockets(Kind::TcpListeners)?;
        let registered = self.registered()?;
        let of_ports: Vec<Listener> = all
            .list
            .into_iter()
            .filter(|socket| ports.contains(&socket.local.port()))
            .map(|socket| Listener {
                owner: self.owners_of(socket.inode).first().map(|process| process.told()),
                inside: self.is_inside(&socket),
                registered: socket.cookie.map(|cookie| registered.contains(&cookie)),
                socket,
            })
            .collect();
        let around = self.surroundings(status);
        let mut findings = listeners::judge(&self.policy, &of_ports, &around);
        let servers = self.sockets(Kind::UdpServers)?.list;
        findings.extend(listeners::judge_udp(&self.policy, &servers, &around));
        let transparent = status.listeners.iter().filter_map(|l| l.problem.as_ref());
        findings.extend(transparent.filter(|problem| problem.contains("transparent")).map(|problem| {
            let remedy = format!("redirector refresh {}", status.name);
            Finding::fault("listener_not_transparent", problem.clone(), "", remedy)
        }));
        let of_the_proxy =
            of_ports.iter().filter(|listener| listeners::may_be_the_proxys(&self.policy, listener));
        let owners: Vec<Vec<Owner>> = of_the_proxy.map(|listener| self.owners(listener)).collect();
        findings.extend(proxy_user::judge(&self.policy, &self.in_force, &self.now.routes, &owners));
        let listening: HashSet<u32> =
            of_ports.iter().flat_map(|l| self.owners_of(l.socket.inode)).map(|process| process.pid).collect();
        let proxy: Vec<&Process> = listening.iter().filter_map(|pid| self.process(*pid)).collect();
        let stopped = processes::judge_stopped(&proxy, &self.cgroups);
        if stopped.is_empty() {
            findings.extend(waiting::judge(&of_ports, || Ok(self.sockets(Kind::TcpConnections)?.list))?);
        }
        findings.extend(stopped);
        let whole = self.target.cgroup.path.display().to_string();
        findings.extend(processes::judge_impostors(
            &self.processes,
            &listening,
            (&self.policy.proxy_uids, &self.policy.proxy_gids),
            whole.rsplit('/').next().unwrap_or_default(),
        ));
        Ok(findings)
    }

    /// Whether a socket was made in a captured cgroup. Where that is not told its process stands for it.
    fn is_inside(&self, socket: &Socket) -> Option<bool> {
        if let Some(id) = socket.cgroup {
            return Some(self.cgroups.contains_key(&id));
        }
        let owners = self.owners_of(socket.inode);
        (!owners.is_empty()).then(|| owners.iter().any(|process| !self.outside.contains(&process.pid)))
    }

    fn owners(&self, listener: &Listener) -> Vec<Owner> {
        let (socket, port) = (&listener.socket, listener.socket.local.port());
        let in_proxy =
            |path: &PathBuf| self.policy.proxy_cgroup.as_ref().is_some_and(|own| path.starts_with(own));
        let processes = self.owners_of(socket.inode);
        if processes.is_empty() {
            let proxy = socket.cgroup.and_then(|id| self.cgroups.get(&id)).is_some_and(in_proxy);
            return vec![Owner { port, uid: socket.uid, gid: None, proxy, told: None }];
        }
        let owner = |process: &&Process| Owner {
            port,
            uid: process.uid,
            gid: Some(process.gid),
            // A socket belongs to the cgroup that its maker is in at that moment: what counts is what it will make.
            proxy: process.home(&self.cgroups).is_some_and(in_proxy),
            told: Some(process.told()),
        };
        processes.iter().map(owner).collect()
    }

    /// Cookies of the listeners in the registry of the policy slot.
    fn registered(&self) -> Result<HashSet<u64>> {
        let map = self.instance.listeners()?;
        let first = self.slot.index() * LISTENERS_OF_POLICY;
        let mut cookies = HashSet::new();
        for slot in first..first + LISTENERS_OF_POLICY {
            cookies.extend(bpf::sockmap_cookie(map.as_fd(), slot).context(|| "read LISTENERS".into())?);
        }
        Ok(cookies)
    }

    fn surroundings(&self, status: &Status) -> Surroundings {
        Surroundings {
            instance: status.name.clone(),
            interfaces: self.now.interfaces.iter().map(|it| (it.index, it.name.clone())).collect(),
            has_ipv6: routing::others_use_ipv6(&self.now),
            young: status.name.starts_with("pod-")
                && age(&self.instance.dir).is_some_and(|age| age < STARTING),
        }
    }

    fn judge_processes(&self) -> Result<Vec<Finding>> {
        let outside: Vec<&Process> =
            self.processes.iter().filter(|process| self.outside.contains(&process.pid)).collect();
        let cgroup = self.target.cgroup.path.display().to_string();
        let sandbox = sandbox::of(&self.target.cgroup)?;
        let outside = processes::judge_outside(&self.policy, &outside, &cgroup);
        Ok(outside.into_iter().chain(sandbox.map(processes::judge_sandbox)).collect())
    }

    fn connections(&self, sockets: &Sockets) -> Result<Vec<Connection>> {
        let listeners = self.sockets(Kind::TcpListeners)?;
        let mut owners = HashMap::new();
        for socket in &sockets.list {
            if let Some(process) = self.owners_of(socket.inode).first() {
                owners.insert(socket.inode, (process.pid, process.name.clone(), process.gid));
            }
        }
        let destinations = self.instance.original_dst()?;
        let destinations = destinations.iter().filter_map(std::result::Result::ok);
        let pod = connections::Pod {
            policy: &self.policy,
            in_force: &self.in_force,
            cgroups: self.cgroups.clone(),
            destinations: destinations
                .map(|(addr, original)| (redirector_common::Addr::v4(addr.data()), original))
                .collect(),
            listening: listeners.list.iter().map(|socket| socket.local.port()).collect(),
            owners,
        };
        Ok(connections::list(&pod, &sockets.list, sockets.complete))
    }

    fn judge_connections(&self, sockets: &Sockets) -> Result<Vec<Finding>> {
        let connections = self.connections(sockets)?;
        if !sockets.complete {
            return Err(Error::unsupported(
                "the kernel has no sock_diag (modules inet_diag and tcp_diag), so which connections are captured is not told",
            ));
        }
        Ok(connections::judge_missed(&connections, &self.outside))
    }

    fn difference(&self, status: &Status) -> Result<Difference> {
        let expected = IdMappedPolicy::new(status.record.policy.clone(), &self.target)?.compile(&self.now);
        Ok(Difference::between(&self.in_force.compiled, &expected))
    }
}

/// How long ago an instance was made: a pin keeps the time of its making.
fn age(dir: &Path) -> Option<Duration> {
    let made = std::fs::metadata(dir.join(name::META)).ok()?.modified().ok()?;
    made.elapsed().ok()
}
