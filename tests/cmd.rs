//! The pages of `tests/cmd`: each is read by people and run by this test, so the manual cannot lie.

#[test]
fn pages() {
    trycmd::TestCases::new().case("tests/cmd/*.md");
}
