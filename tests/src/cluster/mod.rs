//! Nodes: machines made of namespaces, with a real container runtime, real CNI plugins and a real Kubernetes.

pub mod cni;
pub mod containerd;
pub mod deployment;
pub mod image;
pub mod kubernetes;
pub mod machine;
pub mod many;
mod pods;
pub mod scenario;
pub mod starts;
