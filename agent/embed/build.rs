//! Builds `podbay-agent` as a static program and leaves it in `OUT_DIR`.
//!
//! A Cargo of its own does it, because only there `+crt-static` can be said for the program and not for the proc macros of
//! the same build. It has a target directory of its own: the outer Cargo holds the lock of the other one.

use std::{
    env,
    error::Error,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const PROFILE: &str = "agent";
/// What the program is made of, from the workspace's root. Cargo takes a folder with all that is in it.
const SOURCES: [&str; 9] = [
    "Cargo.toml",
    "Cargo.lock",
    "LICENSE",
    "agent/Cargo.toml",
    "agent/src",
    "agent/wire/Cargo.toml",
    "agent/wire/build.rs",
    "agent/wire/src",
    "proto/podbay/agent",
];
/// What the outer build says to its compilers and not to ours: flags that must not reach a static program (coverage,
/// sanitizers), and the wrapper by which `cargo clippy` and `cargo fix` take rustc's place.
const NOT_OURS: [&str; 6] = [
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(&variable("CARGO_MANIFEST_DIR")?).join("../..").canonicalize()?;
    let out = PathBuf::from(variable("OUT_DIR")?);
    for source in SOURCES.map(|source| root.join(source)).iter().filter(|source| source.exists()) {
        println!("cargo::rerun-if-changed={}", source.display());
    }
    println!("cargo::rerun-if-changed=build.rs");

    if variable("CARGO_CFG_TARGET_OS")? != "linux" {
        return Err("podbay-agent runs on Linux only: build for a Linux target".into());
    }
    let arch = variable("CARGO_CFG_TARGET_ARCH")?.into_string().map_err(|_| "CARGO_CFG_TARGET_ARCH")?;
    let musl = format!("{arch}-unknown-linux-musl");
    let target =
        if installed(&musl)? { musl } else { variable("TARGET")?.into_string().map_err(|_| "TARGET is not UTF-8")? };

    // An absolute path, so that no second copy is built where the outer build's is relative.
    let target_dir = out.join("target");
    let mut cargo = Command::new(variable("CARGO")?);
    cargo
        .current_dir(&root)
        .args(["rustc", "--locked", "--package", "podbay-agent", "--bin", "podbay-agent"])
        .args(["--features", "standalone", "--profile", PROFILE, "--target", &target, "--target-dir"])
        .arg(&target_dir)
        .args(["--", "-C", "target-feature=+crt-static", "-C", "relocation-model=static"]);
    for name in NOT_OURS {
        cargo.env_remove(name);
    }
    // For another processor the machine's own `cc` can't link, and rustc's linker can, unless something else is chosen.
    let linker = format!("CARGO_TARGET_{}_LINKER", target.to_uppercase().replace('-', "_"));
    let foreign = variable("HOST")?.to_str().is_none_or(|host| host.split('-').next() != Some(&arch));
    if target.ends_with("-musl") && foreign && env::var_os(&linker).is_none() {
        cargo.env(&linker, "rust-lld");
    }
    let status = cargo.status()?;
    if !status.success() {
        return Err(format!("podbay-agent could not be built for {target}: {status}").into());
    }
    // By rename: an earlier one may be running.
    let new = out.join("podbay-agent.new");
    fs::copy(target_dir.join(&target).join(PROFILE).join("podbay-agent"), &new)?;
    fs::rename(new, out.join("podbay-agent"))?;
    println!("cargo::rustc-env=PODBAY_AGENT_TARGET={target}");
    Ok(())
}

/// Whether the compiler has a standard library for a target.
fn installed(target: &str) -> Result<bool, Box<dyn Error>> {
    let output = Command::new(variable("RUSTC")?).args(["--print", "target-libdir", "--target", target]).output()?;
    if !output.status.success() {
        return Ok(false);
    }
    // …/lib/rustlib/TARGET/lib. `rustup target add` changes the list of components: then decide anew.
    let library = PathBuf::from(String::from_utf8(output.stdout)?.trim());
    if let Some(components) = library.ancestors().nth(2).map(|rustlib| rustlib.join("components"))
        && components.exists()
    {
        println!("cargo::rerun-if-changed={}", components.display());
    }
    Ok(library.is_dir())
}

fn variable(name: &str) -> Result<OsString, Box<dyn Error>> {
    env::var_os(name).ok_or_else(|| format!("{name} is not set: this is a build script of Cargo's").into())
}
