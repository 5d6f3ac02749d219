//! EIP-1559 transactions: `0x02 || rlp([chain, nonce, tip, max fee, gas, to, value, data, access
//! list, parity, r, s])`, signed over the Keccak-256 of the same without the last three.

use alloy_rlp::Encodable;
use sluice_proto::eth::keccak256;
use sluice_proto::{EthAddress, WalletKey};

/// EIP-2718's type byte.
const TYPE_EIP1559: u8 = 2;

/// A call of a contract, without value and access list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Transaction {
    pub(super) chain_id: u64,
    pub(super) nonce: u64,
    pub(super) tip_wei: u128,
    pub(super) fee_wei_max: u128,
    pub(super) gas_limit: u64,
    pub(super) to: EthAddress,
    pub(super) data: Vec<u8>,
}

impl Transaction {
    /// The raw bytes to send, and their hash.
    pub(super) fn sign(&self, wallet: &WalletKey) -> (Vec<u8>, [u8; 32]) {
        let signature = wallet.sign(keccak256(&self.encode(None))).0;
        let raw = self.encode(Some(&signature));
        let hash = keccak256(&raw);
        (raw, hash)
    }

    fn encode(&self, signature: Option<&[u8; 65]>) -> Vec<u8> {
        let no_access_list: Vec<u8> = Vec::new();
        let mut fields: Vec<&dyn Encodable> = vec![
            &self.chain_id,
            &self.nonce,
            &self.tip_wei,
            &self.fee_wei_max,
            &self.gas_limit,
            &self.to.0,
            &0_u8,
        ];
        let data = &self.data[..];
        fields.push(&data);
        fields.push(&no_access_list);
        let parts =
            signature.map(|bytes| (bytes[64] == 28, number(&bytes[..32]), number(&bytes[32..64])));
        if let Some((parity, r, s)) = &parts {
            fields.extend([parity as &dyn Encodable, r, s]);
        }
        let mut out = vec![TYPE_EIP1559];
        alloy_rlp::encode_list::<_, dyn Encodable>(&fields, &mut out);
        out
    }
}

/// RLP writes numbers without leading zeros.
fn number(word: &[u8]) -> &[u8] {
    let zeros = word.iter().take_while(|byte| **byte == 0).count();
    &word[zeros..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_signed_byte_for_byte_as_another_implementation_does() {
        // By anvil's `eth_signTransaction` with its first account: parity 1.
        const RAW: &str = "02f871827a6907843b9aca008477359400830123459400000000000000000000000000000000\
                           000000aa8084deadbeefc001a02a04aa1807245f93978fc9c95e5af4cafa7b97c934c589d960\
                           bc921971eead0ea00ea5f49baff4420bbb5e98dcd596da66ce40450a0a4656441e182239e1a2\
                           cb23";
        let mut secret = [0; 32];
        let well_known = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
        hex::decode_to_slice(well_known, &mut secret).unwrap();
        let mut to = EthAddress::default();
        to.0[19] = 0xaa;
        let transaction = Transaction {
            chain_id: 31_337,
            nonce: 7,
            tip_wei: 1_000_000_000,
            fee_wei_max: 2_000_000_000,
            gas_limit: 0x1_2345,
            to,
            data: vec![0xde, 0xad, 0xbe, 0xef],
        };
        let (raw, hash) = transaction.sign(&WalletKey::from_bytes(secret).unwrap());
        assert_eq!(hex::encode(&raw), RAW);
        assert_eq!(hash, keccak256(&raw));
    }

    #[test]
    fn numbers_are_written_without_leading_zeros() {
        assert_eq!(number(&[0, 0, 1, 0]), [1, 0]);
        assert_eq!(number(&[0, 0]), [0; 0]);
    }
}
