//! Environment variables that are no flag's own: the second names of flags and those without a flag.

use super::given::Given;
use super::note::Note;

/// Help on the variables that no flag carries in its `[env: …]`.
pub const VARIABLES_HELP: &str = "\
Variables without a flag of their own:
  ISTIO_META_DNS_CAPTURE  as --redirect-dns, wins over REDIRECT_DNS
  INVALID_DROP            as --drop-invalid, wins over DROP_INVALID
  ISTIO_DUAL_STACK        as --dual-stack, wins over DUAL_STACK
  ISTIO_OUTBOUND_OWNER_GROUPS
                          groups whose traffic is captured, up to 64 numbers or
                          names; `*` (default) for all, empty for none
  ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE
                          groups whose traffic is not, where it is `*`
  ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR
                          the application's own loopback range (127.0.0.1/32)
  ENVOY_USER              gives the uid where --proxy-uid is empty (istio-proxy)
A flag on the command line wins over a variable. An empty variable is given.";

/// The variables that clap cannot bind: a flag has one variable there, and an argument without a flag is
/// positional.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Variables {
    /// `ISTIO_META_DNS_CAPTURE`, second name of `--redirect-dns`.
    pub meta_dns_capture: Option<Given>,
    /// `INVALID_DROP`, second name of `--drop-invalid`.
    pub invalid_drop: Option<Given>,
    /// `ISTIO_DUAL_STACK`, second name of `--dual-stack`.
    pub istio_dual_stack: Option<Given>,
    /// `ISTIO_OUTBOUND_OWNER_GROUPS`.
    pub owner_groups: Option<Given>,
    /// `ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE`.
    pub owner_groups_exclude: Option<Given>,
    /// `ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR`.
    pub loopback_cidr: Option<Given>,
    /// `ENVOY_USER`.
    pub envoy_user: Option<Given>,
    /// Variables Istio's documentation names but its code never reads, each with the one that is read.
    pub unread: Vec<(Given, &'static str)>,
}

/// Documented by istio-iptables (`pkg/constants/constants.go`) and read by nothing, with the variable that is
/// read.
const UNREAD: [(&str, &str); 2] = [
    ("INBOUND_INTERCEPTION_MODE", "ISTIO_INBOUND_INTERCEPTION_MODE"),
    ("INBOUND_TPROXY_MARK", "ISTIO_INBOUND_TPROXY_MARK"),
];

impl Variables {
    /// Reads them from this process's environment.
    pub fn from_process() -> Self {
        Self::read(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    /// Reads them from `lookup` (`None`: not set).
    pub fn read(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| lookup(name).map(|text| Given::variable(name, text));
        Self {
            meta_dns_capture: get("ISTIO_META_DNS_CAPTURE"),
            invalid_drop: get("INVALID_DROP"),
            istio_dual_stack: get("ISTIO_DUAL_STACK"),
            owner_groups: get("ISTIO_OUTBOUND_OWNER_GROUPS"),
            owner_groups_exclude: get("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE"),
            loopback_cidr: get("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR"),
            envoy_user: get("ENVOY_USER"),
            unread: UNREAD.iter().filter_map(|(name, read)| Some((get(name)?, *read))).collect(),
        }
    }

    pub(crate) fn notes(&self) -> impl Iterator<Item = Note> {
        self.unread.iter().map(|(given, read)| {
            Note::warning(given.name(), format!("istio-iptables does not read this variable; set {read}"))
        })
    }
}
