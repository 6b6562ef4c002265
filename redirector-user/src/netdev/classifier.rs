//! The tc classifier at the virtual interfaces (`-k`): it marks what the rules must not take.
//!
//! A filter of a clsact qdisc, as every kernel has them, also beside tcx (6.6). It is told from others by its
//! name, and by its handle whether the qdisc was there before: whoever cleans up needs to know nothing else.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};

use super::virtual_interfaces::{PROTOCOL, REVERSE};
use crate::base::error::{Context, Result};
use crate::netlink::{self, Message, Netlink, Payload, family};
use crate::routes::{Interface, list_interfaces};
use crate::sys::netns::NetNs;

/// Number among the filters of an interface; those of `tc` without one come later.
const PREFERENCE: u32 = 151;
/// Handles: the qdisc was there, or came with the filter.
const QDISC_THEIRS: u32 = 0x1337_0001;
const QDISC_OURS: u32 = 0x1337_0002;
const NAME: &[u8] = b"redirector\0";

/// sizeof(struct tcmsg).
const TCMSG: usize = 20;
/// TC_H_CLSACT, which is TC_H_INGRESS; its two chains of filters.
const CLSACT: u32 = 0xffff_fff1;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
const WHAT: &str = "the classifiers of the virtual interfaces";

/// Attaches the program to those of the interfaces that are there, or replaces the one that is attached.
pub(super) fn add(netns: &NetNs, interfaces: &[String], program: &OwnedFd) -> Result<()> {
    netlink::within(netns, |netlink| {
        for Interface { index, name, .. } in
            list_interfaces(netlink, &[])?.iter().filter(|it| interfaces.contains(&it.name))
        {
            let before = ours(netlink, *index)?;
            let mut messages = Vec::new();
            let handle = match before {
                Some(handle) => handle,
                None if has_qdisc(netlink, *index)? => QDISC_THEIRS,
                None => {
                    messages.push(qdisc(libc::RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, *index));
                    QDISC_OURS
                }
            };
            messages.push(filter(*index, handle, program));
            // In one piece: nobody is killed between the two.
            let new_qdisc = messages.len() == 2;
            if let Err(e) = change(netlink, messages) {
                if new_qdisc {
                    let _ = change(netlink, vec![qdisc(libc::RTM_DELQDISC, 0, *index)]);
                }
                if matches!(e.raw_os_error(), Some(libc::ENODEV)) {
                    continue; // It has gone meanwhile.
                }
                return Err(e).context(|| format!("attach a tc classifier to {name}"));
            }
            match change(netlink, vec![route(libc::RTM_NEWROUTE, NLM_F_CREATE, *index)]) {
                // There is none from an interface that is down or gone; the refresh that follows will make it.
                Err(e) if !matches!(e.raw_os_error(), Some(libc::EEXIST | libc::ENETDOWN | libc::ENODEV)) => {
                    return Err(e).context(|| format!("add the route dev {name} table {REVERSE}"));
                }
                _ => {}
            }
        }
        Ok(())
    })
}

/// Those of the interfaces that are there without it.
pub(super) fn missing(netns: &NetNs, interfaces: &[String]) -> Result<Vec<String>> {
    netlink::within(netns, |netlink| {
        let mut missing = Vec::new();
        for Interface { index, name, .. } in
            list_interfaces(netlink, &[])?.into_iter().filter(|it| interfaces.contains(&it.name))
        {
            if ours(netlink, index)?.is_none() {
                missing.push(name);
            }
        }
        Ok(missing)
    })
}

/// Takes the classifier from all other interfaces.
pub(super) fn keep(netns: &NetNs, interfaces: &[String]) -> Result<()> {
    netlink::within(netns, |netlink| {
        for Interface { index, name, .. } in
            list_interfaces(netlink, &[])?.iter().filter(|it| !interfaces.contains(&it.name))
        {
            let Some(handle) = ours(netlink, *index)? else { continue };
            // As it is made last, it goes first.
            let _ = change(netlink, vec![route(libc::RTM_DELROUTE, 0, *index)]);
            let kind = Message::new(libc::RTM_DELTFILTER, 0, &header(*index, handle, INGRESS));
            let mut messages = vec![kind.attribute(TCA_KIND, b"bpf\0")];
            if handle == QDISC_OURS && is_alone(netlink, *index)? {
                messages.push(qdisc(libc::RTM_DELQDISC, 0, *index));
            }
            match change(netlink, messages) {
                Err(e) if !matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => {
                    return Err(e).context(|| format!("detach the tc classifier from {name}"));
                }
                _ => {}
            }
        }
        Ok(())
    })
}

