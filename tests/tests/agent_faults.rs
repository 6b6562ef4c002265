//! What the agent does when the node, the API server or another program gets in its way.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use redirector_tests::harness::kubelet::{Id, NodeWithPod, PREVIOUS};
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::product::agent::{Agent, Home, until_active, until_ready};
use serde_json::{Value, json};

const LIST: &str = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#;

fn lines(agent: &Agent, text: &str) -> usize {
    agent.log().lines().filter(|line| line.contains(text)).count()
}

/// A cleaner of /run removes the socket, or the whole directory.
#[test]
fn the_socket_is_removed() -> anyhow::Result<()> {
    let Some(node) = NodeWithPod::new(&[])? else { return Ok(()) };
    let socket = node.home.run().join("agent.sock");
    std::fs::remove_file(&socket)?;
    retry::until("the socket to be back", || socket.exists().then_some(()))?;
    assert_eq!(node.call("ADD").succeed()?, PREVIOUS);
    remove_run_directory(&node)?;
    retry::until("the socket to be back", || socket.exists().then_some(()))
        .with_context(|| node.agent.log())?;
    assert_eq!(node.call("CHECK").succeed()?, "");

    // Something else is in its place: the probes say so, and a directory that is empty is no obstacle.
    let lines = node.agent.line_count();
    retry::until("a directory in the socket's place", || {
        std::fs::rename(&socket, node.home.run().join("other")).ok();
        std::fs::create_dir(&socket).ok()
    })?;
    std::fs::write(socket.join("file"), "")?;
    assert!(until_ready(&node.agent, false)?.contains("agent.sock is a directory"));
    node.agent.wait_for_event(lines, |event| event["reason"] == "socket")?;
    std::fs::remove_file(socket.join("file"))?;
    until_ready(&node.agent, true)?;
    node.call("CHECK").succeed()?;
    Ok(())
}

/// Removes the agent's directory. The agent binds its socket again while files are removed, so that the directory may not
/// be empty at the end.
fn remove_run_directory(node: &NodeWithPod) -> anyhow::Result<()> {
    retry::until("the agent's directory to be removed", || std::fs::remove_dir_all(node.home.run()).ok())
}

/// The lock on a directory that is made again does not let a second agent in.
#[test]
fn one_agent_works_whatever_becomes_of_its_directory() -> anyhow::Result<()> {
    let Some(node) = NodeWithPod::new(&[])? else { return Ok(()) };
    remove_run_directory(&node)?;
    let second = another_agent(&node, &node.home)?;
    second.wait_for(0, "another agent is at work")?;
    // Another directory is none of another node.
    let home = Home::new()?;
    let third = another_agent(&node, &home)?;
    third.wait_for(0, "another agent is at work")?;
    until_ready(&third, true)?;
    drop(second);
    node.agent.kill()?;
    third.wait_for(0, "working").map(drop)
}

/// Another agent of the same node.
fn another_agent(node: &NodeWithPod, home: &Home) -> anyhow::Result<Agent> {
    let [objects, root] =
        [node.kubelet.objects(), node.kubelet.cgroup.directory()].map(|path| path.display().to_string());
    Agent::with(&node.bpffs, home, &["--pods", &objects, "--cgroup-root", &root])
}

/// One file that cannot be read blocks no other pod; the same failure is one line.
#[test]
fn a_wrong_pod_file() -> anyhow::Result<()> {
    let Some(node) = NodeWithPod::new(&[])? else { return Ok(()) };
    std::fs::write(node.kubelet.objects().join("half.json"), "{\"kind\":")?;
    assert_eq!(node.call("ADD").succeed()?, PREVIOUS);
    node.agent.signal(rustix::process::Signal::HUP)?;
    let event = node.agent.wait_for_event(0, |event| event["reason"] == "pods")?;
    assert!(event["message"].as_str().is_some_and(|text| text.contains("half.json")), "{event:#}");

    let mut wrong = node.id.object();
    wrong["metadata"]["annotations"]["traffic.sidecar.istio.io/excludeOutboundPorts"] = json!("http");
    node.kubelet.know(&node.id, &wrong)?;
    for _ in 0..5 {
        assert_eq!(node.call("ADD").fail()?.0, 100);
    }
    assert_eq!(lines(&node.agent, "\"message\":\"failed: "), 1, "{}", node.agent.log());
    Ok(())
}

