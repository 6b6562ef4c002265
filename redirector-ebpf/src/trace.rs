//! Decisions, reported as they are carried out; for `redirector trace`. Without `attach --trace` the
//! level is a constant below debug, and the verifier removes all of this.
//!
//! The connect hooks have no stack left for it, so an outgoing connection is told when its SYN is
//! about to leave. What connect() refused is only counted.

use aya_log_ebpf::debug;
use aya_log_ebpf::macro_support::{Level, level_enabled};
use redirector_common::Addr;
use redirector_common::abi::{FlowKey, SockKind, SockState};
use redirector_common::decision::Decision;

use crate::ctx::{Lookup, Ops};
use crate::destinations;
use crate::instance::Instance;

/// `connect CLIENT PORT DESTINATION PORT VERDICT RULE`
#[inline(always)]
pub fn connecting(ops: &Ops, key: &FlowKey, state: &SockState) {
    let redirected = state.kind == SockKind::REDIRECTED;
    let (dst, port) = if redirected { (state.orig, state.orig_port) } else { (key.proxy, key.proxy_port) };
    let (client, dst) = (octets(key.client), octets(dst));
    debug!(
        ops,
        "connect {:i} {} {:i} {} {} {}", client, key.client_port, dst, port, state.verdict, state.rule
    );
}

/// The same of a connection to a virtual destination.
/// Whether decisions are told: a constant.
#[inline(always)]
pub fn is_wanted() -> bool {
    level_enabled(Level::Debug)
}

pub fn connecting_virtual(ops: &Ops, instance: Instance) {
    if !is_wanted() {
        return;
    }
    let Some(original) = destinations::original(instance, &ops.remote(), ops.remote_port()) else { return };
    let (client, dst) = (octets(ops.local()), octets(original.addr));
    debug!(
        ops,
        "connect {:i} {} {:i} {} {} {}",
        client,
        ops.local_port(),
        dst,
        original.port,
        original.verdict,
        original.rule
    );
}

/// `accept CLIENT PORT DESTINATION PORT VERDICT RULE`
#[inline(always)]
pub fn arriving(ctx: &Lookup, d: Decision, port: u16) {
    let (client, dst) = (octets(ctx.remote()), octets(ctx.local()));
    debug!(
        ctx,
        "accept {:i} {} {:i} {} {} {}",
        client,
        ctx.remote_port(),
        dst,
        port,
        d.verdict as u16,
        d.rule as u32
    );
}

#[inline(always)]
fn octets(addr: Addr) -> [u8; 16] {
    bytemuck::cast(addr.words)
}
