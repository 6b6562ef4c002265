//! `SO_ORIGINAL_DST`, and every other `getsockopt`, beside real iptables: level, length, bytes, and what is untouched.

use redirector_tests::harness::pair::compare::table;
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::probe::observation::{OK, Question};
use redirector_tests::harness::probe::sys::SO_ORIGINAL_DST;

/// Buffer lengths of Envoy, Go, redsocks and others, from too short to a page.
const LENGTHS: [u32; 10] = [0, 1, 15, 16, 17, 27, 28, 32, 128, 4096];

/// More than a page: a program in the kernel sees only the first page of it.
const HUGE: u32 = 5000;

/// The option at the levels at which it exists, and at two where its number means something else or nothing.
///
/// Of the answer only the address is compared. Behind it the kernel leaves the caller's buffer alone; a program that
/// answers where the kernel has no answer can leave either that alone or the length, and Envoy looks at the length.
fn original_dst(lengths: &[u32]) -> Vec<Question> {
    let ask = |level, bytes| {
        lengths.iter().map(move |length| Question::new(level, SO_ORIGINAL_DST, *length).shown(bytes))
    };
    let mut questions: Vec<Question> = ask(libc::SOL_IP, 16).chain(ask(libc::SOL_IPV6, 28)).collect();
    questions.extend(ask(libc::SOL_SOCKET, 128).chain(ask(libc::SOL_TCP, 128)));
    questions
}

/// Options that have nothing to do with us, in buffers of ordinary and of absurd length. Not IPV6_V6ONLY, which bpf_bind
/// sets: see `documented`.
fn unrelated() -> Vec<Question> {
    let options = [
        (libc::SOL_SOCKET, libc::SO_TYPE),
        (libc::SOL_SOCKET, libc::SO_DOMAIN),
        (libc::SOL_SOCKET, libc::SO_PROTOCOL),
        (libc::SOL_SOCKET, libc::SO_ERROR),
        (libc::SOL_SOCKET, libc::SO_ACCEPTCONN),
        (libc::SOL_SOCKET, libc::SO_LINGER),
        (libc::SOL_SOCKET, libc::SO_BINDTODEVICE),
        (libc::SOL_SOCKET, 9999),
        (libc::SOL_IP, libc::IP_TTL),
        (libc::SOL_IP, libc::IP_TOS),
        (libc::SOL_IP, 9999),
        (libc::SOL_IPV6, libc::IPV6_RECVPKTINFO),
        (libc::SOL_IPV6, libc::IPV6_UNICAST_HOPS),
        (libc::SOL_TCP, libc::TCP_NODELAY),
        (libc::SOL_TCP, libc::TCP_CONGESTION),
        (libc::SOL_TCP, 9999),
        (9999, 9999),
    ];
    let mut questions: Vec<Question> = options
        .into_iter()
        .flat_map(|(level, name)| {
            [0, 1, 4, 16, 4096, 4097, 5000, 65536].map(|length| Question::new(level, name, length))
        })
        .collect();
    let info = [4, 104, 5000].map(|length| Question::new(libc::SOL_TCP, libc::TCP_INFO, length).shown(0));
    questions.extend(info);
    questions
}

