//! A container runtime as the kubelet talks to it: CRI v1 over its socket.

use anyhow::Context;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    Container, ContainerConfig, ContainerFilter, ContainerState, ContainerStatusRequest,
    CreateContainerRequest, ListContainersRequest, ListPodSandboxRequest, PodSandboxConfig, PodSandboxFilter,
    RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest,
    StatusRequest, StopContainerRequest, StopPodSandboxRequest,
};
use redirector_tests::harness::retry;

const SOCKET: &str = "unix:///run/containerd/containerd.sock";
type Client = RuntimeServiceClient<tonic::transport::Channel>;

/// A connection to the runtime.
pub struct Runtime {
    tokio: tokio::runtime::Runtime,
    client: Client,
}

impl Runtime {
    pub fn connect() -> anyhow::Result<Self> {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = retry::until("the runtime's socket", || {
            tokio.block_on(RuntimeServiceClient::connect(SOCKET)).ok()
        })?;
        Ok(Self { tokio, client })
    }

    /// Whether the kubelet may start pods that need the network.
    pub fn network_ready(&mut self) -> anyhow::Result<bool> {
        let request = StatusRequest { verbose: false };
        let answer = self.tokio.block_on(self.client.status(request)).context("Status")?;
        let conditions = answer.into_inner().status.context("a status")?.conditions;
        let network = conditions.iter().find(|condition| condition.r#type == "NetworkReady");
        Ok(network.context("no condition NetworkReady")?.status)
    }

    /// Makes a pod's sandbox; its id.
    pub fn run_sandbox(&mut self, config: PodSandboxConfig) -> anyhow::Result<String> {
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        let answer = self.tokio.block_on(self.client.run_pod_sandbox(request)).context("RunPodSandbox")?;
        Ok(answer.into_inner().pod_sandbox_id)
    }

    pub fn stop_sandbox(&mut self, id: &str) -> anyhow::Result<()> {
        let request = StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.tokio.block_on(self.client.stop_pod_sandbox(request)).context("StopPodSandbox")?;
        Ok(())
    }

    pub fn remove_sandbox(&mut self, id: &str) -> anyhow::Result<()> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.tokio.block_on(self.client.remove_pod_sandbox(request)).context("RemovePodSandbox")?;
        Ok(())
    }

    /// Removes what there is of a pod, by its uid.
    pub fn remove_sandboxes(&mut self, pod: &str) -> anyhow::Result<()> {
        let label_selector = [("io.kubernetes.pod.uid".to_owned(), pod.to_owned())].into();
        let filter = PodSandboxFilter { label_selector, ..Default::default() };
        let request = ListPodSandboxRequest { filter: Some(filter) };
        let answer = self.tokio.block_on(self.client.list_pod_sandbox(request)).context("ListPodSandbox")?;
        answer.into_inner().items.iter().try_for_each(|sandbox| {
            self.stop_sandbox(&sandbox.id)?;
            self.remove_sandbox(&sandbox.id)
        })
    }

    /// Creates a container and starts it; its id.
    pub fn run(
        &mut self,
        sandbox: &str,
        pod: &PodSandboxConfig,
        config: ContainerConfig,
    ) -> anyhow::Result<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(pod.clone()),
        };
        let answer = self.tokio.block_on(self.client.create_container(request)).context("CreateContainer")?;
        let id = answer.into_inner().container_id;
        let request = StartContainerRequest { container_id: id.clone() };
        self.tokio.block_on(self.client.start_container(request)).context("StartContainer")?;
        Ok(id)
    }

    /// The container of this name in a pod, if there is one that has started.
    pub fn container(&mut self, pod: &str, name: &str) -> anyhow::Result<Option<String>> {
        let labels = [("io.kubernetes.pod.uid", pod), ("io.kubernetes.container.name", name)];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let filter = ContainerFilter { label_selector: labels.into(), ..Default::default() };
        let request = ListContainersRequest { filter: Some(filter) };
        let answer = self.tokio.block_on(self.client.list_containers(request)).context("ListContainers")?;
        let started = |container: &Container| container.state() != ContainerState::ContainerCreated;
        Ok(answer.into_inner().containers.into_iter().find(started).map(|container| container.id))
    }

    /// The exit code of a container that ends by itself.
    pub fn exit_code(&mut self, id: &str) -> anyhow::Result<i32> {
        retry::until("a container to end", || {
            let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
            match self.tokio.block_on(self.client.container_status(request)) {
                Err(error) => Some(Err(error).context("ContainerStatus")),
                Ok(answer) => {
                    let status = answer.into_inner().status?;
                    (status.state() == ContainerState::ContainerExited).then_some(Ok(status.exit_code))
                }
            }
        })?
    }

    /// Ends and removes a container.
    pub fn remove(&mut self, id: &str) -> anyhow::Result<()> {
        let request = StopContainerRequest { container_id: id.to_owned(), timeout: 0 };
        self.tokio.block_on(self.client.stop_container(request)).context("StopContainer")?;
        let request = RemoveContainerRequest { container_id: id.to_owned() };
        self.tokio.block_on(self.client.remove_container(request)).context("RemoveContainer")?;
        Ok(())
    }
}
