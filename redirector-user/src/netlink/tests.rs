//! The netlink socket against a kernel that follows a script.

use std::os::fd::OwnedFd;
use std::thread;

use netlink_packet_core::{NLM_F_DUMP_INTR, NLM_F_MULTIPART};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

use super::socket::WINDOW;
use super::{Message, Netlink, NetlinkError, number};

const ERROR: u16 = libc::NLMSG_ERROR as u16;
const DONE: u16 = libc::NLMSG_DONE as u16;
const DATA: u16 = libc::RTM_NEWROUTE;

/// A message of the scripted kernel: type, flags, sequence number, payload.
fn message(kind: u16, flags: u16, sequence: u32, payload: i32) -> Vec<u8> {
    [
        &20u32.to_ne_bytes()[..],
        &kind.to_ne_bytes(),
        &flags.to_ne_bytes(),
        &sequence.to_ne_bytes(),
        &[0; 4],
        &payload.to_ne_bytes(),
    ]
    .concat()
}

/// Runs `client` against a kernel that answers the sequence numbers of each request with the datagrams of
/// `answer`.
fn against<T>(
    mut answer: impl FnMut(&[u32]) -> Vec<Vec<u8>> + Send + 'static,
    client: impl FnOnce(&mut Netlink) -> T,
) -> T {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let kernel = thread::spawn(move || serve(&theirs, &mut answer));
    let mut netlink = Netlink::over(ours);
    let result = client(&mut netlink);
    drop(netlink);
    kernel.join().unwrap();
    result
}

fn serve(socket: &OwnedFd, answer: &mut impl FnMut(&[u32]) -> Vec<Vec<u8>>) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let (length, _) = recv(socket, &mut buffer[..], RecvFlags::empty()).unwrap();
        if length == 0 {
            return;
        }
        let (mut rest, mut sequences) = (&buffer[..length], Vec::new());
        while let Some(length) = number(rest) {
            sequences.push(number(&rest[8..]).unwrap());
            rest = &rest[length as usize..];
        }
        for datagram in answer(&sequences) {
            match send(socket, &datagram, SendFlags::NOSIGNAL) {
                Ok(_) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return,
                Err(errno) => panic!("{errno}"),
            }
        }
    }
}

fn list(netlink: &mut Netlink) -> Result<Vec<u32>, NetlinkError> {
    netlink.list("numbers", &Message::new(1, 0, &[]), number)
}

fn ask(netlink: &mut Netlink, count: usize) -> Result<Vec<Result<u32, i32>>, NetlinkError> {
    let questions: Vec<_> = (0..count).map(|_| Message::new(1, 0, &[0; 12])).collect();
    netlink.ask("numbers", questions.into_iter(), number)
}

#[test]
fn an_interrupted_list_is_read_again() {
    let mut attempt = 0;
    let answer = move |sequences: &[u32]| {
        attempt += 1;
        let interrupted = |on: i32| if attempt == on { NLM_F_DUMP_INTR } else { 0 };
        let sequence = sequences[0];
        vec![
            // What is left of another request does not count.
            message(DATA, NLM_F_MULTIPART, sequence.wrapping_sub(1), 99),
            [
                message(DATA, NLM_F_MULTIPART | interrupted(1), sequence, attempt),
                message(DATA, NLM_F_MULTIPART, sequence, 7),
            ]
            .concat(),
            message(DONE, NLM_F_MULTIPART | interrupted(2), sequence, 0),
        ]
    };
    assert_eq!(
        against(answer, list).unwrap(),
        [3, 7],
        "neither what the first nor what the second attempt saw"
    );
}

#[test]
fn a_list_that_never_rests_is_given_up() {
    let answer = |sequences: &[u32]| vec![message(DONE, NLM_F_DUMP_INTR, sequences[0], 0)];
    let error = against(answer, list).unwrap_err();
    assert!(matches!(error, NetlinkError::Restless { .. }), "{error:?}");
}

#[test]
fn a_list_that_fails_says_why() {
    for (kind, errno) in [(ERROR, libc::EOPNOTSUPP), (DONE, libc::ENOMEM)] {
        let answer = move |sequences: &[u32]| vec![message(kind, 0, sequences[0], -errno)];
        assert_eq!(against(answer, list).unwrap_err().errno(), Some(errno));
    }
}

#[test]
fn answers_are_put_in_the_order_of_the_questions() {
    let answer = |sequences: &[u32]| {
        assert!(sequences.len() <= WINDOW);
        let one = |sequence: &u32| match sequence % 3 {
            0 => message(ERROR, 0, *sequence, -libc::EACCES),
            _ => message(DATA, 0, *sequence, sequence.cast_signed()),
        };
        sequences.iter().rev().map(one).collect()
    };
    let expected: Vec<_> = (1..=100).map(|i| if i % 3 == 0 { Err(libc::EACCES) } else { Ok(i) }).collect();
    assert_eq!(against(answer, |netlink| ask(netlink, 100)).unwrap(), expected);
}

#[test]
fn a_malformed_answer_is_refused() {
    for datagram in [vec![1, 2, 3], vec![255; 32], vec![0; 16], message(ERROR, 0, 1, 0)[..16].to_vec()] {
        let answer = move |_: &[u32]| vec![datagram.clone()];
        let error = against(answer, |netlink| ask(netlink, 1)).unwrap_err();
        assert!(matches!(error, NetlinkError::Malformed { .. }), "{error:?}");
    }
}
