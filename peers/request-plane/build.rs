//! Describes the gRPC service of the comparison, without a protocol file.

use tonic_build::manual::{Builder, Method, Service};

fn main() {
    let tokens = Method::builder()
        .name("tokens")
        .route_name("Tokens")
        .input_type("crate::grpc::Count")
        .output_type("crate::grpc::Token")
        .codec_path("tonic_prost::ProstCodec")
        .server_streaming()
        .build();
    let service = Service::builder().name("Bench").package("bench").method(tokens).build();
    Builder::new().compile(&[service]);
}
