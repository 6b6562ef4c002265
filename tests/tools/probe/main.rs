//! The helper program of the tests; see `redirector_tests::harness::probe`.

fn main() -> anyhow::Result<()> {
    redirector_tests::harness::probe::main()
}
