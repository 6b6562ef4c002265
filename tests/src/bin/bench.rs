//! The benchmark: `cargo xtask bench`; see `redirector_tests::bench`.

fn main() -> anyhow::Result<()> {
    redirector_tests::bench::main()
}
