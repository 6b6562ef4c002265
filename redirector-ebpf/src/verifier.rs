//! What keeps the verifier's work small. It follows every path on its own as long as any register or stack slot
//! differs, and it remembers of a value in a register what was tested.

use redirector_common::Addr;
use redirector_common::abi::Route;
use redirector_common::decision::{Decision, Incoming};
use redirector_common::routing::{Owner, Way};

use crate::hooks::sk_lookup::Wanted;
use crate::listeners::RedirectedTo;
use crate::source_address::Bound;

/// Always zero, which the verifier cannot know of a map that user space may write (`.bss`).
#[unsafe(link_section = ".bss")]
static UNKNOWN_ZERO: u64 = 0;

#[inline(always)]
fn zero() -> u64 {
    // SAFETY: a static; volatile, or LLVM would take the zero for good.
    unsafe { core::ptr::read_volatile(&raw const UNKNOWN_ZERO) }
}

/// The same value, of which the verifier knows nothing any more: constants that an earlier branch chose would multiply
/// the paths of all that follows. Of an unknown value the paths that led to it are one.
#[inline(always)]
pub fn opaque<T: Opaque>(value: T) -> T {
    value.xor(zero())
}

/// 1 for zero, else 0, without a branch.
#[inline(always)]
pub fn is_zero(value: u32) -> u64 {
    (u64::from(value) ^ zero()).wrapping_sub(1) >> 63
}

/// The value, read from memory once more: the verifier follows what is tested of it on one path, and not each
/// combination with what was tested of it before.
#[inline(always)]
pub fn fresh<T: Copy>(value: &T) -> T {
    // SAFETY: a reference.
    unsafe { core::ptr::read_volatile(value) }
}

/// A value whose every bit can be combined with [`zero`]. By field, because padding is not initialised, which
/// kernels before 6.3 do not let a program read.
pub trait Opaque: Copy {
    fn xor(self, zero: u64) -> Self;
}

macro_rules! integers {
    ($($t:ty),*) => { $(
        impl Opaque for $t {
            #[inline(always)]
            fn xor(self, zero: u64) -> Self {
                self ^ zero as $t
            }
        }
    )* };
}
integers!(u16, u32, u64);

impl Opaque for bool {
    #[inline(always)]
    fn xor(self, zero: u64) -> Self {
        (self as u64 ^ zero) & 1 != 0
    }
}

macro_rules! structs {
    ($($t:ty { $($field:ident),* })*) => { $(
        impl Opaque for $t {
            #[inline(always)]
            fn xor(self, zero: u64) -> Self {
                Self { $($field: self.$field.xor(zero)),* }
            }
        }
    )* };
}
structs! {
    Owner { uid, gid, proxy, mark }
    Incoming { dst, dport, iif, local }
    Route { source, oif, errno, local }
    Way { source, oif, lo }
    Bound { addr, port, ours }
    RedirectedTo { addr, interface }
    Wanted { role, rule, to, else_pass }
}

impl Opaque for Addr {
    #[inline(always)]
    fn xor(self, zero: u64) -> Self {
        Self { words: self.words.map(|word| word.xor(zero)) }
    }
}

impl<A: Opaque, B: Opaque> Opaque for (A, B) {
    #[inline(always)]
    fn xor(self, zero: u64) -> Self {
        (self.0.xor(zero), self.1.xor(zero))
    }
}

/// A decision in one register, to be returned from a function.
#[inline(always)]
pub fn packed(decision: Decision) -> u64 {
    opaque(u64::from(decision.verdict as u16) << 32 | decision.rule as u64)
}

/// What [`packed`] was given.
#[inline(always)]
pub fn unpacked(packed: u64) -> Decision {
    // SAFETY: the numbers of a verdict and of a counter.
    unsafe {
        Decision {
            verdict: core::mem::transmute::<u16, _>((packed >> 32) as u16),
            rule: core::mem::transmute::<u32, _>(packed as u32),
        }
    }
}

impl Opaque for Decision {
    #[inline(always)]
    fn xor(self, zero: u64) -> Self {
        // SAFETY: zero is zero, so the numbers are those of a verdict and of a counter.
        unsafe {
            Self {
                verdict: core::mem::transmute::<u16, _>((self.verdict as u16).xor(zero)),
                rule: core::mem::transmute::<u32, _>((self.rule as u32).xor(zero)),
            }
        }
    }
}
