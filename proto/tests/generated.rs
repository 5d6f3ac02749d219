//! The committed generated code is what the `.proto` files give.
//!
//! To regenerate after an edit: `SLUICE_REGENERATE=1 cargo test -p sluice-proto --test generated`.

use std::path::Path;

#[test]
fn generated_code_is_what_the_proto_files_give() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = [
        "pay.proto",
        "control.proto",
        "session.proto",
        "rendezvous.proto",
        "market.proto",
        "record.proto",
        "mesh.proto",
    ];
    let set = protox::compile(files, [root.join("proto")]).expect("the .proto files compile");
    let out = std::env::temp_dir().join(format!("sluice-proto-{}", std::process::id()));
    std::fs::create_dir_all(&out).expect("a temporary folder");
    prost_build::Config::new()
        .bytes(["."])
        .out_dir(&out)
        .compile_fds(set)
        .expect("code is generated");
    for package in ["pay", "control", "session", "rendezvous", "market", "record", "mesh"] {
        let name = format!("sluice.{package}.v1.rs");
        let fresh = std::fs::read_to_string(out.join(&name)).expect("generated file");
        let committed = root.join("src/generated").join(&name);
        if std::env::var_os("SLUICE_REGENERATE").is_some() {
            std::fs::write(&committed, &fresh).expect("the generated file is written");
        }
        let old = std::fs::read_to_string(&committed).unwrap_or_default();
        assert!(old == fresh, "{name} is stale: run with SLUICE_REGENERATE=1");
    }
    std::fs::remove_dir_all(&out).expect("the temporary folder goes");
}
