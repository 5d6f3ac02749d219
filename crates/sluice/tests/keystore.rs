//! Encrypted keystores: the vectors of the Web3 Secret Storage definition, and files that are not.

use sluice::wallet::{Keystore, KeystoreError};
use sluice_proto::WalletKey;

/// "PBKDF2-SHA-256" in the definition's test vectors.
const PBKDF2: &str = r#"{
    "crypto": {
        "cipher": "aes-128-ctr",
        "cipherparams": { "iv": "6087dab2f9fdbbfaddc31a909735c1e6" },
        "ciphertext": "5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46",
        "kdf": "pbkdf2",
        "kdfparams": {
            "c": 262144,
            "dklen": 32,
            "prf": "hmac-sha256",
            "salt": "ae3cd4e7013836a3df6bd7241b12db061dbe2c6785853cce422d148a624ce0bd"
        },
        "mac": "517ead924a9d0dc3124507e3393d175ce3ff7c1e96529c6c555ce9e51205e9b2"
    },
    "id": "3198bc9c-6672-5ab3-d995-4942343ae5b6",
    "version": 3
}"#;

/// "Scrypt" there.
const SCRYPT: &str = r#"{
    "crypto": {
        "cipher": "aes-128-ctr",
        "cipherparams": { "iv": "83dbcc02d8ccb40e466191a123791e0e" },
        "ciphertext": "d172bf743a674da9cdad04534d56926ef8358534d458fffccd4e6ad2fbde479c",
        "kdf": "scrypt",
        "kdfparams": {
            "dklen": 32,
            "n": 262144,
            "r": 1,
            "p": 8,
            "salt": "ab0c7876052600dd703518d6fc3fe8984592145b591fc8fb5c6d43190334ba19"
        },
        "mac": "2103ac29920d71da29f15d75b4a16dbe95cfd7ff8faea1056c33131d846e3097"
    },
    "id": "3198bc9c-6672-5ab3-d995-4942343ae5b6",
    "version": 3
}"#;

const PASSWORD: &[u8] = b"testpassword";
const SECRET: &str = "7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d";

fn parse(text: &str) -> Keystore {
    Keystore::parse(text.as_bytes()).expect("is a keystore")
}

/// What is said of a vector with one text replaced by another.
fn refusal(vector: &str, from: &str, to: &str) -> KeystoreError {
    assert!(vector.contains(from), "{from}");
    match Keystore::parse(vector.replace(from, to).as_bytes()) {
        Ok(keystore) => keystore.unlock(PASSWORD).expect_err(to),
        Err(error) => error,
    }
}

#[test]
fn the_vectors_of_the_definition_are_unlocked() {
    for vector in [PBKDF2, SCRYPT] {
        let key = parse(vector).unlock(PASSWORD).expect("the passphrase is right");
        assert_eq!(hex::encode(key.secret_bytes()), SECRET);
    }
}

#[test]
fn a_wrong_passphrase_and_a_flipped_bit_are_told() {
    assert_eq!(parse(PBKDF2).unlock(b"testpassworD").err(), Some(KeystoreError::Passphrase));
    assert_eq!(parse(PBKDF2).unlock(b"").err(), Some(KeystoreError::Passphrase));
    let flipped = refusal(PBKDF2, "5318b4d5", "5318b4d4");
    assert_eq!(flipped, KeystoreError::Passphrase);
}

#[test]
fn what_is_locked_here_is_unlocked_here_and_bears_its_address() {
    let key = WalletKey::from_bytes([7; 32]).expect("below the curve's order");
    let keystore = Keystore::lock(&key, "Füße und Hände".as_bytes(), &[9; 64]);
    let text = keystore.to_json();
    assert!(!text.contains(&hex::encode([7; 32])));
    let again = parse(&text);
    assert_eq!(again.address(), Ok(Some(key.address())));
    let found = again.unlock("Füße und Hände".as_bytes()).expect("the passphrase is right");
    assert_eq!(found.secret_bytes(), key.secret_bytes());
    let value: serde_json::Value = serde_json::from_str(&text).expect("is JSON");
    assert_eq!(value["crypto"]["kdf"], "scrypt");
    assert_eq!(value["version"], 3);
    let id = value["id"].as_str().expect("an id");
    assert_eq!((id.len(), &id[14..15]), (36, "4"), "a random UUID: {id}");
}

#[test]
fn a_field_that_is_malformed_or_out_of_bounds_is_named() {
    let named = |vector, from, to, wanted: &str| {
        let refused = refusal(vector, from, to);
        let KeystoreError::Field { field, .. } = &refused else { panic!("{to}: {refused}") };
        assert_eq!(*field, wanted, "{to}");
    };
    named(SCRYPT, "aes-128-ctr", "aes-128-cbc", "cipher");
    named(SCRYPT, "83dbcc02d8", "83dbcc02", "iv");
    named(SCRYPT, "d172bf74", "z172bf74", "ciphertext");
    named(SCRYPT, "2103ac29", "21", "mac");
    named(SCRYPT, "\"dklen\": 32", "\"dklen\": 64", "dklen");
    named(SCRYPT, "262144", "262143", "n");
    named(SCRYPT, "262144", "0", "n");
    named(SCRYPT, "262144", "1099511627776", "n");
    named(SCRYPT, "\"r\": 1", "\"r\": 0", "n");
    named(SCRYPT, "\"p\": 8", "\"p\": 0", "p");
    named(SCRYPT, "\"p\": 8", "\"p\": 4294967295", "p");
    named(SCRYPT, "ab0c7876", "xx0c7876", "salt");
    named(PBKDF2, "hmac-sha256", "hmac-md5", "prf");
    named(PBKDF2, "262144", "0", "c");
    named(PBKDF2, "262144", "4000000000", "c");
}

#[test]
fn what_is_no_keystore_is_said() {
    assert_eq!(refusal(SCRYPT, "\"version\": 3", "\"version\": 1"), KeystoreError::Version(1));
    for (from, to) in [("\"kdf\": \"scrypt\"", "\"kdf\": \"argon2\""), ("\"mac\"", "\"mack\"")] {
        let error = refusal(SCRYPT, from, to);
        assert!(matches!(error, KeystoreError::Form(_)), "{error}");
    }
    for text in ["", "{}", "[]", "nonsense", "{\"version\": \"3\"}"] {
        let error = Keystore::parse(text.as_bytes()).expect_err(text);
        assert!(matches!(error, KeystoreError::Form(_)), "{text}: {error}");
    }
}

#[test]
fn a_key_under_anothers_address_is_refused() {
    let stated = "\"version\": 3, \"address\": \"0000000000000000000000000000000000000001\"";
    let error = refusal(PBKDF2, "\"version\": 3", stated);
    assert!(matches!(error, KeystoreError::OtherKey { .. }), "{error}");
}
