//! From flags, variables and facts to the policy.
//!
//! Source: `tools/common/config/config.go` (`DefaultConfig`, `FillConfigFromEnvironment`, `getLocalIP`),
//! `validation.go` and `tools/istio-iptables/pkg/capture/run.go`. A setting that is given, even empty, means
//! what it means there. One that is absent has the value of the base: istio-iptables' default with
//! `--istio-defaults`, the policy file's, or the sidecar default.

use std::net::IpAddr;

use super::annotations;
use super::error::ConfigError;
use super::facts::Facts;
use super::file;
use super::flags::{CaptureFlags, Ipv6};
use super::given::Given;
use super::model::{Dns, Mode, Policy, Selection};
use super::normal::group_limit;
use super::note::Note;
use super::operational::{Requests, switch};
use super::owners;
use super::parse;

/// What [`resolve`] makes of the flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The policy, in normal form.
    pub policy: Policy,
    /// Remarks for the user, in a stable order.
    pub notes: Vec<Note>,
    /// What the operational flags ask of the verb.
    pub requests: Requests,
}

/// What absent settings fall back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    Sidecar,
    Istio,
    File,
    /// A pod's annotations: `flags` hold the CNI plugin's defaults already.
    Cni,
}

/// Makes a policy of `flags`, the file of a policy or of annotations they name included. `facts` is asked only
/// for what the flags need.
pub fn resolve(flags: &CaptureFlags, facts: &dyn Facts) -> Result<Resolved, ConfigError> {
    if let Some(path) = &flags.annotations {
        let pod = annotations::load(path)?;
        let mut resolved = annotations::resolve_pod(&pod, flags, facts)?;
        resolved.notes.extend(pod.not_captured_by_istio());
        return Ok(resolved);
    }
    let base = match &flags.policy {
        Some(_) => Base::File,
        None if flags.istio_defaults => Base::Istio,
        None => Base::Sidecar,
    };
    resolve_on(base, flags, Vec::new(), facts)
}

/// The same on a base that is known, with the remarks made so far.
pub(super) fn resolve_on(
    base: Base,
    flags: &CaptureFlags,
    mut notes: Vec<Note>,
    facts: &dyn Facts,
) -> Result<Resolved, ConfigError> {
    let (policy, written) = match &flags.policy {
        Some(path) => file::load(path)?,
        None if base == Base::Istio => (Policy::istio_default(), file::Exclusions::default()),
        None => (Policy::default(), file::Exclusions::default()),
    };
    let requests = flags.requests()?;
    notes.extend(flags.operational_notes());
    let mut draft = Draft { flags, facts, base, policy, written, notes };
    draft.proxy()?;
    draft.inbound()?;
    draft.outbound()?;
    draft.dns()?;
    draft.groups()?;
    draft.whole()?;
    let Draft { mut policy, notes, .. } = draft;
    policy.validate()?;
    policy.normalise();
    Ok(Resolved { policy, notes, requests })
}

pub(super) struct Draft<'a> {
    pub flags: &'a CaptureFlags,
    pub facts: &'a dyn Facts,
    pub base: Base,
    pub policy: Policy,
    /// What the file excludes, which the policy may have lost.
    pub written: file::Exclusions,
    pub notes: Vec<Note>,
}

/// Replaces `field` by what `parse` makes of `given`, if it is given.
fn set<T>(
    field: &mut T,
    given: &Option<Given>,
    parse: impl FnOnce(&str, &str) -> Result<T, ConfigError>,
) -> Result<(), ConfigError> {
    if let Some(given) = given {
        *field = parse(given.name(), given.text())?;
    }
    Ok(())
}

