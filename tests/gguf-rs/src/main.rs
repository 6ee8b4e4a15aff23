//! Nothing: this package is its tests.

fn main() {}
