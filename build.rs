//! Compiles `proto/` with protox (no system `protoc`) and feeds tonic's generator.

use prost::Message as _;
use std::{env, error::Error, fs, path::PathBuf};

const FILES: [&str; 3] = ["podbay/v1/common.proto", "podbay/v1/connection.proto", "podbay/v1/session.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/podbay");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // `bytes` fields are `bytes::Bytes`: a slice of the received buffer, not a copy.
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
