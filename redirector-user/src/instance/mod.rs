//! Instances: a directory in bpffs for each, with its links, programs and maps. There is no
//! other state and no daemon; whoever holds the lock may change an instance.

pub mod attach;
pub mod change;
pub mod detach;
pub mod find;
pub mod inventory;
mod links;
pub mod listeners;
pub mod lock;
pub mod record;
pub mod root;
pub mod state;
pub mod status;
mod surroundings;
pub mod trace;
