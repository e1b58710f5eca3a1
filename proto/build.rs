//! Compiles the .proto files with protox: no system protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["src/brickfs.v1/fops.proto", "src/brickfs.v1/admin.proto"];
    let descriptors = protox::compile(files, ["src"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=src/brickfs.v1");
    Ok(())
}
