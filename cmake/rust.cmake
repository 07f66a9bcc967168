# The static library with Hugging Face `tokenizers` and minijinja. Built once per user and content by tools/build_rust.
set(rust_dir ${PROJECT_SOURCE_DIR}/src/tokenizer/rust)
file(GLOB_RECURSE rust_sources CONFIGURE_DEPENDS ${rust_dir}/src/*.rs)
set(rust_archive ${PROJECT_BINARY_DIR}/libdx_tokenizers.a)
add_custom_command(OUTPUT ${rust_archive}
                   COMMAND ${PROJECT_SOURCE_DIR}/tools/build_rust ${rust_archive}
                   DEPENDS ${rust_sources} ${rust_dir}/Cargo.toml ${rust_dir}/Cargo.lock ${PROJECT_SOURCE_DIR}/tools/build_rust
                   COMMENT "Building Hugging Face tokenizers (once per machine)" USES_TERMINAL VERBATIM)
add_custom_target(dx_rust_build DEPENDS ${rust_archive})
add_library(dx_rust INTERFACE)
add_dependencies(dx_rust dx_rust_build)
target_link_libraries(dx_rust INTERFACE ${rust_archive} pthread dl m)
