//! Reads the options of a rule, as `iptables -A` takes and `iptables-save` prints them.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use crate::rules::{Is, Protocol, Spec, Target};

/// Splits a line into words; `None` if a quote is not closed. A command is split as a shell does it, a line of
/// iptables-save as iptables-restore does it (`add_param_to_argv` in xshared.c): only `"` is special there.
pub(super) fn words(line: &str, shell: bool) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', Some('"')) => word.get_or_insert_default().push(chars.next()?),
            ('\\', None) if shell => word.get_or_insert_default().push(chars.next()?),
            (c, Some(open)) if c == open => quote = None,
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('\'', None) if shell => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

/// The words of a rule that are still unread.
struct Options<'a> {
    words: std::slice::Iter<'a, String>,
    /// Whether `!` precedes the option.
    not: bool,
    module: &'a str,
    target: Option<&'a str>,
    set: Set,
}

/// The options of the target.
#[derive(Default)]
struct Set {
    port: Option<u16>,
    mark: Option<u32>,
    zone: Option<u16>,
    save: bool,
    restore: bool,
}

/// The rule; the error is the reason why it cannot be expressed.
pub(super) fn spec(words: &[String]) -> Result<Spec, String> {
    let mut options =
        Options { words: words.iter(), not: false, module: "", target: None, set: Set::default() };
    let mut spec = Spec::default();
    while let Some(word) = options.words.next() {
        if word == "!" {
            options.not = true;
            continue;
        }
        options.take(word, &mut spec)?;
        if std::mem::take(&mut options.not) {
            return Err(format!("`! {word}` is not known here"));
        }
    }
    spec.target = options.target()?;
    spec.states.sort();
    Ok(spec.tidied())
}

impl<'a> Options<'a> {
    fn take(&mut self, option: &'a str, spec: &mut Spec) -> Result<(), String> {
        match option {
            "-s" | "--source" | "--src" => once(&mut spec.source, self.is(net)?)?,
            "-d" | "--destination" | "--dst" => once(&mut spec.destination, self.is(net)?)?,
            "-i" | "--in-interface" => once(&mut spec.input, self.is(interface)?)?,
            "-o" | "--out-interface" => once(&mut spec.output, self.is(interface)?)?,
            "-p" | "--protocol" | "--proto" => spec.protocol = protocol(self.value()?)?,
            "-m" | "--match" => self.module = self.value()?,
            "--comment" => drop(self.value()?),
            "--sport" | "--source-port" => spec.source_port = Some(port(self.value()?)?),
            "--dport" | "--destination-port" | "--dports" | "--destination-ports" => {
                once(&mut spec.ports, self.is(ports)?)?;
            }
            "--uid-owner" => once(&mut spec.uid, self.is(id)?)?,
            "--gid-owner" => spec.gids.push(self.is(id)?),
            "--mark" if self.module == "connmark" => once(&mut spec.connection_mark, self.is(mark)?)?,
            "--mark" => once(&mut spec.mark, self.is(mark)?)?,
            "--ctstate" | "--state" => spec.states = self.value()?.split(',').map(str::to_owned).collect(),
            "-j" | "--jump" => self.target = Some(self.value()?),
            "--to-ports" | "--to-port" | "--on-port" => self.set.port = Some(port(self.value()?)?),
            "--set-mark" | "--set-xmark" | "--tproxy-mark" => self.set.mark = Some(mark(self.value()?)?),
            "--zone" => self.set.zone = self.value()?.parse().ok(),
            "--save-mark" => self.set.save = true,
            "--restore-mark" => self.set.restore = true,
            "--on-ip" => unspecified(self.value()?)?,
            "--nfmask" | "--ctmask" => whole(self.value()?)?,
            other => return Err(format!("`{other}` is not known here")),
        }
        Ok(())
    }

