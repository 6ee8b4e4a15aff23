//! Builds the C++ shim of the embedded runtime against the llama.cpp that `llama-cpp-sys-2` has built.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/runtime/shim.cpp");
    #[cfg(feature = "embedded")]
    shim();
}

/// Compiles `src/runtime/shim.cpp`. The headers are those of the very source tree that was built: its place is in
/// CMake's cache, beside the CMake package whose folder the `llama` link metadata names.
#[cfg(feature = "embedded")]
fn shim() {
    let packages = std::env::var("DEP_LLAMA_GGML_CMAKE_DIR")
        .expect("llama-cpp-sys-2 has not said where its CMake package is (DEP_LLAMA_GGML_CMAKE_DIR)");
    let out = std::path::Path::new(&packages).ancestors().nth(2).expect("OUT_DIR/lib/cmake has two parents");
    let cache = out.join("build/CMakeCache.txt");
    let text = std::fs::read_to_string(&cache).unwrap_or_else(|error| {
        panic!("cannot read {}: {error}; try `cargo clean -p llama-cpp-sys-2`", cache.display())
    });
    let source = text
        .lines()
        .find_map(|line| line.strip_prefix("CMAKE_HOME_DIRECTORY:INTERNAL="))
        .map(std::path::PathBuf::from)
        .expect("CMakeCache.txt names its source folder");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .file("src/runtime/shim.cpp")
        .include(source.join("src"))
        .include(source.join("include"))
        .include(source.join("ggml/include"))
        .compile("moeplan_shim");
}
