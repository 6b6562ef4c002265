//! Prints rules as `iptables-save` does, and as columns of `iptables -vnL`.

use std::fmt;

use super::chains::{Chain, Family, Rule};
use super::spec::{Is, Spec, Target};

/// `[! ]FLAG VALUE`.
struct Option_<'a, T>(&'a str, &'a Is<T>);

impl<T: fmt::Display> fmt::Display for Option_<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = if self.1.not { "! " } else { "" };
        write!(f, " {not}{} {}", self.0, self.1.value)
    }
}

impl fmt::Display for Spec {
    /// The text after `-A CHAIN ` in `iptables-save`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        let mut add = |part: &dyn fmt::Display| text.push_str(&part.to_string());
        self.source.iter().for_each(|is| add(&Option_("-s", is)));
        self.destination.iter().for_each(|is| add(&Option_("-d", is)));
        self.input.iter().for_each(|is| add(&Option_("-i", is)));
        self.output.iter().for_each(|is| add(&Option_("-o", is)));
        let protocol = self.protocol.map(super::Protocol::name);
        protocol.iter().for_each(|name| add(&format_args!(" -p {name}")));
        self.mark.iter().for_each(|is| {
            add(&" -m mark");
            add(&Option_("--mark", &hex(is)));
        });
        self.connection_mark.iter().for_each(|is| {
            add(&" -m connmark");
            add(&Option_("--mark", &hex(is)));
        });
        self.source_port
            .iter()
            .for_each(|port| add(&format_args!(" -m {} --sport {port}", protocol.unwrap_or("tcp"))));
        self.ports.iter().for_each(|is| {
            let list = join(&is.value);
            let single = is.value.len() == 1;
            add(&format_args!(" -m {}", if single { protocol.unwrap_or("tcp") } else { "multiport" }));
            add(&Option_(if single { "--dport" } else { "--dports" }, &Is { not: is.not, value: list }));
        });
        if !self.states.is_empty() {
            add(&format_args!(" -m conntrack --ctstate {}", self.states.join(",")));
        }
        self.cgroup.iter().for_each(|is| {
            add(&" -m cgroup");
            add(&Option_("--path", is));
        });
        self.uid.iter().for_each(|is| {
            add(&" -m owner");
            add(&Option_("--uid-owner", is));
        });
        self.gids.iter().for_each(|is| {
            add(&" -m owner");
            add(&Option_("--gid-owner", is));
        });
        add(&format_args!(" -j {}", self.target));
        f.write_str(text.trim_start())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Return => f.write_str("RETURN"),
            Self::Accept => f.write_str("ACCEPT"),
            Self::Drop => f.write_str("DROP"),
            Self::Jump(chain) => f.write_str(chain),
            Self::Redirect(port) => write!(f, "REDIRECT --to-ports {port}"),
            Self::Tproxy { port, mark } => {
                write!(f, "TPROXY --on-port {port} --tproxy-mark {mark:#x}/0xffffffff")
            }
            Self::Mark(mark) => write!(f, "MARK --set-xmark {mark:#x}/0xffffffff"),
            Self::SaveMark => f.write_str("CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff"),
            Self::RestoreMark => {
                f.write_str("CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff")
            }
            Self::Zone(zone) => write!(f, "CT --zone {zone}"),
        }
    }
}

fn hex(is: &Is<u32>) -> Is<String> {
    Is { not: is.not, value: format!("{:#x}", is.value) }
}

fn join<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

impl Chain {
    /// A rule of this chain as `iptables-save` prints it.
    pub fn line(&self, spec: &Spec) -> String {
        format!("-A {} {spec}", self.name)
    }
}

impl Rule {
    /// The rule as `iptables-save` prints it, of a family that has it.
    pub fn line(&self, family: Family) -> Option<String> {
        self.of(family).map(|spec| self.chain.line(spec))
    }

    /// Columns of `iptables -vnL` for both families: target, prot, in, out, source, destination, extra.
    pub fn columns(&self) -> [String; 7] {
        let spec = self.any();
        let interface = |is: &Option<Is<String>>| is.as_ref().map_or_else(|| "*".into(), negatable);
        let addresses = |pick: fn(&Spec) -> &Option<Is<ipnet::IpNet>>| {
            let nets = [&self.v4, &self.v6].into_iter().flatten().filter_map(|spec| pick(spec).as_ref());
            let mut list: Vec<String> = nets.map(address).collect();
            if list.is_empty() {
                list.push(
                    if self.v4.is_none() {
                        "::/0"
                    } else if self.v6.is_none() {
                        "0.0.0.0/0"
                    } else {
                        "anywhere"
                    }
                    .into(),
                );
            }
            list.join(", ")
        };
        [
            target_name(&spec.target),
            spec.protocol.map_or("all", super::Protocol::name).to_owned(),
            interface(&spec.input),
            interface(&spec.output),
            addresses(|spec| &spec.source),
            addresses(|spec| &spec.destination),
            extra(spec),
        ]
    }
}

fn negatable<T: fmt::Display>(is: &Is<T>) -> String {
    format!("{}{}", if is.not { "!" } else { "" }, is.value)
}

/// A host without its prefix length, as iptables lists it.
fn address(is: &Is<ipnet::IpNet>) -> String {
    let not = is.not;
    if is.value.prefix_len() == is.value.max_prefix_len() {
        return negatable(&Is { not, value: is.value.addr() });
    }
    negatable(is)
}

fn target_name(target: &Target) -> String {
    let text = target.to_string();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// The last column.
fn extra(spec: &Spec) -> String {
    let mut parts = Vec::new();
    let protocol = spec.protocol.map_or("tcp", super::Protocol::name);
    if let Some(is) = &spec.mark {
        parts.push(format!("mark match {}{:#x}", if is.not { "! " } else { "" }, is.value));
    }
    if let Some(is) = &spec.connection_mark {
        parts.push(format!("connmark match {}{:#x}", if is.not { "! " } else { "" }, is.value));
    }
    if let Some(is) = &spec.ports {
        let list = negatable(&Is { not: is.not, value: join(&is.value) });
        let single = is.value.len() == 1;
        parts.push(if single {
            format!("{protocol} dpt:{list}")
        } else {
            format!("multiport dports {list}")
        });
    }
    if !spec.states.is_empty() {
        parts.push(format!("ctstate {}", spec.states.join(",")));
    }
    if let Some(is) = &spec.cgroup {
        parts.push(format!("cgroup {}{}", if is.not { "! " } else { "" }, is.value));
    }
    let owner = |kind: &str, is: &Is<u32>| {
        format!("{}owner {kind} match {}", if is.not { "! " } else { "" }, is.value)
    };
    parts.extend(spec.uid.iter().map(|is| owner("UID", is)));
    parts.extend(spec.gids.iter().map(|is| owner("GID", is)));
    match &spec.target {
        Target::Redirect(port) => parts.push(format!("redir ports {port}")),
        Target::Tproxy { port, mark } => parts.push(format!("TPROXY redirect port {port} mark {mark:#x}")),
        Target::Mark(mark) => parts.push(format!("MARK set {mark:#x}")),
        Target::SaveMark => parts.push("CONNMARK save".into()),
        Target::RestoreMark => parts.push("CONNMARK restore".into()),
        Target::Zone(zone) => parts.push(format!("CT zone {zone}")),
        Target::Return | Target::Accept | Target::Drop | Target::Jump(_) => {}
    }
    parts.join(" ")
}
