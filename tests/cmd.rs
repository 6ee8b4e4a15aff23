//! The pages of `tests/cmd`: each is read by people and run by this test, so the manual cannot lie.
#![cfg(feature = "cli")]

#[test]
fn pages() {
    // No card of this computer and nothing measured on it: the pages are the same everywhere.
    trycmd::TestCases::new()
        .env("CUDA_VISIBLE_DEVICES", "")
        .env("XDG_STATE_HOME", "/nonexistent")
        .case("tests/cmd/*.md");
}
