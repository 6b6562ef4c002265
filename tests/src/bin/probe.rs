//! The helper program of the tests; see `redirector_tests::probe`.

fn main() -> anyhow::Result<()> {
    redirector_tests::probe::main()
}
