//! Differences from REDIRECT that are meant and that the matrix of connections does not meet: the outcome under real
//! iptables, and the outcome here. COMPATIBILITY.md has them with their reasons.

use anyhow::Context;
use redirector_tests::harness::pair::fixture::under_each;
use redirector_tests::harness::prelude::*;

/// A packet filter of the pod sees the port that the client asked for; under REDIRECT it sees the proxy's.
#[test]
fn a_packet_filter_sees_the_original_port() -> anyhow::Result<()> {
    under_each(&Setup::default(), |fixture| {
        let pod = fixture.pod();
        let captured = format!("proxy:15006 original {}", at(pod.v4(), SERVED));
        for (allowed, under_iptables, here) in
            [(INBOUND, captured.as_str(), "EINPROGRESS"), (SERVED, "EINPROGRESS", captured.as_str())]
        {
            let rules = format!("*filter\n-A INPUT -i eth0 -p tcp ! --dport {allowed} -j DROP\nCOMMIT\n");
            run(&mut pod.netns.command("iptables-restore"), &rules)?;
            let expected = if fixture.instance.is_some() { here } else { under_iptables };
            assert_eq!(fixture.world.connect_to_pod()?, expected, "port {allowed} is let in");
        }
        Ok(())
    })
}

/// Where the proxy's listener lacks SO_REUSEADDR, a captured connection keeps the application from its port, whatever
/// options the application sets.
#[test]
fn a_proxy_without_reuseaddr_keeps_the_port() -> anyhow::Result<()> {
    let mut proxy = proxy_listeners(1);
    proxy.iter_mut().for_each(|listen| listen.exclusive = true);
    under_each(&Setup { proxy, app: Vec::new(), ..Setup::default() }, |fixture| {
        let pod = fixture.pod();
        let _held = Held::start(&fixture.world.outside(), at(pod.v4(), SERVED))?;
        // It sets SO_REUSEADDR.
        let app = pod.serve(APP, "app", everywhere(&[SERVED]));
        match fixture.instance {
            None => app.map(drop),
            Some(_) => {
                let error = format!("{:#}", app.err().context("the port is free")?);
                assert!(error.contains("Address already in use"), "{error}");
                Ok(())
            }
        }
    })
}

/// getsockname of the proxy shows the address that the client asked for; REDIRECT shows the interface's first one.
#[test]
fn the_proxys_name_of_a_second_address() -> anyhow::Result<()> {
    const SECOND: [u8; 4] = [10, 77, 0, 50];
    let extra = "address add 10.77.0.50/24 dev eth0\n".to_owned();
    let pod = PodOptions { extra, ..PodOptions::default() };
    under_each(&Setup { pod, ..Setup::default() }, |fixture| {
        let to = at(SECOND, SERVED);
        let reached = observe_one(&fixture.world.outside(), to)?.reached.context("a server")?;
        assert_eq!((reached.role.as_str(), reached.original_dst.address()), ("proxy", Some(to)));
        let here =
            if fixture.instance.is_some() { at(SECOND, INBOUND) } else { at(fixture.pod().v4(), INBOUND) };
        assert_eq!(reached.local.address(), Some(here));
        Ok(())
    })
}
