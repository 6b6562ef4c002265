//! Flags and environment variables.

use std::net::IpAddr;
use std::sync::LazyLock;

use clap::builder::Resettable;
use clap::{Args as _, Command, FromArgMatches as _};
use redirector_user::policy::{CaptureFlags, Given, TargetFacts, Variables, resolve};

use super::{connections, round_trip};

/// Name server of the target that the flags are resolved for.
const NAMESERVER: [u8; 4] = [10, 96, 0, 10];

/// A line is an argument, or a variable if it reads `$NAME=value`.
pub fn run(text: &str) {
    let (variables, arguments): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with('$'));
    let Some(mut flags) = parse(&arguments) else { return };
    for line in variables {
        let (name, value) = line[1..].split_once('=').unwrap_or((&line[1..], ""));
        variable(&mut flags, name, value);
    }
    let facts = TargetFacts {
        root: None,
        nameservers: Some(vec![NAMESERVER.into()]),
        addresses: Some(vec![IpAddr::from([10, 0, 0, 1])]),
    };
    let Ok(resolved) = resolve(&flags, &facts) else { return };
    for note in &resolved.notes {
        assert!(!note.about.is_empty() && !note.text.is_empty(), "{note:?}");
    }
    round_trip::check(&resolved.policy);
    connections::check(&resolved.policy, text);
}

/// The flags of a command line without environment; those that name files are dropped.
pub(super) fn parse(arguments: &[&str]) -> Option<CaptureFlags> {
    // Made once: clap checks a command at length when debug assertions are on.
    static COMMAND: LazyLock<Command> = LazyLock::new(|| {
        let mut command = CaptureFlags::augment_args(Command::new("attach"))
            .no_binary_name(true)
            .mut_args(|argument| argument.env(Resettable::Reset));
        command.build();
        command
    });
    let matches = COMMAND.clone().try_get_matches_from_mut(arguments).ok()?;
    let mut flags = CaptureFlags::from_arg_matches(&matches).ok()?;
    flags.policy = None;
    flags.annotations = None;
    flags.variables = Variables::default();
    Some(flags)
}

/// Sets what a variable sets that no flag has set, as clap does.
fn variable(flags: &mut CaptureFlags, name: &str, value: &str) {
    let own = Variables::read(|known| (known == name).then(|| value.to_owned()));
    let variables = &mut flags.variables;
    for (field, given) in [
        (&mut variables.meta_dns_capture, own.meta_dns_capture),
        (&mut variables.invalid_drop, own.invalid_drop),
        (&mut variables.istio_dual_stack, own.istio_dual_stack),
        (&mut variables.owner_groups, own.owner_groups),
        (&mut variables.owner_groups_exclude, own.owner_groups_exclude),
        (&mut variables.loopback_cidr, own.loopback_cidr),
        (&mut variables.envoy_user, own.envoy_user),
    ] {
        if given.is_some() {
            *field = given;
        }
    }
    variables.unread.extend(own.unread);
    let field = match name {
        "INBOUND_CAPTURE_PORT" => &mut flags.inbound_capture_port,
        "INBOUND_TUNNEL_PORT" => &mut flags.inbound_tunnel_port,
        "PROXY_UID" => &mut flags.proxy_uid,
        "PROXY_GID" => &mut flags.proxy_gid,
        "ISTIO_INBOUND_INTERCEPTION_MODE" => &mut flags.inbound_mode,
        "ISTIO_INBOUND_PORTS" => &mut flags.inbound_ports,
        "ISTIO_LOCAL_EXCLUDE_PORTS" => &mut flags.inbound_exclude_ports,
        "KUBE_VIRT_INTERFACES" => &mut flags.virtual_interfaces,
        "ISTIO_EXCLUDE_INTERFACES" => &mut flags.exclude_interfaces,
        "ISTIO_INBOUND_TPROXY_MARK" => &mut flags.tproxy_mark,
        "ISTIO_INBOUND_TPROXY_ROUTE_TABLE" => &mut flags.tproxy_table,
        "ISTIO_SERVICE_CIDR" => &mut flags.outbound_cidrs,
        "ISTIO_SERVICE_EXCLUDE_CIDR" => &mut flags.outbound_exclude_cidrs,
        "ISTIO_OUTBOUND_PORTS" => &mut flags.outbound_ports,
        "ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE" => &mut flags.outbound_exclude_ports,
        "REDIRECT_DNS" => &mut flags.redirect_dns,
        "CAPTURE_ALL_DNS" => &mut flags.capture_all_dns,
        "DUAL_STACK" => &mut flags.dual_stack,
        "DROP_INVALID" => &mut flags.drop_invalid,
        "DRY_RUN" => &mut flags.dry_run,
        "FORCE_IPTABLES_BINARY" => &mut flags.force_iptables_binary,
        _ => return,
    };
    field.get_or_insert_with(|| Given::variable(name, value));
}
