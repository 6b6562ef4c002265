//! A pod's annotations, read as Istio's CNI plugin reads them.
//!
//! Source: `cni/pkg/plugin/{sidecar_redirect,sidecar_iptables_linux,plugin,kubernetes}.go`. No Kubernetes type
//! appears here: [`Pod`] has what the plugin looks at, whoever found it out. [`Pod::capture`] makes flags of
//! it, [`resolve_pod`] a policy, [`Pod::membership`] says whether Istio captures the pod at all.

mod file;
mod membership;
mod pod;
mod values;

pub use file::{load, parse};
pub use membership::{Membership, Outside};
pub use pod::{PROXY_CONTAINER, Pod, Proxy};

use super::error::ConfigError;
use super::facts::Facts;
use super::flags::CaptureFlags;
use super::given::Given;
use super::note::Note;
use super::resolve::{Base, Resolved, resolve_on};
use values::{Key, Reader};

/// The user and group of a proxy that has none of its own, or root's (`defaultNoRedirectUID`). Under TPROXY
/// the injector runs Envoy as root, so this is its number there.
const PROXY_ID: i64 = 1337;

/// Ports that are never captured inbound, whatever the annotation says (`NewRedirect`): telemetry, health,
/// Prometheus.
const NEVER_INBOUND: [&str; 3] = ["15020", "15021", "15090"];

/// Makes the policy of a pod as Istio's CNI plugin would. What `overrides` gives wins over the annotations.
/// IPv6 is on as istio-iptables decides it (`--ipv6 auto`); where the target's addresses are not known it is
/// on, with a note.
pub fn resolve_pod(pod: &Pod, overrides: &CaptureFlags, facts: &dyn Facts) -> Result<Resolved, ConfigError> {
    let (flags, notes) = pod.capture(overrides)?;
    resolve_on(Base::Cni, &flags, notes, facts)
}

impl Pod {
    /// The flags that the pod's annotations and its proxy container stand for, CNI's defaults included; what
    /// `overrides` gives stays as it is. With remarks on what has no effect.
    pub fn capture(&self, overrides: &CaptureFlags) -> Result<(CaptureFlags, Vec<Note>), ConfigError> {
        let mut flags = overrides.clone();
        let mut reader = Reader::new(&self.annotations);
        self.inbound(&mut reader, &mut flags)?;
        outbound(&mut reader, &mut flags)?;
        interfaces(&mut reader, &mut flags)?;
        reader.unknown();
        let notes = reader.notes;
        self.container(&mut flags);
        Ok((flags, notes))
    }

    fn inbound(&self, reader: &mut Reader<'_>, flags: &mut CaptureFlags) -> Result<(), ConfigError> {
        fill(&mut flags.inbound_mode, reader.mode(Key::INTERCEPTION_MODE)?);
        let included = reader.ports(Key::INCLUDE_INBOUND_PORTS, "*", true)?;
        let all = included.text() == "*";
        fill(&mut flags.inbound_ports, included);

        let excluded = reader.ports(Key::EXCLUDE_INBOUND_PORTS, "15020", false)?;
        let mut ports: Vec<&str> = excluded.text().split(',').filter(|port| !port.is_empty()).collect();
        let by_the_user = ports.iter().any(|port| !NEVER_INBOUND.contains(port));
        ports.extend(NEVER_INBOUND);
        if let Some(status) = self.annotations.get(Key::STATUS_PORT)
            && all
            && !matches!(status.trim(), "" | "0")
            && !ports.contains(&status.trim())
        {
            let text = format!(
                "{status:?} is captured like any port: the CNI plugin reads {}, to which the injector adds it",
                Key::EXCLUDE_INBOUND_PORTS
            );
            reader.notes.push(Note::warning(Key::STATUS_PORT, text));
        }
        // Where only some ports are captured nothing is excluded; worth a remark only if somebody wanted it.
        let text = if all || by_the_user { ports.join(",") } else { String::new() };
        fill(&mut flags.inbound_exclude_ports, Given::new(Key::EXCLUDE_INBOUND_PORTS, text));
        Ok(())
    }

    /// What the plugin takes from the container istio-proxy.
    fn container(&self, flags: &mut CaptureFlags) {
        let none = Proxy::default();
        let proxy = self.proxy.as_ref().unwrap_or(&none);
        let id = |id: Option<i64>| id.filter(|id| *id != 0).unwrap_or(PROXY_ID).to_string();
        // With its cgroup the proxy is known already, and its user may be an application's, too.
        if flags.proxy_cgroup.is_none() {
            fill(&mut flags.proxy_uid, Given::new("runAsUser of istio-proxy", id(proxy.uid)));
            fill(&mut flags.proxy_gid, Given::new("runAsGroup of istio-proxy", id(proxy.gid)));
        }
        let variable = |name: &str| {
            proxy
                .env
                .get(name)
                .map(|text| Given::new(format!("variable {name} of istio-proxy"), text.as_str()))
        };
        if let Some(dns) = variable("ISTIO_META_DNS_CAPTURE") {
            // One variable for both (`sidecar_iptables_linux.go`).
            if dns.switch() == Some(true) && flags.redirect_dns.is_none() {
                fill(&mut flags.capture_all_dns, dns.clone());
            }
            fill(&mut flags.redirect_dns, dns);
        }
        if let Some(dual_stack) = variable("ISTIO_DUAL_STACK") {
            fill(&mut flags.dual_stack, dual_stack);
        }
        if let Some(drop_invalid) = variable("INVALID_DROP") {
            fill(&mut flags.drop_invalid, drop_invalid);
        }
    }
}

fn outbound(reader: &mut Reader<'_>, flags: &mut CaptureFlags) -> Result<(), ConfigError> {
    fill(&mut flags.outbound_cidrs, reader.cidrs(Key::INCLUDE_OUTBOUND_IP_RANGES, "*", true)?);
    fill(&mut flags.outbound_exclude_cidrs, reader.cidrs(Key::EXCLUDE_OUTBOUND_IP_RANGES, "", false)?);
    fill(&mut flags.outbound_ports, reader.ports(Key::INCLUDE_OUTBOUND_PORTS, "", false)?);
    fill(&mut flags.outbound_exclude_ports, reader.ports(Key::EXCLUDE_OUTBOUND_PORTS, "15020", false)?);
    Ok(())
}

fn interfaces(reader: &mut Reader<'_>, flags: &mut CaptureFlags) -> Result<(), ConfigError> {
    fill(&mut flags.exclude_interfaces, reader.interfaces(Key::EXCLUDE_INTERFACES)?);
    let deprecated = reader.given(Key::KUBEVIRT_INTERFACES);
    let key = if reader.given(Key::REROUTE_INTERFACES) || !deprecated {
        if deprecated {
            let text = format!("is not read beside {}", Key::REROUTE_INTERFACES);
            reader.notes.push(Note::remark(Key::KUBEVIRT_INTERFACES, text));
        }
        Key::REROUTE_INTERFACES
    } else {
        let text = format!("is deprecated: write {}", Key::REROUTE_INTERFACES);
        reader.notes.push(Note::remark(Key::KUBEVIRT_INTERFACES, text));
        Key::KUBEVIRT_INTERFACES
    };
    fill(&mut flags.virtual_interfaces, reader.interfaces(key)?);
    Ok(())
}

/// Flags win.
fn fill(field: &mut Option<Given>, given: Given) {
    field.get_or_insert(given);
}
