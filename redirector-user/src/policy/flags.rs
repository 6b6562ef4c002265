//! What a command line gives: values of istio-iptables' options, and redirector's own flags.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::flag_input::FlagInput;
use super::model::{MAX_CONNECTIONS, MAX_DESTINATIONS};

/// Heading of what is captured at all; redirector's own flags are there, too.
pub const WHOLE: &str = "Capture as a whole";

/// Heading of the proxy's ports and users.
pub const PROXY: &str = "The proxy";

/// Whether IPv6 is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Ipv6 {
    /// As istio-iptables decides it: by the first address of the target (any, with --dual-stack).
    Auto,
    /// Always.
    On,
    /// Never: IPv6 connections pass uncaptured.
    Off,
}

/// Redirector's own flags.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct OwnFlags {
    /// Directory of the cgroup (v2) of the proxy's container: what is created in it is the proxy's own, and
    /// --proxy-uid and --proxy-gid are nobody unless given
    #[arg(long, help_heading = PROXY, value_name = "DIR")]
    pub proxy_cgroup: Option<PathBuf>,
    /// Take istio-iptables' own defaults for what is not given: nothing is captured
    #[arg(long, help_heading = WHOLE, conflicts_with = "policy")]
    pub istio_defaults: bool,
    /// Capture IPv6 (on; auto with --istio-defaults)
    #[arg(long, help_heading = WHOLE, value_name = "WHEN", value_enum)]
    pub ipv6: Option<Ipv6>,
    /// Policy file, TOML or JSON; flags override what it says
    #[arg(long, help_heading = WHOLE, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// A pod's annotations, read as Istio's CNI plugin reads them; flags override what they say
    ///
    /// A file of a downward-API volume (key="value" lines), a JSON map, or a Pod in JSON, of which the
    /// container istio-proxy counts, too.
    #[arg(long, help_heading = WHOLE, value_name = "FILE", conflicts_with_all = ["policy", "istio_defaults"])]
    pub annotations: Option<PathBuf>,
    /// Original destinations that get a loopback address of their own, so that nothing is stored for a connection to
    /// them (16384)
    #[arg(
        long, help_heading = WHOLE, value_name = "N",
        value_parser = clap::value_parser!(u32).range(0..=i64::from(MAX_DESTINATIONS))
    )]
    pub max_destinations: Option<u32>,
    /// Connections that may be open at once of those that are stored: captured ones to other destinations, and those between
    /// addresses of the pod (131072)
    #[arg(
        long, help_heading = WHOLE, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CONNECTIONS))
    )]
    pub max_connections: Option<u32>,
}

/// What to capture, as given: absent, given empty and given differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CaptureFlags {
    /// By the name of the flag, or of a variable that no flag carries.
    pub(super) inputs: BTreeMap<&'static str, FlagInput>,
    /// Redirector's own.
    pub own: OwnFlags,
}
