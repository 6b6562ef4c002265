//! What the kernel side and the user side of redirector agree on: address and map
//! layouts, and the one decision function both of them run.
//!
//! Nothing here touches a kernel or a context, so everything can be tested anywhere.
#![cfg_attr(not(feature = "user"), no_std)]

pub mod abi;
pub mod addr;
pub mod counter;
pub mod decide;
pub mod policy;

pub use addr::Addr;
