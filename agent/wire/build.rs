//! Compiles the link's messages with protox (no system `protoc`).

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=../../proto/podbay/agent");
    let descriptors = protox::compile(["podbay/agent/v1/link.proto"], ["../../proto"])?;
    prost_build::Config::new()
        // `bytes` fields are `bytes::Bytes`: a slice of the received buffer, not a copy.
        .bytes(["."])
        // Environment, arguments and files may be secrets: `proto.rs` says what a log may see of these.
        .skip_debug(["podbay.agent.v1.Start", "podbay.agent.v1.Variable", "podbay.agent.v1.WriteFile"])
        .compile_fds(descriptors)?;
    Ok(())
}
