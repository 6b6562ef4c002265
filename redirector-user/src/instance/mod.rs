//! Instances: a directory in bpffs for each, with its links, programs and maps. There is no
//! other state and no daemon; whoever holds the lock may change an instance.

pub mod attach;
mod change;
pub mod connections;
pub mod detach;
pub mod directory;
mod drain;
pub mod event;
pub mod find;
pub mod inventory;
mod journal;
mod links;
pub mod list;
pub mod listeners;
pub mod lock;
pub mod maps;
mod others;
pub mod own_maps;
pub mod phase;
mod programs;
pub mod record;
pub mod refresh;
mod request;
pub mod status;
mod swap;
pub mod sweep;
pub mod telling;
pub mod trace;
pub mod upgrade;
mod virtual_ranges;
