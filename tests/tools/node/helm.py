# What `helm install redirector CHART` and `helm uninstall redirector` do, by Helm's own library: VERB CHART VALUES.
import asyncio, json, sys
import helm_sdkpy

verb, chart, values = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
config = helm_sdkpy.Configuration(namespace="redirector-system", kubeconfig="/var/lib/kube/admin.conf")


async def run():
    if verb == "install":
        install = helm_sdkpy.Install(config)
        return await install.run("redirector", chart, values=values, create_namespace=True, wait=True, timeout=180)
    return await helm_sdkpy.Uninstall(config).run("redirector", wait=True, timeout=180)


print(json.dumps(asyncio.run(run())))
