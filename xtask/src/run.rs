//! `cargo xtask test | demo | bench | parity`: build everything, then run it with what it needs.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::{
    cmd::Cmd,
    deps, dist, envoy, exit, kubernetes, manifests,
    project::{self, Profile},
};

/// Runs every test of the default members.
///
/// End-to-end tests find the programs in `REDIRECTOR_BIN` and `REDIRECTOR_ENVOY`. As root they must
/// run (`REDIRECTOR_TESTS_PRIVILEGED=required`): a test that skips itself where it could have run
/// would let a broken machine look green.
pub fn test(args: &[String]) -> Result<()> {
    let root = project::is_root();
    if root {
        deps::all(true)?;
    }
    let programs = project::build(Profile::Dev, &[])?;
    let mut cargo = project::cargo()
        .env("REDIRECTOR_BIN", programs.get("redirector")?)
        // One broken test program should not hide the results of the others.
        .args(["test", "--no-fail-fast"])
        .args(args);
    if root {
        cargo =
            cargo.env("REDIRECTOR_ENVOY", envoy::ensure()?).env("REDIRECTOR_TESTS_PRIVILEGED", "required");
    } else {
        eprintln!(
            "note: not root. The end-to-end tests load programs into the kernel and make network \
             namespaces; they will NOT run.\n      All tests: sudo -E env \"PATH=$PATH\" cargo xtask test"
        );
    }
    cargo.run()
}

/// Shows the product at work in network namespaces.
pub fn demo(args: &[String]) -> Result<()> {
    project::need_root("demo")?;
    deps::for_demo()?;
    run("demo", Profile::WithoutAgent, args)
}

/// Tries the product on a real node.
pub fn node(args: &[String]) -> Result<()> {
    project::need_root("node")?;
    deps::for_node()?;
    let mut env = Vec::new();
    // Of the verbs, these need a Kubernetes; `runtime` does not.
    if ["build", "up", "kubernetes"].iter().any(|verb| args.first().is_some_and(|first| first == verb)) {
        env.push(("REDIRECTOR_KUBERNETES", kubernetes::ensure()?));
    }
    if args.first().is_some_and(|verb| verb == "build") {
        return Ok(());
    }
    if args.first().is_some_and(|verb| verb == "kubernetes") {
        env.push(("REDIRECTOR_KUSTOMIZE", manifests::kustomize()?));
        env.push(("REDIRECTOR_PROMETHEUS", manifests::prometheus()?.join("prometheus")));
        env.push(("REDIRECTOR_HELM_PYTHON", manifests::python()?.join("python3")));
        // What is deployed is what users get.
        env.push(("REDIRECTOR_IMAGE", dist::local_image()?));
    }
    run_with("node", Profile::Dev, args, &env)
}

/// Runs a program of `redirector-tests` that needs root and what the tests need.
pub fn tool(name: &str, profile: Profile, args: &[String]) -> Result<()> {
    project::need_root(name)?;
    deps::all(true)?;
    run(name, profile, args)
}

/// Builds and runs one program of `redirector-tests`; its exit code becomes ours.
fn run(name: &str, profile: Profile, args: &[String]) -> Result<()> {
    run_with(name, profile, args, &[])
}

/// The same, telling it where things are.
fn run_with(name: &str, profile: Profile, args: &[String], env: &[(&str, PathBuf)]) -> Result<()> {
    let programs = project::build(profile, &["redirector", name])?;
    let mut program = Cmd::new(programs.get(name)?).env("REDIRECTOR_BIN", programs.get("redirector")?);
    for (variable, value) in env {
        program = program.env(variable, value);
    }
    let status = program.args(args).dir(project::root()).interactive().status()?;
    if status.success() {
        return Ok(());
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Err(exit::with_code(code, format!("`{name}` failed ({status})"))).context("see its output above")
}
