//! istio-iptables' flags, word for word, and redirector's own.
//!
//! Names, letters and variables: `tools/istio-iptables/pkg/cmd/root.go` and `pkg/constants/constants.go`;
//! what a value means is in `resolve`. The operational flags at the end are explained by `operational`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::given::{Given, SwitchParser};
use super::model::MAX_CONNECTIONS;
use super::variables::{VARIABLES_HELP, Variables};

const PROXY: &str = "The proxy";
const INBOUND: &str = "Inbound capture";
const OUTBOUND: &str = "Outbound capture";
const DNS: &str = "DNS capture";
const OWN: &str = "Capture as a whole";
const ACCEPTED: &str = "Accepted for istio-iptables' sake";

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

impl CaptureFlags {
    /// Heading of what is redirector's own; `--dual-stack` and `--dry-run` are there, too.
    pub const OWN_HEADING: &'static str = OWN;
    /// What is redirector's own under another heading.
    pub const OWN_OF_THE_PROXY: &'static str = "proxy_cgroup";
}

/// What to capture, as given: absent, given empty and given differ.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(after_long_help = VARIABLES_HELP)]
pub struct CaptureFlags {
    /// Port the proxy accepts outbound connections on (15001)
    #[arg(
        long = "envoy-port", short = 'p',
        help_heading = PROXY, overrides_with = "envoy_port", value_name = "PORT"
    )]
    pub envoy_port: Option<Given>,
    /// Port the proxy accepts inbound connections on (15006)
    #[arg(
        long = "inbound-capture-port", short = 'z', env = "INBOUND_CAPTURE_PORT",
        help_heading = PROXY, overrides_with = "inbound_capture_port", value_name = "PORT"
    )]
    pub inbound_capture_port: Option<Given>,
    /// HBONE port of the proxy, never captured (15008)
    #[arg(
        long = "inbound-tunnel-port", short = 'e', env = "INBOUND_TUNNEL_PORT",
        help_heading = PROXY, overrides_with = "inbound_tunnel_port", value_name = "PORT"
    )]
    pub inbound_tunnel_port: Option<Given>,
    /// Comma list of uids whose traffic is the proxy's own
    ///
    /// Empty: the uid of $ENVOY_USER or istio-proxy in the target, else 1337.
    #[arg(
        long = "proxy-uid", short = 'u', env = "PROXY_UID",
        help_heading = PROXY, overrides_with = "proxy_uid", value_name = "UIDS"
    )]
    pub proxy_uid: Option<Given>,
    /// Comma list of gids whose traffic is the proxy's own (as --proxy-uid)
    #[arg(
        long = "proxy-gid", short = 'g', env = "PROXY_GID",
        help_heading = PROXY, overrides_with = "proxy_gid", value_name = "GIDS"
    )]
    pub proxy_gid: Option<Given>,
    /// Directory of the cgroup (v2) of the proxy's container: what is created in it is the proxy's own, and
    /// --proxy-uid and --proxy-gid are nobody unless given
    #[arg(long = "proxy-cgroup", help_heading = PROXY, value_name = "DIR")]
    pub proxy_cgroup: Option<PathBuf>,
    /// REDIRECT or TPROXY (which keeps the client's address)
    #[arg(
        long = "istio-inbound-interception-mode", short = 'm', env = "ISTIO_INBOUND_INTERCEPTION_MODE",
        help_heading = INBOUND, overrides_with = "inbound_mode", value_name = "MODE"
    )]
    pub inbound_mode: Option<Given>,
    /// Comma list of ports whose connections are captured, `*` for all, empty for none
    #[arg(
        long = "istio-inbound-ports", short = 'b', env = "ISTIO_INBOUND_PORTS",
        help_heading = INBOUND, overrides_with = "inbound_ports", value_name = "PORTS"
    )]
    pub inbound_ports: Option<Given>,
    /// Comma list of ports not captured, only with `-b '*'`
    #[arg(
        long = "istio-local-exclude-ports", short = 'd', env = "ISTIO_LOCAL_EXCLUDE_PORTS",
        help_heading = INBOUND, overrides_with = "inbound_exclude_ports", value_name = "PORTS"
    )]
    pub inbound_exclude_ports: Option<Given>,
    /// Comma list of interfaces (of VMs) whose incoming traffic is treated as outbound
    #[arg(
        long = "kube-virt-interfaces", short = 'k', env = "KUBE_VIRT_INTERFACES",
        help_heading = INBOUND, overrides_with = "virtual_interfaces", value_name = "IFS",
        allow_hyphen_values = true
    )]
    pub virtual_interfaces: Option<Given>,
    /// Comma list of interfaces on which nothing is captured, in or out
    #[arg(
        long = "istio-exclude-interfaces", short = 'c', env = "ISTIO_EXCLUDE_INTERFACES",
        help_heading = INBOUND, overrides_with = "exclude_interfaces", value_name = "IFS",
        allow_hyphen_values = true
    )]
    pub exclude_interfaces: Option<Given>,
    /// Packet mark of the proxy's connections in TPROXY mode (1337)
    #[arg(
        long = "istio-inbound-tproxy-mark", short = 't', env = "ISTIO_INBOUND_TPROXY_MARK",
        help_heading = INBOUND, overrides_with = "tproxy_mark", value_name = "MARK"
    )]
    pub tproxy_mark: Option<Given>,
    /// Routing table for the marked packets in TPROXY mode (133)
    #[arg(
        long = "istio-inbound-tproxy-route-table", short = 'r', env = "ISTIO_INBOUND_TPROXY_ROUTE_TABLE",
        help_heading = INBOUND, overrides_with = "tproxy_table", value_name = "TABLE"
    )]
    pub tproxy_table: Option<Given>,
    /// Comma list of destinations captured, `*` for all, empty for none
    #[arg(
        long = "istio-service-cidr", short = 'i', env = "ISTIO_SERVICE_CIDR",
        help_heading = OUTBOUND, overrides_with = "outbound_cidrs", value_name = "CIDRS"
    )]
    pub outbound_cidrs: Option<Given>,
    /// Comma list of destinations never captured
    #[arg(
        long = "istio-service-exclude-cidr", short = 'x', env = "ISTIO_SERVICE_EXCLUDE_CIDR",
        help_heading = OUTBOUND, overrides_with = "outbound_exclude_cidrs", value_name = "CIDRS"
    )]
    pub outbound_exclude_cidrs: Option<Given>,
    /// Comma list of destination ports captured whatever the address
    #[arg(
        long = "istio-outbound-ports", short = 'q', env = "ISTIO_OUTBOUND_PORTS",
        help_heading = OUTBOUND, overrides_with = "outbound_ports", value_name = "PORTS"
    )]
    pub outbound_ports: Option<Given>,
    /// Comma list of destination ports never captured
    #[arg(
        long = "istio-local-outbound-ports-exclude", short = 'o',
        env = "ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE",
        help_heading = OUTBOUND, overrides_with = "outbound_exclude_ports", value_name = "PORTS"
    )]
    pub outbound_exclude_ports: Option<Given>,
    /// Send DNS to the agent on port 15053 (variable ISTIO_META_DNS_CAPTURE, too)
    #[arg(
        long = "redirect-dns", env = "REDIRECT_DNS",
        help_heading = DNS, overrides_with = "redirect_dns",
        num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
        value_parser = SwitchParser
    )]
    pub redirect_dns: Option<Given>,
    /// With --redirect-dns: whatever the server, not only those in resolv.conf
    #[arg(
        long = "capture-all-dns", env = "CAPTURE_ALL_DNS",
        help_heading = DNS, overrides_with = "capture_all_dns",
        num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
        value_parser = SwitchParser
    )]
    pub capture_all_dns: Option<Given>,
    /// With --ipv6 auto: any IPv6 address turns IPv6 on (variable ISTIO_DUAL_STACK, too)
    #[arg(
        long = "dual-stack", env = "DUAL_STACK",
        help_heading = OWN, overrides_with = "dual_stack",
        num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
        value_parser = SwitchParser
    )]
    pub dual_stack: Option<Given>,
    /// Check everything and change nothing
    #[arg(
        long = "dry-run", short = 'n', env = "DRY_RUN",
        help_heading = OWN, overrides_with = "dry_run",
        num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
        value_parser = SwitchParser
    )]
    pub dry_run: Option<Given>,
    /// Drop packets conntrack calls invalid: none exist here (variable INVALID_DROP, too)
    #[arg(
        long = "drop-invalid", env = "DROP_INVALID",
        help_heading = ACCEPTED, overrides_with = "drop_invalid",
        num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
        value_parser = SwitchParser
    )]
    pub drop_invalid: Option<Given>,
    /// Attach nothing; with --run-validation: only validate
    #[arg(
        long = "skip-rule-apply", env = "SKIP_RULE_APPLY",
        help_heading = ACCEPTED, overrides_with = "skip_rule_apply",
        num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
        value_parser = SwitchParser
    )]
    pub skip_rule_apply: Option<Given>,
    /// Verify afterwards; a new instance that fails is detached again
    #[arg(
        long = "run-validation", env = "RUN_VALIDATION",
        help_heading = ACCEPTED, overrides_with = "run_validation",
        num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
        value_parser = SwitchParser
    )]
    pub run_validation: Option<Given>,
    /// Port that --run-validation connects to (15002)
    #[arg(
        long = "iptables-probe-port", env = "IPTABLES_PROBE_PORT",
        help_heading = ACCEPTED, overrides_with = "iptables_probe_port", value_name = "PORT"
    )]
    pub iptables_probe_port: Option<Given>,
    /// Patience of --run-validation (5s)
    #[arg(
        long = "probe-timeout", env = "PROBE_TIMEOUT",
        help_heading = ACCEPTED, overrides_with = "probe_timeout", value_name = "DURATION"
    )]
    pub probe_timeout: Option<Given>,
    /// See --netns
    #[arg(
        long = "network-namespace", env = "NETWORK_NAMESPACE",
        help_heading = ACCEPTED, overrides_with = "network_namespace", value_name = "FILE"
    )]
    pub network_namespace: Option<Given>,
    /// No effect: there is no xtables lock to place
    #[arg(
        long = "cni-mode", env = "CNI_MODE",
        help_heading = ACCEPTED, overrides_with = "cni_mode",
        num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
        value_parser = SwitchParser
    )]
    pub cni_mode: Option<Given>,
    /// No effect: there are no rules that could drift
    #[arg(
        long = "reconcile", env = "RECONCILE",
        help_heading = ACCEPTED, overrides_with = "reconcile",
        num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
        value_parser = SwitchParser
    )]
    pub reconcile: Option<Given>,
    /// Attach nothing; see `redirector detach`
    #[arg(
        long = "cleanup-only", env = "CLEANUP_ONLY",
        help_heading = ACCEPTED, overrides_with = "cleanup_only",
        num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
        value_parser = SwitchParser
    )]
    pub cleanup_only: Option<Given>,
    /// No effect: there are no rules to apply twice
    #[arg(
        long = "force-apply", env = "FORCE_APPLY",
        help_heading = ACCEPTED, overrides_with = "force_apply",
        num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
        value_parser = SwitchParser
    )]
    pub force_apply: Option<Given>,
    /// No effect: neither nftables nor iptables is used
    #[arg(
        long = "native-nftables", env = "NATIVE_NFTABLES",
        help_heading = ACCEPTED, overrides_with = "native_nftables",
        num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
        value_parser = SwitchParser
    )]
    pub native_nftables: Option<Given>,
    /// No effect: no iptables binary is run
    #[arg(
        long = "force-iptables-binary", env = "FORCE_IPTABLES_BINARY",
        help_heading = ACCEPTED, overrides_with = "force_iptables_binary", value_name = "NAME"
    )]
    pub force_iptables_binary: Option<Given>,
    /// Take istio-iptables' own defaults for what is not given: nothing is captured
    #[arg(long, help_heading = OWN, conflicts_with = "policy")]
    pub istio_defaults: bool,
    /// Capture IPv6 (on; auto with --istio-defaults)
    #[arg(long, help_heading = OWN, value_name = "WHEN", value_enum)]
    pub ipv6: Option<Ipv6>,
    /// Policy file, TOML or JSON; flags override what it says
    #[arg(long, help_heading = OWN, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// A pod's annotations, read as Istio's CNI plugin reads them; flags override what they say
    ///
    /// A file of a downward-API volume (key="value" lines), a JSON map, or a Pod in JSON, of which the
    /// container istio-proxy counts, too.
    #[arg(long, help_heading = OWN, value_name = "FILE", conflicts_with_all = ["policy", "istio_defaults"])]
    pub annotations: Option<PathBuf>,
    /// Captured connections that may be open at once (65536)
    #[arg(
        long,
        help_heading = OWN, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CONNECTIONS))
    )]
    pub max_connections: Option<u32>,
    /// Variables without a flag of their own, read from this process when clap parses.
    #[arg(skip = Variables::from_process())]
    pub variables: Variables,
}
