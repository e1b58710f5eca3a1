//! Compiles the .proto files with protox: no system protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["src/brickfs.v1/fops.proto", "src/brickfs.v1/admin.proto", "src/brickfs.v1/cluster.proto"];
    let mut compiler = protox::Compiler::new(["src"])?;
    compiler.open_files(files)?.include_imports(true);
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("brickfs.v1.descriptors"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure().bytes(".").compile_fds(compiler.file_descriptor_set())?;
    println!("cargo:rerun-if-changed=src/brickfs.v1");
    Ok(())
}
