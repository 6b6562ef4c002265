//! What a container runtime tells the CNI plugin.

use redirector_user::cni::plugin::config::{Command, Config, Variables};
use redirector_user::cni::protocol::CNI_VERSIONS;

/// `NAME=VALUE` lines of the environment, an empty line, standard input. What is accepted is no path of its own.
pub fn run(text: &str) {
    let (environment, input) = text.split_once("\n\n").unwrap_or((text, ""));
    let variable = |name: &str| {
        let mut lines = environment.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
    };
    let Ok(command) = Command::parse(&variable("CNI_COMMAND").unwrap_or_default()) else { return };
    if let Ok(config) = Config::parse(input, command) {
        assert!(CNI_VERSIONS.contains(&config.version.as_str()));
        assert!(!config.name.is_empty() && config.socket.is_absolute());
        let _ = config.is_not_injected();
    }
    let Ok(Variables { container, pod, .. }) = Variables::read(command, variable) else { return };
    let names = pod.into_iter().flat_map(|pod| [Some(pod.namespace), Some(pod.name), pod.uid]).flatten();
    for name in names.chain(Some(container).filter(|id| !id.is_empty())) {
        assert!(!name.is_empty() && !name.starts_with('.') && !name.contains('/'), "{name:?}");
    }
}
