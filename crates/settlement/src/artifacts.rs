//! The committed artifacts, embedded.

const CHANNELS: &str = include_str!("../contracts/artifacts/Channels.json");
const TEST_TOKEN: &str = include_str!("../contracts/artifacts/TestToken.json");

/// Creation code of `Channels`; its constructor takes no arguments.
#[must_use]
pub fn channels_code() -> Vec<u8> {
    creation_code(CHANNELS)
}

/// Creation code of `TestToken`, a token that anyone may mint: for development chains only.
#[must_use]
pub fn test_token_code() -> Vec<u8> {
    creation_code(TEST_TOKEN)
}

fn creation_code(artifact: &str) -> Vec<u8> {
    let (_, rest) =
        artifact.split_once("\"bytecode\": \"0x").expect("build.mjs writes the field so");
    let (digits, _) = rest.split_once('"').expect("a JSON string ends");
    hex::decode(digits).expect("solc writes hex")
}
