//! The wire of BrickFS: protobuf definitions, generated types, and their conversion from and to the
//! domain types of `brickfs-common`. Generated types are used in `convert` and in service files only.

pub mod convert;

/// Generated types of `brickfs.v1`.
#[allow(missing_docs, clippy::unwrap_used, clippy::wildcard_imports, clippy::too_many_lines)]
pub mod v1 {
    tonic::include_proto!("brickfs.v1");
}

/// The encoded FileDescriptorSet of all services and messages, so that what must hold for every RPC can be checked.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/brickfs.v1.descriptors"));

/// HTTP/2 frame size of both sides in bytes (the default of 16 KiB costs a third of all throughput).
pub const FRAME_BYTES: u32 = 1 << 20;
/// HTTP/2 window of the one stream in bytes.
pub const STREAM_WINDOW_BYTES: u32 = 8 << 20;
/// HTTP/2 window of the connection in bytes.
pub const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
