//! Envoy's static configuration in the example mesh, in place of what istiod makes of its DestinationRule, VirtualServices
//! and Gateway.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

/// Where the gateway listens: the NodePort of the original example.
pub const GATEWAY_PORT: u16 = 31221;
/// The host name the gateway knows.
pub const HOST: &str = "user-app.com";
/// The service's name in the mesh.
pub const SERVICE: &str = "user-app-svc";
pub const SERVICE_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 80);
/// Parts of a hundred that go to v1 and to v2.
pub const WEIGHTS: [u32; 2] = [90, 10];
const TYPE: &str = "type.googleapis.com/envoy.extensions.filters";

/// A sidecar: outbound on 15001, inbound on 15006, the original destination asked from the kernel.
pub fn sidecar(backends: [Ipv4Addr; 2]) -> Value {
    let mut clusters = backend_clusters(backends);
    clusters.push(original_dst("passthrough", None));
    // Istio binds this address so that the app's connections from its own sidecar are not captured again.
    clusters.push(original_dst("inbound", Some("127.0.0.6")));
    let original_dst_filter = json!({
        "name": "envoy.filters.listener.original_dst",
        "typed_config": {"@type": format!("{TYPE}.listener.original_dst.v3.OriginalDst")}
    });
    let inspector = json!({
        "name": "envoy.filters.listener.http_inspector",
        "typed_config": {"@type": format!("{TYPE}.listener.http_inspector.v3.HttpInspector")}
    });
    let outbound = http(
        "OUT",
        &json!([service(SERVICE), service(&SERVICE_IP.to_string()), {
            "name": "any", "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "passthrough"}}]
        }]),
    );
    let inbound = http(
        "IN",
        &json!([{
            "name": "app", "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "inbound"}}]
        }]),
    );
    let is_http = json!({"application_protocols": ["http/1.0", "http/1.1", "h2c"]});
    let listener = |port: u16, filters: [&Value; 2], http: &Value, cluster: &str| {
        json!({
            "name": format!("sidecar {port}"), "address": address(Ipv4Addr::UNSPECIFIED, port),
            "listener_filters": filters,
            "filter_chains": [{"filter_chain_match": is_http, "filters": [http]}],
            "default_filter_chain": {"filters": [tcp(cluster)]}
        })
    };
    let filters = [&original_dst_filter, &inspector];
    envoy(
        &json!([
            listener(15001, filters, &outbound, "passthrough"),
            listener(15006, filters, &inbound, "inbound"),
        ]),
        &clusters,
    )
}

/// The ingress gateway: no sidecar, so nothing is captured in its pod.
pub fn gateway(backends: [Ipv4Addr; 2]) -> Value {
    let rewritten = |prefix: &str, cluster: &str| json!({"match": {"prefix": prefix}, "route": {"cluster": cluster, "prefix_rewrite": "/"}});
    let host = json!([{
        "name": HOST, "domains": [HOST, format!("{HOST}:*")],
        "routes": [rewritten("/v1", "v1"), rewritten("/v2", "v2"), weighted()]
    }]);
    let listener = json!([{
        "name": "gateway", "address": address(Ipv4Addr::UNSPECIFIED, GATEWAY_PORT),
        "filter_chains": [{"filters": [http("GATEWAY", &host)]}]
    }]);
    envoy(&listener, &backend_clusters(backends))
}

fn envoy(listeners: &Value, clusters: &[Value]) -> Value {
    json!({"static_resources": {"listeners": listeners, "clusters": clusters}})
}

fn service(domain: &str) -> Value {
    json!({"name": domain, "domains": [domain], "routes": [weighted()]})
}

fn weighted() -> Value {
    let [v1, v2] = WEIGHTS;
    json!({"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": [
        {"name": "v1", "weight": v1}, {"name": "v2", "weight": v2}
    ]}}})
}

fn backend_clusters([v1, v2]: [Ipv4Addr; 2]) -> Vec<Value> {
    let cluster = |name: &str, ip: Ipv4Addr| {
        json!({
            "name": name, "type": "STATIC", "connect_timeout": "2s",
            "load_assignment": {"cluster_name": name, "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": address(ip, 80)}}]}
            ]}
        })
    };
    vec![cluster("v1", v1), cluster("v2", v2)]
}

fn original_dst(name: &str, source: Option<&str>) -> Value {
    let mut cluster = json!({
        "name": name, "type": "ORIGINAL_DST", "connect_timeout": "2s", "lb_policy": "CLUSTER_PROVIDED"
    });
    if let Some(source) = source {
        cluster["upstream_bind_config"] = json!({"source_address": {"address": source, "port_value": 0}});
    }
    cluster
}

fn address(ip: Ipv4Addr, port: u16) -> Value {
    json!({"socket_address": {"address": ip.to_string(), "port_value": port}})
}

fn tcp(cluster: &str) -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": format!("{TYPE}.network.tcp_proxy.v3.TcpProxy"), "stat_prefix": cluster, "cluster": cluster
        }
    })
}

/// An HTTP filter that logs a line `WORD method path status`.
fn http(word: &str, virtual_hosts: &Value) -> Value {
    let log = format!("{word} %DOWNSTREAM_LOCAL_ADDRESS% %REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE%\n");
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": format!("{TYPE}.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": word, "server_name": "istio-envoy",
            "access_log": [{
                "name": "envoy.access_loggers.stdout",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
                    "log_format": {"text_format_source": {"inline_string": log}}
                }
            }],
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": format!("{TYPE}.http.router.v3.Router")}
            }],
            "route_config": {"name": word, "virtual_hosts": virtual_hosts}
        }
    })
}