/// A pod that starts without the plugin is captured when its first process is there, not at the next resync.
#[test]
fn a_pod_that_starts_without_the_plugin() -> anyhow::Result<()> {
    let Some(node) = NodeWithPod::new(&["--resync", "3600"])? else { return Ok(()) };
    let second = Id::new(2);
    let until_awaited = |count: f64| {
        retry::until("pods to be awaited", || {
            (node.agent.metric("redirector_targets{state=\"awaited\"}").ok()? == count).then_some(())
        })
    };
    until_awaited(1.0)?;
    // The directory of pods is watched.
    node.kubelet.know(&second, &second.object())?;
    until_awaited(2.0)?;
    for id in [&node.id, &second] {
        let world = World::new()?;
        let place = node.kubelet.place(id, &world, "proxy", PROXY)?;
        let begin = Instant::now();
        let _proxy = Server::start(&place, "proxy", proxy_listeners(1))?;
        until_active(&node.bpffs, &node.agent, &id.instance(), true)?;
        ensure!(begin.elapsed() < retry::long_enough(Duration::from_secs(5)), "{:?}", begin.elapsed());
    }
    Ok(())
}

struct Directories {
    _dir: tempfile::TempDir,
    bin: PathBuf,
    conf: PathBuf,
}

impl Directories {
    fn new() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("redirtest-cni").tempdir()?;
        let [bin, conf] = ["bin", "net.d"].map(|name| dir.path().join(name));
        std::fs::create_dir(&bin)?;
        std::fs::create_dir(&conf)?;
        std::fs::write(bin.join("bridge"), "")?;
        Ok(Self { _dir: dir, bin, conf })
    }

    fn agent(&self, bpffs: &Bpffs, home: &Home) -> anyhow::Result<Agent> {
        let [bin, conf] = [&self.bin, &self.conf].map(|path| path.display().to_string());
        Agent::with(bpffs, home, &["--cni-bin-dir", &bin, "--cni-conf-dir", &conf])
    }
}

/// An agent that cannot install the plugin is not ready, and says why.
#[test]
fn ready_means_that_pods_are_captured() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, home, places) = (Bpffs::new()?, Home::new()?, Directories::new()?);
    std::fs::write(places.conf.join("00-old.conflist"), "")?;
    let agent = places.agent(&bpffs, &home)?;
    let why = until_ready(&agent, false)?;
    retry::until("the reason", || agent.get("/readyz").ok()?.1.contains("00-old.conflist").then_some(()))
        .context(why)?;
    // CRI-O passes over the unusable file.
    std::fs::write(places.conf.join("10-n.conflist"), LIST)?;
    until_ready(&agent, true)?;
    assert_eq!(std::fs::read_to_string(places.conf.join("00-old.conflist"))?, "");
    assert!(std::fs::read_to_string(places.conf.join("10-n.conflist"))?.contains("redirector"));
    Ok(())
}

/// Another program wants the list as it wrote it: the two do not write as fast as they can.
#[test]
fn two_writers_of_the_list() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, home, places) = (Bpffs::new()?, Home::new()?, Directories::new()?);
    let list = places.conf.join("10-n.conflist");
    std::fs::write(&list, LIST)?;
    let agent = places.agent(&bpffs, &home)?;
    let (begin, mut rewritten) = (Instant::now(), 0);
    retry::until("the agent to have written the list eight times", || {
        if std::fs::read_to_string(&list).ok()? != LIST {
            std::fs::write(list.with_extension("tmp"), LIST).ok()?;
            std::fs::rename(list.with_extension("tmp"), &list).ok()?;
            rewritten += 1;
        }
        (rewritten == 8).then_some(())
    })
    .with_context(|| agent.log())?;
    // Three times at once, then after 50 to 100 milliseconds and each time after twice as long.
    assert!(begin.elapsed() > Duration::from_millis(50 + 100 + 200 + 400), "{:?}", begin.elapsed());
    assert_eq!(lines(&agent, "keeps taking redirector out of"), 1, "{}", agent.log());
    assert!(lines(&agent, "installed the CNI plugin") < 5 && lines(&agent, "works again") == 0);
    assert!(until_ready(&agent, false)?.contains("10-n.conflist (plugins: bridge)"));
    // It gives way, and so does the failure.
    until_ready(&agent, true).map(drop)
}

