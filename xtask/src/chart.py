# Renders the chart as `helm install` does, by Helm's own library, for a Kubernetes version: VERSION CHART VALUES. There is no
# API server: what answers here knows the kinds that the chart may have, has no object of any, and takes all it is sent.
import asyncio, http.server, json, sys, tempfile, threading
import helm_sdkpy

version, chart, values = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
KINDS = {
    "api/v1": {"namespaces": "Namespace", "secrets": "Secret", "serviceaccounts": "ServiceAccount", "resourcequotas": "ResourceQuota", "configmaps": "ConfigMap"},
    "apis/apps/v1": {"daemonsets": "DaemonSet"},
    "apis/rbac.authorization.k8s.io/v1": {"clusterroles": "ClusterRole", "clusterrolebindings": "ClusterRoleBinding", "roles": "Role", "rolebindings": "RoleBinding"},
    "apis/monitoring.coreos.com/v1": {"podmonitors": "PodMonitor", "prometheusrules": "PrometheusRule"},
}
OF_CLUSTER = {"namespaces", "clusterroles", "clusterrolebindings"}


def group(path):
    name = path.split("/")[1]
    versions = [{"groupVersion": f"{name}/v1", "version": "v1"}]
    return {"name": name, "versions": versions, "preferredVersion": versions[0]}


def answer(path):
    path = path.split("?")[0].strip("/")
    if path == "version":
        major, minor = version.split(".")
        return {"major": major, "minor": minor, "gitVersion": f"v{version}.0"}
    if path == "api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "apis":
        groups = [group(path) for path in KINDS if path.startswith("apis")]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if path in KINDS:
        resources = [
            {"name": name, "singularName": "", "kind": kind, "namespaced": name not in OF_CLUSTER, "verbs": ["create", "get", "list"]}
            for name, kind in KINDS[path].items()
        ]
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": path.split("/", 1)[1], "resources": resources}
    if path.endswith("/secrets"):
        return {"kind": "SecretList", "apiVersion": "v1", "metadata": {}, "items": []}
    return None


class Server(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def send(self, code, body, kind="application/json"):
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        found = answer(self.path)
        missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        self.send(404 if found is None else 200, json.dumps(found or missing).encode())

    def do_POST(self):
        # As it came: JSON, or the form in which Go programs prefer to write.
        self.send(201, self.rfile.read(int(self.headers["Content-Length"])), self.headers["Content-Type"])

    do_PUT = do_PATCH = do_POST


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
with tempfile.NamedTemporaryFile("w") as kubeconfig:
    context = {"name": "c", "context": {"cluster": "c", "user": "c"}}
    cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
    user = {"name": "c", "user": {}}
    json.dump({"current-context": "c", "contexts": [context], "clusters": [cluster], "users": [user]}, kubeconfig)
    kubeconfig.flush()
    config = helm_sdkpy.Configuration(namespace="redirector-system", kubeconfig=kubeconfig.name)
    release = asyncio.run(helm_sdkpy.Install(config).run("redirector", chart, values=values, wait=False))
print(release["manifest"])
