//! Which instance a socket belongs to: that of its network namespace.

use redirector_common::abi::{ActiveWord, Meta, ProgramConstants, Slot};

use crate::active_policy::ActivePolicy;
use crate::ctx::{OfSocket, Sock};
use crate::maps::{META, NAMESPACES, POLICIES, TABLES, constant, looked_up};
use crate::socket_owner::{address_of, read};

/// An instance.
#[derive(Clone, Copy)]
pub struct Instance {
    /// Where its maps are.
    pub index: u32,
    /// [`Meta::generation`]; 0 in sk_lookup and in the classifier, which look at no socket's state.
    pub generation: u32,
}

impl Instance {
    /// Of the socket that a hook of the cgroup is about.
    #[inline(always)]
    pub fn of(ctx: &impl OfSocket) -> Option<Self> {
        of_netns(if by_cookie() { ctx.netns_cookie() } else { inode(ctx.sock()) })
    }

    /// For what is attached to the network namespace, or to its interfaces.
    #[inline(always)]
    pub fn of_hook() -> Option<Self> {
        let index = match constant!(instance) {
            ProgramConstants::SHARED => looked_up()?,
            own => own,
        };
        Some(Self { index, generation: 0 })
    }

    #[inline(always)]
    pub fn meta(self) -> Option<*const Meta> {
        META.get(self, &0).map(|meta| meta.as_ptr().cast_const())
    }

    /// The policy in force; None while the instance is not active.
    #[inline(always)]
    pub fn active(self) -> Option<ActivePolicy> {
        self.policy(self.active_word()?.slot()?)
    }

    /// The policy in force, or the one that will be while the instance is being made.
    #[inline(always)]
    pub fn active_or_next(self) -> Option<ActivePolicy> {
        match self.active_word()? {
            ActiveWord::INERT => self.policy(Slot::FIRST),
            word => self.policy(word.slot()?),
        }
    }

    #[inline(always)]
    fn active_word(self) -> Option<ActiveWord> {
        let meta = self.meta()?;
        // SAFETY: an element of an array map; user space writes it, hence volatile.
        Some(unsafe { core::ptr::read_volatile(&raw const (*meta).active) })
    }

    #[inline(always)]
    fn policy(self, slot: Slot) -> Option<ActivePolicy> {
        let policy = POLICIES.get(self, &slot.index())?;
        let tables = TABLES.of(self)?;
        // SAFETY: a slot is not written while a program that found it active may be running.
        Some(ActivePolicy { policy: unsafe { &*policy.as_ptr() }, tables, instance: self, slot })
    }
}

/// A constant to the verifier: of the helper that a kernel lacks (before 5.15) it sees nothing.
#[inline(always)]
fn by_cookie() -> bool {
    constant!(has_netns_cookie) != 0
}

/// Programs of one instance know its number, and leave alone what is not of its namespace.
#[inline(always)]
fn of_netns(id: u64) -> Option<Instance> {
    let index = match constant!(instance) {
        // SAFETY: a value of four bytes, which user space writes whole.
        ProgramConstants::SHARED => *unsafe { NAMESPACES.get(&id) }?,
        own => own,
    };
    let meta = Instance { index, generation: 0 }.meta()?;
    // SAFETY: an element of an array map; these are written before the instance is activated.
    let (own, generation) = unsafe {
        let own = if by_cookie() { (*meta).netns_cookie } else { (*meta).netns_inode };
        (own, (*meta).generation)
    };
    // The entry of an instance that was not wholly removed may lead to a later one.
    if own == id { Some(Instance { index, generation }) } else { None }
}

/// An inode number is used again only after the namespace is gone, and with it the instance's
/// sk_lookup; the next attach there removes what is left of the older instance.
#[inline(always)]
fn inode(sk: Option<Sock>) -> u64 {
    let Some(sk) = sk else { return 0 };
    let net: u64 = read(address_of(sk).wrapping_add(constant!(sock_net) as u64));
    let inode: u32 = read(net.wrapping_add(constant!(net_inum) as u64));
    inode.into()
}