/// The binary is replaced while runtimes execute it.
#[test]
fn nobody_meets_a_binary_that_is_being_written() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, home, places) = (Bpffs::new()?, Home::new()?, Directories::new()?);
    std::fs::write(places.conf.join("10-n.conflist"), LIST)?;
    let agent = places.agent(&bpffs, &home)?;
    until_ready(&agent, true)?;
    let binary = places.bin.join("redirector");
    let ended = AtomicBool::new(false);
    let replaced = std::thread::scope(|scope| {
        let caller = scope.spawn(|| -> anyhow::Result<()> {
            while !ended.load(Ordering::Relaxed) {
                let mut call = Command::new(&binary);
                let call = call.env_clear().env("CNI_COMMAND", "VERSION").stdin(Stdio::null());
                match call.stdout(Stdio::null()).status() {
                    Err(e) if e.kind() == std::io::ErrorKind::ExecutableFileBusy => return Err(e.into()),
                    _ => {}
                }
            }
            Ok(())
        });
        let replace = || -> anyhow::Result<()> {
            std::fs::remove_file(&binary)?;
            retry::until("the binary to be back", || binary.exists().then_some(()))
        };
        let replaced = (0..20).try_for_each(|_| replace());
        ended.store(true, Ordering::Relaxed);
        caller.join().map_err(|_| anyhow::anyhow!("the caller has panicked"))?.and(replaced)
    });
    replaced.with_context(|| agent.log())
}

/// How the API server of a test answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    LeftAlone,
    Refuse,
    Hang,
    Serve,
}

/// An API server without pods, which refuses or does not answer: real ones do neither on command.
struct ApiServer {
    kubeconfig: PathBuf,
    mode: Arc<Mutex<Mode>>,
    lists: Arc<AtomicUsize>,
    dir: tempfile::TempDir,
}

impl ApiServer {
    fn new(mode: Mode) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("redirtest-api").tempdir()?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let token = dir.path().join("token");
        // As editors and `echo` leave it.
        std::fs::write(&token, "tok-1\n")?;
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{ "name": "c", "cluster": { "server": format!("http://{}", listener.local_addr()?) } }],
            "users": [{ "name": "u", "user": { "tokenFile": token } }],
            "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
        });
        let kubeconfig = dir.path().join("kubeconfig");
        std::fs::write(&kubeconfig, config.to_string())?;
        let (mode, lists) = (Arc::new(Mutex::new(mode)), Arc::new(AtomicUsize::new(0)));
        let (its_mode, its_lists) = (Arc::clone(&mode), Arc::clone(&lists));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (mode, lists) = (Arc::clone(&its_mode), Arc::clone(&its_lists));
                std::thread::spawn(move || answer(stream, &mode, &lists));
            }
        });
        Ok(Self { kubeconfig, mode, lists, dir })
    }

    fn agent(&self, bpffs: &Bpffs, home: &Home) -> anyhow::Result<Agent> {
        let kubeconfig = self.kubeconfig.display().to_string();
        Agent::with(bpffs, home, &["--node-name", "n1", "--kubeconfig", &kubeconfig])
    }

    fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap_or_else(PoisonError::into_inner) = mode;
    }
}

