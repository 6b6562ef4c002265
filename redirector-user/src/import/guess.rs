//! Suggests a policy for rules. [`super::compare`] checks the suggestion, so a wrong one does no harm.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use super::flatten::{Flat, given};
use super::model::{Placed, is_istio};
use super::outbound::{self, everything};
use super::reading::{Reading, counted};
use crate::policy::{Dns, Mode, Policy, Selection};
use crate::rules::{Family, Is, Spec, Table, Target};

/// The suggestion. `ipv6`: the text has Istio's rules for IPv6.
pub(super) fn policy(rules: &[Placed], ipv6: bool) -> Policy {
    let mut v4 = Reading::of(&given(rules, Family::V4), Family::V4);
    let has_v4 = rules.iter().any(|rule| rule.family == Family::V4 && is_istio(&rule.chain));
    let v6 = ipv6.then(|| Reading::of(&given(rules, Family::V6), Family::V6));
    // `*` leaves no room for a rule beside it.
    let all = |reading: &Reading, family| {
        let nets = &reading.include_cidrs;
        !nets.is_empty() && nets.iter().all(|net| *net == everything(family))
    };
    let everywhere = all(&v4, Family::V4) && v6.as_ref().is_none_or(|v6| all(v6, Family::V6));
    if let Some(v6) = v6 {
        if !has_v4 {
            v4 = v6;
        } else {
            v4.include_cidrs.extend(v6.include_cidrs);
            v4.exclude_cidrs.extend(v6.exclude_cidrs);
            v4.dns = match (v4.dns, v6.dns) {
                (Dns::Servers(mut servers), Dns::Servers(others)) => {
                    servers.extend(others);
                    Dns::Servers(servers)
                }
                (Dns::Off, dns) => dns,
                (dns, _) => dns,
            };
            v4.dns_port = v4.dns_port.or(v6.dns_port);
        }
    }
    v4.policy(ipv6, everywhere)
}

impl Reading {
    fn of(flat: &Flat, family: Family) -> Self {
        // Only a rule of its own says that groups are chosen.
        let mut reading = Self { owner_groups: Selection::All, ..Self::default() };
        reading.outbound_port = flat.redirect("ISTIO_REDIRECT");
        reading.inbound_port = flat.redirect("ISTIO_IN_REDIRECT");
        outbound::read(&mut reading, flat, family);
        reading.interfaces(flat);
        reading.tproxy(flat);
        reading.inbound(flat);
        let invalid = |spec: &Spec| spec.states == ["INVALID"];
        reading.drop_invalid = flat.of(Table::Mangle, "PREROUTING").any(invalid);
        reading
    }

    fn interfaces(&mut self, flat: &Flat) {
        let only = |spec: &Spec, input: bool| {
            let is = if input { &spec.input } else { &spec.output };
            let name = is.as_ref().filter(|is| !is.not)?.value.clone();
            let is = Some(Is::exactly(name.clone()));
            let plain = if input {
                Spec { input: is, ..Spec::default() }
            } else {
                Spec { output: is, ..Spec::default() }
            };
            (*spec == plain).then_some(name)
        };
        self.exclude_interfaces =
            flat.of(Table::Nat, "OUTPUT").filter_map(|spec| only(spec, false)).collect();
        let arriving: Vec<String> =
            flat.of(Table::Nat, "PREROUTING").filter_map(|spec| only(spec, true)).collect();
        for name in &arriving {
            // One of these is the other half of an exclusion.
            let excluded = usize::from(self.exclude_interfaces.contains(name));
            if counted(&arriving, name) > excluded {
                self.virtual_interfaces.push(name.clone());
            }
        }
    }

    fn tproxy(&mut self, flat: &Flat) {
        let mangle = flat.items.iter().filter(|item| item.table == Table::Mangle);
        let saved =
            |spec: &Spec| spec.mark.as_ref().filter(|_| spec.target == Target::SaveMark).map(|is| is.value);
        for spec in mangle.map(|item| &item.spec) {
            match spec.target {
                Target::Tproxy { port, mark } => {
                    self.tproxy_mark = Some(mark);
                    self.inbound_port = Some(port);
                }
                _ => self.tproxy_mark = self.tproxy_mark.or(saved(spec)),
            }
        }
    }