    /// The value of an option. Old iptables writes `!` between the two.
    fn value(&mut self) -> Result<&'a str, String> {
        let next = self.words.next().ok_or("an option has no value")?;
        if next == "!" {
            self.not = true;
            return self.words.next().map(String::as_str).ok_or_else(|| "an option has no value".into());
        }
        Ok(next)
    }

    fn is<T>(&mut self, parse: impl Fn(&str) -> Result<T, String>) -> Result<Is<T>, String> {
        let value = parse(self.value()?)?;
        Ok(Is { not: std::mem::take(&mut self.not), value })
    }

    fn target(&mut self) -> Result<Target, String> {
        let set = &self.set;
        let needs = |what: &str| format!("its target has no {what}");
        Ok(match self.target.ok_or_else(|| "it has no target".to_owned())? {
            "RETURN" => Target::Return,
            "ACCEPT" => Target::Accept,
            "DROP" => Target::Drop,
            "REDIRECT" => Target::Redirect(set.port.ok_or_else(|| needs("port"))?),
            "TPROXY" => Target::Tproxy {
                port: set.port.ok_or_else(|| needs("port"))?,
                mark: set.mark.ok_or_else(|| needs("mark"))?,
            },
            "MARK" => Target::Mark(set.mark.ok_or_else(|| needs("mark"))?),
            "CONNMARK" if set.save => Target::SaveMark,
            "CONNMARK" if set.restore => Target::RestoreMark,
            "CT" => Target::Zone(set.zone.ok_or_else(|| needs("zone"))?),
            chain if chain.starts_with("ISTIO_") => Target::Jump(chain.into()),
            other => return Err(format!("the target {other} is not one of istio's")),
        })
    }
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), String> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err("an option is there twice".into()),
    }
}

/// An address or network.
pub(super) fn net(text: &str) -> Result<IpNet, String> {
    let parsed = match text.split_once('/') {
        None => text.parse::<IpAddr>().ok().map(IpNet::from),
        Some((addr, mask)) => text.parse().ok().or_else(|| {
            let (addr, mask): (Ipv4Addr, Ipv4Addr) = (addr.parse().ok()?, mask.parse().ok()?);
            Ipv4Net::with_netmask(addr, mask).ok().map(IpNet::V4)
        }),
    };
    parsed.ok_or_else(|| format!("{text} is not an address"))
}

fn interface(text: &str) -> Result<String, String> {
    if text.ends_with('+') {
        return Err(format!("{text} is a pattern; interfaces are named one by one here"));
    }
    Ok(text.into())
}

/// TCP, UDP, or (`None`) all.
pub(super) fn protocol(text: &str) -> Result<Option<Protocol>, String> {
    match text {
        "tcp" | "6" => Ok(Some(Protocol::Tcp)),
        "udp" | "17" => Ok(Some(Protocol::Udp)),
        "all" | "0" => Ok(None),
        other => Err(format!("the protocol {other} is never captured")),
    }
}

pub(super) fn port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| format!("{text} is not a single port"))
}

pub(super) fn ports(text: &str) -> Result<Vec<u16>, String> {
    text.split(',').map(port).collect()
}

pub(super) fn id(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("{text} is not a single user or group number"))
}

/// A mark, decimal or 0x, with a mask of all bits or none.
pub(super) fn mark(text: &str) -> Result<u32, String> {
    let value = text.split_once('/').map_or(Ok(text), |(value, mask)| whole(mask).map(|()| value))?;
    let number = match value.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => value.parse(),
    };
    number.map_err(|_| format!("{text} is not a mark"))
}

fn whole(mask: &str) -> Result<(), String> {
    if mask == "0xffffffff" { Ok(()) } else { Err(format!("the mask {mask} is not known here")) }
}

fn unspecified(text: &str) -> Result<(), String> {
    match text.parse::<IpAddr>() {
        Ok(addr) if addr.is_unspecified() => Ok(()),
        _ => Err(format!("`--on-ip {text}` is not known here")),
    }
}
