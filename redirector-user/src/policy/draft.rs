//! A policy in the making.

use super::annotations::Pod;
use super::file::Exclusions;
use super::flags::CaptureFlags;
use super::model::Policy;
use super::note::Note;
use super::target_info::TargetInfo;

/// What absent settings fall back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    Sidecar,
    Istio,
    File,
    /// A pod's annotations, with the defaults of Istio's CNI plugin.
    Cni,
}

/// What the options work on.
pub struct Draft<'a> {
    pub flags: &'a CaptureFlags,
    pub target: &'a dyn TargetInfo,
    pub base: Base,
    pub pod: Option<&'a Pod>,
    pub policy: Policy,
    /// What the file excludes, which the policy may have lost.
    pub written: Exclusions,
    /// Ports that somebody wants excluded inbound, and what says so.
    pub excluded_ports: (String, Vec<u16>),
    pub notes: Vec<Note>,
}
