//! What concerns capture as a whole.

use std::net::IpAddr;

use super::operation::DRY_RUN;
use super::option::{CaptureOption, Group, Value, flag};
use crate::policy::draft::{Base, Draft};
use crate::policy::error::ConfigError;
use crate::policy::flags::{Ipv6, WHOLE};
use crate::policy::note::Note;

pub(super) static GROUP: Group =
    Group { heading: Some(WHOLE), options: &[&DUAL_STACK, &DRY_RUN], finish: set_ipv6 };

static DUAL_STACK: CaptureOption = flag("dual-stack", "DUAL_STACK", Value::Switch)
    .second_variable("ISTIO_DUAL_STACK")
    .help("With --ipv6 auto: any IPv6 address turns IPv6 on (variable ISTIO_DUAL_STACK, too)")
    .row(
        "false | with `--ipv6 auto`: any IPv6 address of the target turns IPv6 on, not only \
         the first address | `annotations` `one_by_one`, parity",
    );

fn set_ipv6(draft: &mut Draft<'_>) -> Result<(), ConfigError> {
    let dual = draft.flags.switch(&DUAL_STACK);
    let ipv6 = draft.flags.own.ipv6.or_else(|| default_ipv6(draft));
    match ipv6 {
        Some(Ipv6::On) => draft.policy.ipv6 = true,
        Some(Ipv6::Off) => draft.policy.ipv6 = false,
        Some(Ipv6::Auto) => draft.policy.ipv6 = target_has_ipv6(draft, dual.is_some_and(|(_, dual)| dual))?,
        None => {}
    }
    if let Some((name, true)) = dual
        && ipv6 != Some(Ipv6::Auto)
    {
        let state = if draft.policy.ipv6 { "on" } else { "off" };
        let text = format!("has no effect: IPv6 is {state}, and only --ipv6 auto detects it");
        draft.notes.push(Note::remark(name, text));
    }
    if let Some(max) = draft.flags.own.max_connections {
        draft.policy.max_connections = max;
    }
    if let Some(max) = draft.flags.own.max_destinations {
        draft.policy.max_destinations = max;
    }
    Ok(())
}

/// What decides about IPv6 without `--ipv6`; None: the base does.
fn default_ipv6(draft: &mut Draft<'_>) -> Option<Ipv6> {
    match draft.base {
        Base::Istio => Some(Ipv6::Auto),
        Base::Cni if draft.target.addresses().is_ok() => Some(Ipv6::Auto),
        Base::Cni => {
            let text = "IPv6 is on: the target's addresses, by which Istio decides, are not known";
            draft.notes.push(Note::remark("--ipv6", text));
            None
        }
        Base::Sidecar | Base::File => None,
    }
}

fn target_has_ipv6(draft: &Draft<'_>, dual: bool) -> Result<bool, ConfigError> {
    let refuse =
        |why: String| ConfigError::unavailable("--ipv6 auto", why, "say it: --ipv6 on or --ipv6 off");
    let addresses =
        draft.target.addresses().map_err(|error| refuse(format!("needs the target's addresses: {error}")))?;
    detect_ipv6(&addresses, dual)
        .ok_or_else(|| refuse("the target has no address but loopback and link-local ones".into()))
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