/// Handle of our filter.
fn ours(netlink: &mut Netlink, index: u32) -> Result<Option<u32>> {
    Ok(filters(netlink, index, INGRESS)?.into_iter().find_map(|(handle, ours)| ours.then_some(handle)))
}

/// Whether the qdisc has no other filter.
fn is_alone(netlink: &mut Netlink, index: u32) -> Result<bool> {
    Ok(filters(netlink, index, INGRESS)?.len() == 1 && filters(netlink, index, EGRESS)?.is_empty())
}

/// Handles, and whether they are ours.
fn filters(netlink: &mut Netlink, index: u32, parent: u32) -> Result<Vec<(u32, bool)>> {
    let request = Message::new(libc::RTM_GETTFILTER, 0, &header(index, 0, parent));
    let list = netlink.list(WHAT, &request, |payload| {
        let filter = Payload::split(payload, TCMSG)?;
        let name = filter.get(TCA_OPTIONS).and_then(|options| Payload::split(options, 0)?.get(TCA_BPF_NAME));
        let handle = filter.number(8);
        let ours = name == Some(NAME) && matches!(handle, QDISC_THEIRS | QDISC_OURS);
        // Each preference has a head of its own, without handle and options.
        filter.get(TCA_OPTIONS).is_some().then_some((handle, ours))
    });
    Ok(list?)
}

fn has_qdisc(netlink: &mut Netlink, index: u32) -> Result<bool> {
    let request = Message::new(libc::RTM_GETQDISC, 0, &[0; TCMSG]);
    let list = netlink.list(WHAT, &request, |payload| {
        let qdisc = Payload::split(payload, TCMSG)?;
        (qdisc.number(4) == index && qdisc.number(12) == CLSACT).then_some(())
    });
    Ok(!list?.is_empty())
}

fn qdisc(kind: u16, flags: u16, index: u32) -> Message {
    Message::new(kind, flags, &tcmsg(index, CLSACT & 0xffff_0000, CLSACT, 0)).attribute(TCA_KIND, b"clsact\0")
}

fn filter(index: u32, handle: u32, program: &OwnedFd) -> Message {
    let options = Message::new(0, 0, &[])
        .attribute(TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes())
        .attribute(TCA_BPF_NAME, NAME)
        .attribute(TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes());
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    Message::new(libc::RTM_NEWTFILTER, flags, &header(index, handle, INGRESS))
        .attribute(TCA_KIND, b"bpf\0")
        .attribute(TCA_OPTIONS, options.body())
}

/// The way back to the guest, for the validation of sources: `default dev IF table 15002`.
fn route(kind: u16, flags: u16, index: u32) -> Message {
    // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags.
    let header = [family(false), 0, 0, 0, 0, PROTOCOL, libc::RT_SCOPE_LINK, libc::RTN_UNICAST, 0, 0, 0, 0];
    Message::new(kind, flags, &header)
        .attribute(libc::RTA_OIF, &index.to_ne_bytes())
        .attribute(libc::RTA_TABLE, &REVERSE.to_ne_bytes())
}

/// For a filter: of all protocols.
fn header(index: u32, handle: u32, parent: u32) -> [u8; TCMSG] {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    tcmsg(index, handle, parent, if handle == 0 { 0 } else { PREFERENCE << 16 | u32::from(protocol) })
}

/// Family and padding, index, handle, parent, info.
fn tcmsg(index: u32, handle: u32, parent: u32, info: u32) -> [u8; TCMSG] {
    let mut bytes = [0; TCMSG];
    for (place, number) in bytes.chunks_exact_mut(4).skip(1).zip([index, handle, parent, info]) {
        place.copy_from_slice(&number.to_ne_bytes());
    }
    bytes
}

/// All of the messages, in one piece; the first that fails.
fn change(netlink: &mut Netlink, messages: Vec<Message>) -> io::Result<()> {
    let answers = netlink.change(WHAT, messages).map_err(|e| io::Error::other(crate::Error::from(e)))?;
    let refused = answers.into_iter().find(|errno| *errno != 0);
    refused.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
}
