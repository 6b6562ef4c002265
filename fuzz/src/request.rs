//! What a client sends to the agent's socket.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use redirector_user::agent::cni_socket::receive;
use redirector_user::cni::protocol::{MAX_MESSAGE_BYTES, Reply, Request};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// More than the agent has room for.
const MAX_PASSED: usize = 6;

/// A request is what its text says, however it is cut. Of the descriptors passed with it one is taken, the others are
/// closed. The first two bytes say where it is cut and how many are passed. What follows the line is not read, unless it came
/// with it.
pub fn run(bytes: &[u8]) {
    let [cut, passed, text @ ..] = bytes else { return };
    // A longer one is cut off, and the sender would wait for ever.
    let text = &text[..text.len().min(MAX_MESSAGE_BYTES)];
    let (first, second) = text.split_at(text.len() * usize::from(*cut) / 256);
    let passed = if first.is_empty() { 0 } else { usize::from(*passed) % MAX_PASSED };
    let (mut ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let (witness, given) = UnixStream::pair().expect("a pair of sockets");
    send(&theirs, first, &vec![given.as_fd(); passed]);
    (&theirs).write_all(second).expect("there is room");
    drop((theirs, given));
    let line = if passed > 0 && first.ends_with(b"\n") { first } else { text };
    match (receive(&mut ours), serde_json::from_slice::<Request>(line)) {
        (Ok((request, netns)), Ok(same)) => {
            assert_eq!(request, same);
            assert_eq!(netns.is_some(), passed > 0);
            let again = serde_json::to_vec(&request).expect("it is written");
            assert_eq!(serde_json::from_slice::<Request>(&again).expect("it is read"), request);
        }
        (Err(_), Err(_)) => {}
        (received, parsed) => panic!("{received:?} is not {parsed:?}"),
    }
    assert!(is_closed(witness), "a descriptor stays open");
    answer(text);
}

fn send(to: &UnixStream, bytes: &[u8], descriptors: &[std::os::fd::BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PASSED))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    let sent = sendmsg(to, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).expect("there is room");
    assert_eq!(sent, bytes.len());
}

/// Whether nobody has the other end.
fn is_closed(mut socket: UnixStream) -> bool {
    socket.set_nonblocking(true).expect("a socket");
    matches!(socket.read(&mut [0]), Ok(0))
}

/// The plugin's side of it.
fn answer(text: &[u8]) {
    if let Ok(reply) = serde_json::from_slice::<Reply>(text) {
        let written = reply.written();
        assert!(written.len() < MAX_MESSAGE_BYTES);
        serde_json::from_slice::<Reply>(&written).expect("it is read");
    }
}
