//! A process of our own inside the target: in its network namespace, in a cgroup below the instance's, as the user
//! whose traffic is tried. It is this program again, started with the hidden verb [`VERB`].
//!
//! Sockets belong to the cgroup of the process that creates them, so nothing less than a process will do. Its
//! cgroup is its own: processes may not be put beside child cgroups (the "no internal process" rule), and a pod's
//! cgroup has them.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Gid, Pid, Signal, Uid, getegid, geteuid, getppid, set_parent_process_death_signal};
use rustix::thread::{gettid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::sockets::{self, Accepted, Connected, Listener};
use super::udp::{self, Sent};
use crate::base::error::{Context, Error, Result};
use crate::pod::Target;

/// The verb of the command line that makes this program a helper.
pub const VERB: &str = "verify-helper";
/// Cgroups of helpers begin so.
const PREFIX: &str = "redirector-verify-";

/// Longer than any order takes.
const SILENCE: Duration = Duration::from_secs(70);
/// The patience of an order is at most this.
pub const LONGEST: Duration = Duration::from_secs(60);

/// What a helper is told, one JSON object a line.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// Listen on these; answered by a list of errors.
    Listen(Vec<SocketAddr>),
    /// Connect, and keep the connection until the next one.
    Connect { bind: Option<IpAddr>, to: SocketAddr, milliseconds: u64 },
    /// Tell the connection of this client.
    Accept { client: SocketAddr, milliseconds: u64 },
    /// Serve DNS over UDP at these; answered by a list of errors.
    Serve(Vec<SocketAddr>),
    /// Send a question there, and keep the socket until the next connection or question.
    Question { to: SocketAddr },
    /// Answer the question of the client with this port; tells whether it has come.
    Answer { client: u16, milliseconds: u64 },
    /// Tell who has answered the question.
    AnsweredBy { milliseconds: u64 },
}

/// The cgroup of the helpers, removed on drop.
pub struct Room {
    dir: PathBuf,
}

impl Room {
    /// Makes it below a cgroup.
    pub fn new(parent: &Path) -> Result<Self> {
        sweep(parent);
        let dir = parent.join(format!("{PREFIX}{}", std::process::id()));
        std::fs::create_dir(&dir).context(|| format!("create the cgroup {}", dir.display()))?;
        Ok(Self { dir })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // The helpers have ended and been waited for. If it fails, the next run does it.
        let _ = std::fs::remove_dir(&self.dir);
    }
}

/// Removes cgroups of runs that were killed; one that has a process in it stays.
fn sweep(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}

/// A running helper.
pub struct Helper {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    cgroup: PathBuf,
}

impl Helper {
    /// Starts one as a user.
    pub fn start(target: &Target, room: &Room, uid: u32, gid: u32) -> Result<Self> {
        let what = || "start a helper (this program) in the target".to_owned();
        let mut command = Command::new("/proc/self/exe");
        command.args([VERB, &uid.to_string(), &gid.to_string(), &std::process::id().to_string()]);
        command.env_clear().stdin(Stdio::piped()).stdout(Stdio::piped());
        // A child is in the namespace of the thread that made it.
        let (maker, child) = target.netns.run_to_the_end(|| Ok((gettid(), command.spawn())))?;
        let mut child = child.context(what)?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (orders, answers) = pipes.ok_or_else(|| Error::failed("a helper without pipes"))?;
        let answers = BufReader::new(answers);
        let this = Self { orders: Some(orders), answers, child, cgroup: room.dir.clone() };
        wait_for_end(maker)?;
        let procs = room.dir.join("cgroup.procs");
        std::fs::write(&procs, this.child.id().to_string())
            .context(|| format!("move our helper into {}", procs.display()))?;
        Ok(this)
    }

    /// It has closed its answers.
    fn ended(&mut self) -> Error {
        let how = self.child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
        Error::failed(format!("the helper in the target has ended ({how}); see what it said above"))
    }

    fn ask<T: DeserializeOwned>(&mut self, order: &Order) -> Result<T> {
        let what = || "talk to the helper in the target".to_owned();
        let failed = |e: serde_json::Error| Error::failed(format!("talk to the helper in the target: {e}"));
        let mut line = serde_json::to_string(order).map_err(failed)?;
        line.push('\n');
        if let Some(orders) = &mut self.orders {
            orders.write_all(line.as_bytes()).context(what)?;
        }
        line.clear();
        // A frozen cgroup holds it for ever.
        if !sockets::readable(self.answers.get_ref(), SILENCE).context(what)? {
            return Err(Error::failed(format!(
                "the helper in the target does not answer; is its cgroup frozen? See {}/cgroup.events",
                self.cgroup.display()
            )));
        }
        if self.answers.read_line(&mut line).context(what)? == 0 {
            return Err(self.ended());
        }
        let answer: std::result::Result<T, String> = serde_json::from_str(&line).map_err(failed)?;
        answer.map_err(|e| Error::failed(format!("the helper in the target: {e}")))
    }

    /// Listens on these addresses.
    pub fn listen(&mut self, addresses: Vec<SocketAddr>) -> Result<()> {
        self.ask(&Order::Listen(addresses))
    }

    /// Connects; the connection is there until the next one.
    pub fn connect(&mut self, bind: Option<IpAddr>, to: SocketAddr, patience: Duration) -> Result<Connected> {
        self.ask(&Order::Connect { bind, to, milliseconds: milliseconds(patience) })
    }

    /// What our listeners saw of the connection of this client.
    pub fn accepted(&mut self, client: SocketAddr, patience: Duration) -> Result<Option<Accepted>> {
        self.ask(&Order::Accept { client, milliseconds: milliseconds(patience) })
    }

