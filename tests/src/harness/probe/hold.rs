//! One connection that is kept: asked for its names, and whether it still works, whenever the test wants.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::{print_line, sys};
use crate::harness::probe::observation::AddressOrErrno;
use crate::harness::process::{Daemon, Place};
use crate::harness::retry::long_enough;

/// The names of a client's socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// `getsockname()`.
    pub local: AddressOrErrno,
    /// `getpeername()`.
    pub peer: AddressOrErrno,
    /// `SO_ORIGINAL_DST` at `SOL_IP`.
    pub original_dst: AddressOrErrno,
}

/// An order, one JSON object a line on stdin.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Order {
    Names,
    Echo,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum HeldAnswer {
    Connected,
    Names(Names),
    Echoed(bool),
}

/// A kept connection; ends on drop.
pub struct Held(Daemon);

impl Held {
    pub fn start(place: &Place, to: SocketAddr) -> anyhow::Result<Self> {
        let daemon = Daemon::start("hold", &mut place.probe(&["hold", &to.to_string()]))?;
        daemon.wait_for(0, |line| {
            matches!(serde_json::from_str(line), Ok(HeldAnswer::Connected)).then_some(())
        })?;
        Ok(Self(daemon))
    }

    pub fn names(&mut self) -> anyhow::Result<Names> {
        self.ask(
            Order::Names,
            |answer| if let HeldAnswer::Names(names) = answer { Some(names) } else { None },
        )
    }

    /// Whether what it sends comes back.
    pub fn echo(&mut self) -> anyhow::Result<bool> {
        self.ask(
            Order::Echo,
            |answer| if let HeldAnswer::Echoed(echoed) = answer { Some(echoed) } else { None },
        )
    }

    fn ask<T>(&mut self, order: Order, wanted: impl Fn(HeldAnswer) -> Option<T>) -> anyhow::Result<T> {
        let skip = self.0.line_count();
        self.0.tell(&serde_json::to_string(&order)?)?;
        self.0.wait_for(skip, |line| serde_json::from_str(line).ok().and_then(&wanted))
    }
}

/// Connects to one of our servers and obeys until stdin ends.
pub fn hold(to: SocketAddr) -> anyhow::Result<()> {
    let stream = TcpStream::connect(to).with_context(|| to.to_string())?;
    stream.set_read_timeout(Some(long_enough(Duration::from_secs(4))))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    // The server's report comes first.
    reader.read_line(&mut String::new())?;
    print_line(&HeldAnswer::Connected)?;
    for line in io::stdin().lock().lines() {
        let answer = match serde_json::from_str(&line?).context("an order")? {
            Order::Names => HeldAnswer::Names(Names {
                local: stream.local_addr().into(),
                peer: stream.peer_addr().into(),
                original_dst: sys::original_dst(&stream, libc::SOL_IP),
            }),
            Order::Echo => HeldAnswer::Echoed(echo(&stream, &mut reader).unwrap_or(false)),
        };
        print_line(&answer)?;
    }
    Ok(())
}

fn echo(mut stream: &TcpStream, reader: &mut impl BufRead) -> io::Result<bool> {
    const TEXT: &str = "are you there\n";
    stream.write_all(TEXT.as_bytes())?;
    let mut line = String::new();
    reader.read_line(&mut line)?;
    Ok(line == TEXT)
}
