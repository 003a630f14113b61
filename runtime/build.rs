//! Builds the sandbox's first process as a static program and hands its path to the library, which embeds it.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=init/src");
    println!("cargo::rerun-if-changed=init/Cargo.toml");
    let folder = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("init");
    let target = env::var("TARGET").expect("cargo sets TARGET");
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets CARGO"));
    cargo
        .args(["build", "--release", "--locked", "--bin", "orchestra-init", "--manifest-path", "init/Cargo.toml"])
        .args(["--target", &target])
        .arg("--target-dir")
        .arg(&folder)
        // Size matters more than speed for a program that is copied and mapped once per sandbox.
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_STRIP", "true")
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    // The outer build's wrappers (clippy, coverage) are about the outer build.
    for name in ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "CARGO_TARGET_DIR", "CARGO_BUILD_TARGET"] {
        cargo.env_remove(name);
    }
    let status = cargo.status().expect("cargo runs, since it runs this");
    assert!(status.success(), "building the sandbox's first process failed: {status}");
    let program = folder.join(target).join("release/orchestra-init");
    println!("cargo::rustc-env=ORCHESTRA_INIT={}", program.display());
}