/// Connections that are captured in each way, and such that are not.
fn parts(pair: &Pair, questions: &[Question]) -> Vec<Part> {
    let pod = pair.reference.pod();
    let asking = |mut scenario: Scenario, caller: &str| {
        scenario.name = format!("{caller} {}", scenario.name);
        scenario.ask_before = questions.to_vec();
        scenario.ask_client = questions.to_vec();
        scenario.ask_server = questions.to_vec();
        scenario
    };
    let mut destinations = vec![
        Scenario::new("mapped vip", Family::Mapped, SERVICE),
        Scenario::new("mapped self", Family::Mapped, at(pod.v4(), SERVED)),
    ];
    for address in [SERVICE, at(VIP6, SERVED)] {
        destinations.push(Scenario::to(address));
    }
    for port in [SERVED, 15001, 15006, 15020] {
        destinations.push(Scenario::to(at(pod.v4(), port)));
        destinations.push(Scenario::to(at(pod.v6(), port)));
    }
    destinations.push(Scenario::to(at(std::net::Ipv4Addr::LOCALHOST, SERVED)));
    destinations.push(Scenario::to(at(std::net::Ipv4Addr::LOCALHOST, 15001)));
    let of = |caller: &str| destinations.iter().map(|scenario| asking(scenario.clone(), caller)).collect();
    let inbound = destinations.iter().filter(|scenario| {
        let to = scenario.to.ip();
        to == pod.v4() || to == pod.v6()
    });
    let inbound = inbound.map(|scenario| asking(scenario.clone(), "outside")).collect();
    vec![
        Part::of(APP, of("app")),
        Part::of(PROXY, of("proxy")),
        Part { caller: Caller::Outside, scenarios: inbound },
    ]
}

/// Levels and lengths, on accepted, connecting and unconnected sockets.
#[test]
fn levels_and_lengths() -> anyhow::Result<()> {
    require_root!();
    let pair = Pair::of_sidecars(&Setup::default())?;
    let seen = pair.check(&parts(&pair, &original_dst(&LENGTHS)))?;
    // The worlds might agree in having no answer at all.
    let first =
        &seen[seen.iter().position(|seen| seen.scenario == "app to 10.96.0.10:8080").unwrap_or_default()];
    let envoys = Question::new(libc::SOL_IP, SO_ORIGINAL_DST, 128).shown(16);
    let Some(answer) = first.server.iter().find(|answer| answer.question == envoys) else {
        panic!("{first:?}")
    };
    assert_eq!((answer.outcome.as_str(), answer.length), (OK, 128));
    assert_eq!(answer.bytes, "02001f900a60000a +8*00");
    Ok(())
}

/// In a buffer larger than a page the answer is the same; the length may become that of the address, as a program in
/// the kernel can give back no more than a page.
#[test]
fn larger_than_a_page() -> anyhow::Result<()> {
    require_root!();
    let pair = Pair::of_sidecars(&Setup::default())?;
    let parts = parts(&pair, &original_dst(&[HUGE]));
    let (_, differences) = pair.run(&parts)?;
    let mut others = Vec::new();
    for difference in differences {
        let shortened =
            difference.field.ends_with(".length") && ["16", "28"].contains(&difference.right.as_str());
        if !shortened {
            others.push(difference);
        }
    }
    assert!(others.is_empty(), "{}", table(&others, "iptables", "redirector"));
    Ok(())
}

/// Listening sockets have no original destination, in whatever way they are asked.
#[test]
fn listening_sockets() -> anyhow::Result<()> {
    require_root!();
    let pair = Pair::of_sidecars(&Setup::default())?;
    let questions: Vec<Question> = original_dst(&LENGTHS).into_iter().map(Question::of_listener).collect();
    let mut scenarios = Vec::new();
    for address in [SERVICE, at(VIP6, SERVED), at(pair.reference.pod().v4(), SERVED)] {
        let mut scenario = Scenario::to(address);
        scenario.ask_server.clone_from(&questions);
        scenarios.push(scenario);
    }
    let outside =
        Part { caller: Caller::Outside, scenarios: vec![scenarios[2].clone().named("from outside")] };
    pair.check(&[Part::of(APP, scenarios), outside])?;
    Ok(())
}

/// Every other option is as if we were not there, whatever the length of the buffer.
#[test]
fn other_options_are_untouched() -> anyhow::Result<()> {
    require_root!();
    let pair = Pair::of_sidecars(&Setup::default())?;
    let seen = pair.check(&parts(&pair, &unrelated()))?;
    assert!(seen.iter().all(|seen| seen.server.len() == unrelated().len()), "some server did not answer");
    Ok(())
}