    /// Serves DNS over UDP at these addresses.
    pub fn serve_udp(&mut self, addresses: Vec<SocketAddr>) -> Result<()> {
        self.ask(&Order::Serve(addresses))
    }

    /// Sends a question over UDP.
    pub fn question(&mut self, to: SocketAddr) -> Result<Sent> {
        self.ask(&Order::Question { to })
    }

    /// Answers the question of the client with this port; whether it has come.
    pub fn answer(&mut self, client: u16, patience: Duration) -> Result<bool> {
        self.ask(&Order::Answer { client, milliseconds: milliseconds(patience) })
    }

    /// Who has answered the question.
    pub fn answered_by(&mut self, patience: Duration) -> Result<Option<SocketAddr>> {
        self.ask(&Order::AnsweredBy { milliseconds: milliseconds(patience) })
    }
}

/// Waits until a thread of ours is gone for the kernel, too. One that is joined has yet to give its children to
/// another thread (`exit_mm` in do_exit wakes who joins it, `exit_notify` comes later), and they get their
/// signal then, if they have asked for one.
fn wait_for_end(thread: Pid) -> Result<()> {
    let task = format!("/proc/self/task/{}", thread.as_raw_nonzero());
    let end = Instant::now() + SILENCE;
    while Path::new(&task).exists() {
        if Instant::now() > end {
            return Err(Error::failed(format!(
                "the thread that has started the helper does not end: {task}"
            )));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Drop for Helper {
    fn drop(&mut self) {
        // The end of its orders ends it. It never takes long, but a frozen cgroup would hold it.
        self.orders = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The helper's side: obeys until the orders end, or the process that gives them (its parent, `verify`).
///
/// # Errors
///
/// When it cannot become the user, or nobody listens to it any more.
pub fn serve(uid: u32, gid: u32, verify: u32) -> Result<()> {
    become_user(uid, gid).context(|| format!("become user {uid}, group {gid}"))?;
    let mut open = Open::default();
    for line in std::io::stdin().lock().lines() {
        let line = line.context(|| "read an order".into())?;
        // Not before: the thread that has started us ends at once, and would take us with it. Whoever gives orders has
        // waited for that.
        set_parent_process_death_signal(Some(Signal::KILL)).context(|| "ask to end with verify".into())?;
        // Who died before that sends no signal.
        if getppid().is_none_or(|parent| parent.as_raw_nonzero().get().cast_unsigned() != verify) {
            break;
        }
        let order = serde_json::from_str(&line).map_err(|e| Error::input(format!("an order: {e}")))?;
        let answer = obey(order, &mut open);
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}").and_then(|()| out.flush()).context(|| "answer".into())?;
    }
    Ok(())
}

/// This process has one thread: the thread's ids are its own. The owner of a socket is who creates it.
fn become_user(uid: u32, gid: u32) -> std::io::Result<()> {
    if (uid, gid) == (geteuid().as_raw(), getegid().as_raw()) {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    Ok(set_thread_res_uid(uid, uid, uid)?)
}

/// What a helper has open.
#[derive(Default)]
struct Open {
    listeners: Vec<Listener>,
    /// Servers of DNS over UDP.
    servers: Vec<OwnedFd>,
    /// The last connection or question.
    client: Option<OwnedFd>,
}

fn obey(order: Order, open: &mut Open) -> serde_json::Value {
    let duration = Duration::from_millis;
    match order {
        Order::Listen(addresses) => {
            answer(each(addresses, sockets::listen, "listen on").map(|new| open.listeners.extend(new)))
        }
        Order::Serve(addresses) => {
            answer(each(addresses, udp::serve, "serve at").map(|new| open.servers.extend(new)))
        }
        Order::Connect { bind, to, milliseconds } => {
            open.client = None;
            answer(keep(&mut open.client, to, sockets::connect(bind, to, duration(milliseconds))))
        }
        Order::Question { to } => answer(keep(&mut open.client, to, udp::send(to))),
        Order::Accept { client, milliseconds } => {
            let end = Instant::now() + duration(milliseconds);
            let of_it = |accepted: Accepted| (accepted.peer == Some(client)).then_some(accepted);
            answer(sockets::accept_until(&open.listeners, end, of_it).map_err(|e| format!("accept: {e}")))
        }
        Order::Answer { client, milliseconds } => {
            let came = udp::answer(&open.servers, client, duration(milliseconds));
            answer(came.map_err(|e| format!("answer over UDP: {e}")))
        }
        Order::AnsweredBy { milliseconds } => {
            let from = open.client.as_ref().map(|fd| udp::answered_by(fd, duration(milliseconds)));
            answer(from.transpose().map(Option::flatten).map_err(|e| format!("receive over UDP: {e}")))
        }
    }
}

fn each<T>(
    addresses: Vec<SocketAddr>,
    make: fn(SocketAddr) -> std::io::Result<T>,
    what: &str,
) -> std::result::Result<Vec<T>, String> {
    addresses.into_iter().map(|at| make(at).map_err(|e| format!("{what} {at}: {e}"))).collect()
}

/// Keeps a client's socket, and tells what it has seen.
fn keep<T>(
    client: &mut Option<OwnedFd>,
    to: SocketAddr,
    made: std::io::Result<(OwnedFd, T)>,
) -> std::result::Result<T, String> {
    let (fd, seen) = made.map_err(|e| format!("make a socket for {to}: {e}"))?;
    *client = Some(fd);
    Ok(seen)
}

fn answer<T: Serialize>(result: std::result::Result<T, String>) -> serde_json::Value {
    serde_json::to_value(result).unwrap_or(serde_json::Value::Null)
}