fn answer(stream: TcpStream, mode: &Mutex<Mode>, lists: &AtomicUsize) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let (mut head, mut line) = (String::new(), String::new());
        while reader.read_line(&mut line)? > 2 {
            head.push_str(&line);
            line.clear();
        }
        if head.is_empty() {
            return Ok(());
        }
        let is_watch = head.contains("watch=");
        if !is_watch {
            lists.fetch_add(1, Ordering::Relaxed);
        }
        let mode = *mode.lock().unwrap_or_else(PoisonError::into_inner);
        let authorized = head.to_lowercase().contains("authorization: bearer tok-1\r");
        let items: Vec<Value> = match mode {
            Mode::LeftAlone => (1..4).map(left_alone).collect(),
            _ => Vec::new(),
        };
        let (status, body) = match mode {
            Mode::Serve | Mode::LeftAlone if authorized && !is_watch => (
                200,
                json!({ "apiVersion": "v1", "kind": "PodList", "metadata": { "resourceVersion": "1" }, "items": items }),
            ),
            Mode::Serve | Mode::LeftAlone | Mode::Hang if authorized || mode == Mode::Hang => {
                // Until the client gives up.
                return reader.read_line(&mut line).map(drop);
            }
            _ => (
                401,
                json!({ "apiVersion": "v1", "kind": "Status", "status": "Failure", "message": "Unauthorized", "reason": "Unauthorized", "code": 401 }),
            ),
        };
        let body = body.to_string();
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        (&stream).write_all((head + &body).as_bytes())?;
    }
}

/// A pod with a proxy that was not injected: an Event says so.
fn left_alone(number: u32) -> Value {
    let name = format!("left-{number}");
    let metadata = json!({ "namespace": "shop", "name": name, "uid": format!("0-{number}") });
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": { "containers": [{ "name": "istio-proxy" }] },
    })
}

/// Events that cannot be written, each of which is tried several times, are one line.
#[test]
fn events_that_cannot_be_written() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, home, server) = (Bpffs::new()?, Home::new()?, ApiServer::new(Mode::LeftAlone)?);
    let agent = server.agent(&bpffs, &home)?;
    // The list, and each Event twice.
    let asked = || (server.lists.load(Ordering::Relaxed) >= 7).then_some(());
    retry::until("events to be tried again", asked).with_context(|| agent.log())?;
    agent.wait_for(0, "events cannot be written")?;
    assert_eq!(lines(&agent, "cannot be written"), 1, "{}", agent.log());
    Ok(())
}

/// Attempts are further and further apart, and one line tells of them.
#[test]
fn an_api_server_that_refuses() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, home, server) = (Bpffs::new()?, Home::new()?, ApiServer::new(Mode::Refuse)?);
    let agent = server.agent(&bpffs, &home)?;
    agent.wait_for_event(0, |event| event["reason"] == "api")?;
    let begin = Instant::now();
    let lists = || (server.lists.load(Ordering::Relaxed) >= 6).then_some(());
    retry::until("six attempts", lists).with_context(|| agent.log())?;
    assert!(begin.elapsed() > Duration::from_millis(250 + 500 + 1000), "{:?}", begin.elapsed());
    assert_eq!(lines(&agent, "\"reason\":\"api\""), 1, "{}", agent.log());
    assert_eq!(lines(&agent, "works again"), 0, "{}", agent.log());
    assert!(agent.get("/readyz")?.1.contains("API server"));
    // The token file ends with a newline.
    server.set(Mode::Serve);
    until_ready(&agent, true)?;
    agent.wait_for(0, "works again")?;
    assert_eq!(lines(&agent, "works again"), 1, "{}", agent.log());
    assert!(server.dir.path().exists());
    Ok(())
}

/// A load balancer that has lost the server accepts and says nothing.
#[test]
fn an_api_server_that_does_not_answer() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, home, server) = (Bpffs::new()?, Home::new()?, ApiServer::new(Mode::Hang)?);
    let agent = server.agent(&bpffs, &home)?;
    retry::until("the first list", || (server.lists.load(Ordering::Relaxed) == 1).then_some(()))?;
    server.set(Mode::Serve);
    let event = agent.wait_for_event(0, |event| event["reason"] == "api")?;
    assert!(
        event["message"].as_str().is_some_and(|text| text.contains("has not listed the pods")),
        "{event:#}"
    );
    until_ready(&agent, true).map(drop)
}