impl Draft<'_> {
    fn proxy(&mut self) -> Result<(), ConfigError> {
        let (flags, policy) = (self.flags, &mut self.policy);
        set(&mut policy.outbound_port, &flags.envoy_port, parse::port)?;
        set(&mut policy.inbound_port, &flags.inbound_capture_port, parse::port)?;
        set(&mut policy.tunnel_port, &flags.inbound_tunnel_port, parse::port)?;
        if let Some(path) = &flags.proxy_cgroup {
            let whole = std::path::absolute(path).map_err(|error| {
                let item = path.display().to_string();
                ConfigError::invalid("--proxy-cgroup", &item, error.to_string(), "name a directory")
            })?;
            policy.proxy_cgroup = Some(whole);
        }
        let (uids, gids) = owners::proxy(self)?;
        if uids.is_empty() && gids.is_empty() && self.policy.proxy_cgroup.is_none() {
            let text = "no user and no group is the proxy's: its own connections would be sent back to it";
            self.notes.push(Note::warning("--proxy-uid", text));
        }
        (self.policy.proxy_uids, self.policy.proxy_gids) = (uids, gids);
        Ok(())
    }

    fn inbound(&mut self) -> Result<(), ConfigError> {
        let (flags, policy) = (self.flags, &mut self.policy);
        if let Some(given) = &flags.inbound_mode {
            policy.mode = match given.text() {
                "TPROXY" => Mode::Tproxy,
                "REDIRECT" | "" => Mode::Redirect,
                other => {
                    let text = format!(
                        "{other:?} is taken as REDIRECT, as by istio-iptables: only TPROXY is another"
                    );
                    self.notes.push(Note::warning(given.name(), text));
                    Mode::Redirect
                }
            };
        }
        set(&mut policy.inbound_ports, &flags.inbound_ports, parse::port_selection)?;
        set(&mut policy.inbound_exclude_ports, &flags.inbound_exclude_ports, parse::ports)?;
        let (name, excluded) = match &flags.inbound_exclude_ports {
            Some(given) => (given.name(), &policy.inbound_exclude_ports),
            None => ("inbound_exclude_ports", &self.written.inbound_exclude_ports),
        };
        if policy.inbound_ports != Selection::All && !excluded.is_empty() {
            let text = "has no effect: ports are excluded only where all inbound ports are captured (-b '*')";
            self.notes.push(Note::warning(name, text));
        }
        set(&mut policy.virtual_interfaces, &flags.virtual_interfaces, parse::interfaces)?;
        set(&mut policy.exclude_interfaces, &flags.exclude_interfaces, parse::interfaces)?;
        for (field, given, read) in [
            (
                &mut policy.tproxy_mark,
                &flags.tproxy_mark,
                parse::mark as fn(&str, &str) -> Result<u32, ConfigError>,
            ),
            (&mut policy.tproxy_table, &flags.tproxy_table, parse::table),
        ] {
            // Empty is an error only where the original uses it.
            match given {
                Some(given) if policy.mode == Mode::Redirect => {
                    if !given.text().is_empty() {
                        *field = read(given.name(), given.text())?;
                    }
                    self.notes.push(Note::remark(given.name(), "has no effect: the mode is not TPROXY (-m)"));
                }
                given => set(field, given, read)?,
            }
        }
        Ok(())
    }

    fn outbound(&mut self) -> Result<(), ConfigError> {
        let (flags, policy) = (self.flags, &mut self.policy);
        set(&mut policy.outbound_cidrs, &flags.outbound_cidrs, parse::cidr_selection)?;
        set(&mut policy.outbound_exclude_cidrs, &flags.outbound_exclude_cidrs, parse::excluded_cidrs)?;
        set(&mut policy.outbound_ports, &flags.outbound_ports, parse::ports)?;
        set(&mut policy.outbound_exclude_ports, &flags.outbound_exclude_ports, parse::ports)?;
        set(&mut policy.loopback_cidr, &flags.variables.loopback_cidr, parse::loopback)
    }

    /// Redirection without "all" means the nameservers of resolv.conf; without one of them it is off.
    fn dns(&mut self) -> Result<(), ConfigError> {
        let redirect = switch(&self.flags.redirect_dns, &self.flags.variables.meta_dns_capture);
        let all = switch(&self.flags.capture_all_dns, &None);
        if redirect.is_none() && all.is_none() {
            return Ok(());
        }
        let on = redirect.map_or(self.policy.dns != Dns::Off, |(_, on)| on);
        let any = all.map_or(self.policy.dns == Dns::All, |(_, any)| any);
        self.policy.dns = match (on, any) {
            (false, _) => {
                if let Some((name, true)) = all {
                    self.notes.push(Note::warning(name, "has no effect without --redirect-dns"));
                }
                Dns::Off
            }
            (true, true) => Dns::All,
            (true, false) => match &self.policy.dns {
                Dns::Servers(servers) if redirect.is_none() => Dns::Servers(servers.clone()),
                _ => self.nameservers(redirect.or(all).map_or("--redirect-dns", |(name, _)| name))?,
            },
        };
        Ok(())
    }

    fn nameservers(&mut self, name: &str) -> Result<Dns, ConfigError> {
        let servers = self.facts.nameservers().map_err(|error| {
            let remedy = "name the target by --pid, capture every server (--capture-all-dns) or list them \
                          in a policy file (dns = [\"10.96.0.10\"])";
            ConfigError::unavailable(name, format!("needs the target's resolv.conf: {error}"), remedy)
        })?;
        if servers.is_empty() {
            let text =
                "the target's resolv.conf names no server: DNS is not captured; --capture-all-dns takes any";
            self.notes.push(Note::warning(name, text));
            return Ok(Dns::Off);
        }
        Ok(Dns::Servers(servers))
    }

    fn groups(&mut self) -> Result<(), ConfigError> {
        let variables = &self.flags.variables;
        if let Some(given) = &variables.owner_groups {
            group_limit(given.name(), parse::items(given.text()).count())?;
            self.policy.owner_groups = match given.text() {
                "*" => Selection::All,
                list => Selection::of(owners::groups(self.facts, given.name(), list)?),
            };
        }
        if let Some(given) = &variables.owner_groups_exclude {
            let all = self.policy.owner_groups == Selection::All;
            if !all && parse::items(given.text()).next().is_some() {
                let text = "has no effect: groups are excluded only where all are captured \
                            (ISTIO_OUTBOUND_OWNER_GROUPS='*')";
                self.notes.push(Note::warning(given.name(), text));
            }
            // The original does not look at a list it does not use.
            self.policy.owner_groups_exclude =
                if all { owners::groups(self.facts, given.name(), given.text())? } else { Vec::new() };
        } else if self.policy.owner_groups != Selection::All && !self.written.owner_groups_exclude.is_empty()
        {
            let text =
                "has no effect: groups are excluded only where all are captured (owner_groups = \"all\")";
            self.notes.push(Note::warning("owner_groups_exclude", text));
        }
        Ok(())
    }

    fn whole(&mut self) -> Result<(), ConfigError> {
        let dual = switch(&self.flags.dual_stack, &self.flags.variables.istio_dual_stack);
        let ipv6 = self.flags.ipv6.or_else(|| self.default_ipv6());
        match ipv6 {
            Some(Ipv6::On) => self.policy.ipv6 = true,
            Some(Ipv6::Off) => self.policy.ipv6 = false,
            Some(Ipv6::Auto) => self.policy.ipv6 = self.detect_ipv6(dual.is_some_and(|(_, dual)| dual))?,
            None => {}
        }
        if let Some((name, true)) = dual
            && ipv6 != Some(Ipv6::Auto)
        {
            let state = if self.policy.ipv6 { "on" } else { "off" };
            let text = format!("has no effect: IPv6 is {state}, and only --ipv6 auto detects it");
            self.notes.push(Note::remark(name, text));
        }
        if let Some((name, drop_invalid)) =
            switch(&self.flags.drop_invalid, &self.flags.variables.invalid_drop)
        {
            self.policy.drop_invalid = drop_invalid;
            if drop_invalid {
                let text = "kept and without effect: it drops packets that conntrack calls invalid, and \
                            captured connections need no conntrack here";
                self.notes.push(Note::remark(name, text));
            }
        }
        if let Some(max) = self.flags.max_connections {
            self.policy.max_connections = max;
        }
        Ok(())
    }

    /// What decides about IPv6 where `--ipv6` is not given; `None`: the base does.
    fn default_ipv6(&mut self) -> Option<Ipv6> {
        match self.base {
            Base::Istio => Some(Ipv6::Auto),
            Base::Cni if self.facts.addresses().is_ok() => Some(Ipv6::Auto),
            Base::Cni => {
                let text = "IPv6 is on: the target's addresses, by which Istio decides, are not known";
                self.notes.push(Note::remark("--ipv6", text));
                None
            }
            Base::Sidecar | Base::File => None,
        }
    }

    fn detect_ipv6(&self, dual: bool) -> Result<bool, ConfigError> {
        let refuse =
            |why: String| ConfigError::unavailable("--ipv6 auto", why, "say it: --ipv6 on or --ipv6 off");
        let addresses = self
            .facts
            .addresses()
            .map_err(|error| refuse(format!("needs the target's addresses: {error}")))?;
        detect_ipv6(&addresses, dual)
            .ok_or_else(|| refuse("the target has no address but loopback and link-local ones".into()))
    }
}

/// Whether istio-iptables would turn IPv6 on (`getLocalIP`): by the first address that is neither loopback
/// nor link-local, with dual-stack by any. `None` if there is no such address.
pub fn detect_ipv6(addresses: &[IpAddr], dual_stack: bool) -> Option<bool> {
    let mut usable = addresses.iter().map(IpAddr::to_canonical).filter(|addr| match addr {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && v4.octets()[..3] != [224, 0, 0],
        IpAddr::V6(v6) => {
            !v6.is_loopback() && !v6.is_unicast_link_local() && v6.segments()[0] & 0xff0f != 0xff02
        }
    });
    let first = usable.next()?.is_ipv6();
    Some(first || (dual_stack && usable.any(|addr| addr.is_ipv6())))
}