    fn inbound(&mut self, flat: &Flat) {
        let table = if self.tproxy_mark.is_some() { Table::Mangle } else { Table::Nat };
        let rules: Vec<&Spec> = flat.of(table, "ISTIO_INBOUND").collect();
        let reached = flat.of_chain(table, "ISTIO_INBOUND").any(|item| item.reached);
        let captures = |spec: &Spec| match &spec.target {
            Target::Redirect(_) => true,
            Target::Jump(chain) => chain == "ISTIO_TPROXY",
            _ => false,
        };
        // Before istio 1.3 there was one port for both directions.
        let port = rules.iter().find_map(|spec| match spec.target {
            Target::Redirect(port) => Some(port),
            _ => None,
        });
        self.inbound_port = self.inbound_port.or(port);
        let single =
            |spec: &&&Spec| Some(spec.ports.as_ref().filter(|is| !is.not && is.value.len() == 1)?.value[0]);
        let passing =
            |spec: &&&Spec| spec.target == Target::Return && spec.mark.is_none() && spec.input.is_none();
        let mut passed: Vec<u16> = rules.iter().filter(passing).filter_map(|spec| single(&spec)).collect();
        let first = flat.of(Table::Nat, "ISTIO_INBOUND").find_map(|spec| {
            let port = spec.ports.as_ref().filter(|_| spec.target == Target::Return)?;
            port.value.first().copied()
        });
        self.tunnel_port = self.tunnel_port.or(first);
        let tunnel = passed.iter().position(|port| table == Table::Nat && Some(*port) == self.tunnel_port);
        tunnel.map(|at| passed.remove(at));
        if !reached {
            return;
        }
        if rules.iter().any(|spec| captures(spec) && spec.ports.is_none()) {
            self.in_ports = Selection::All;
            self.exclude_in_ports = passed;
        } else {
            let captured = rules.iter().filter(|spec| captures(spec));
            self.in_ports = Selection::of(captured.filter_map(|spec| single(&spec)).collect());
        }
    }

    fn policy(self, ipv6: bool, everywhere: bool) -> Policy {
        let default = Policy::istio_default();
        let owned = !(self.uids.is_empty() && self.gids.is_empty());
        let loopback_included = owned && !self.others_pass;
        let mut policy = Policy {
            proxy_cgroup: None,
            outbound_port: self.outbound_port.unwrap_or(default.outbound_port),
            inbound_port: self.inbound_port.unwrap_or(default.inbound_port),
            tunnel_port: self.tunnel_port.unwrap_or(default.tunnel_port),
            dns_port: self.dns_port.unwrap_or(default.dns_port),
            proxy_uids: self.uids,
            proxy_gids: self.gids,
            mode: if self.tproxy_mark.is_some() { Mode::Tproxy } else { Mode::Redirect },
            inbound_ports: self.in_ports,
            inbound_exclude_ports: self.exclude_in_ports,
            exclude_interfaces: self.exclude_interfaces,
            virtual_interfaces: self.virtual_interfaces,
            outbound_cidrs: if everywhere && !loopback_included {
                Selection::All
            } else {
                Selection::of(self.include_cidrs)
            },
            outbound_exclude_cidrs: self.exclude_cidrs,
            outbound_ports: self.include_out_ports,
            outbound_exclude_ports: self.exclude_out_ports,
            tproxy_mark: self.tproxy_mark.unwrap_or(default.tproxy_mark),
            tproxy_table: default.tproxy_table,
            dns: self.dns,
            owner_groups: self.owner_groups,
            owner_groups_exclude: self.owner_groups_exclude,
            loopback_cidr: self.loopback.unwrap_or(default.loopback_cidr),
            drop_invalid: self.drop_invalid,
            ipv6,
            max_connections: default.max_connections,
            max_destinations: default.max_destinations,
        };
        if loopback_included && !policy.captures_loopback() {
            include_loopback(&mut policy);
        }
        policy
    }
}

/// Adds a loopback network that was included and that the rules do not show: a larger network holds it, or it is of IPv6
/// and IPv6 is not captured. It is added only where it changes no other rule.
fn include_loopback(policy: &mut Policy) {
    let localhost = IpNet::from(IpAddr::from(Ipv6Addr::LOCALHOST));
    let v4 = IpNet::new_assert(IpAddr::from([127, 0, 0, 0]), 8);
    let included = |net: &IpNet| policy.outbound_cidrs.items().iter().any(|other| other.contains(net));
    let hidden = if included(&v4) {
        v4
    } else if included(&localhost) || !policy.ipv6 {
        localhost
    } else {
        return;
    };
    let mut nets = policy.outbound_cidrs.items().to_vec();
    nets.push(hidden);
    policy.outbound_cidrs = Selection::of(nets);
}
