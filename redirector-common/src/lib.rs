//! The part that the programs in the kernel and the user side share: the layouts of the maps, the decision about a
//! connection, and what the kernel does before netfilter sees it.
//!
//! Nothing here touches a kernel or a context, so everything can be tested anywhere.
#![cfg_attr(not(feature = "user"), no_std)]

pub mod abi;
pub mod decision;
pub mod routing;
pub mod rule;

pub use abi::Addr;
