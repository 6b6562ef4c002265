//! Pods as Kubernetes' API takes and shows them.

use serde_json::{Value, json};

use crate::containerd::PAUSE;

/// A pod as the injector leaves it when a CNI plugin captures: a sidecar, and no init container.
pub(super) fn pod(name: &str, containers: &[Value], restart: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "labels": {"app": name, "injected": "yes"},
            "annotations": {"sidecar.istio.io/status": "{}"}
        },
        "spec": {
            "restartPolicy": restart, "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false,
            "dnsPolicy": "Default", "containers": containers
        }
    })
}

pub(super) fn sleeper(name: &str) -> Value {
    let command = ["/bin/busybox", "tail", "-f", "/dev/null"];
    json!({"name": name, "image": PAUSE, "imagePullPolicy": "Never", "command": command})
}

pub(super) fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

/// With which codes the containers `app` of a list of pods have ended.
pub(super) fn exit_codes(list: &Value) -> Vec<i64> {
    let pods = list["items"].as_array().map_or(&[][..], Vec::as_slice);
    let statuses = pods.iter().filter_map(|pod| pod["status"]["containerStatuses"].as_array()).flatten();
    let apps = statuses.filter(|status| status["name"] == "app");
    apps.filter_map(|status| status["state"]["terminated"]["exitCode"].as_i64()).collect()
}
