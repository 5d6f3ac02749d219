//! The contracts in an EVM, without a chain around it.

use alloy_primitives::{Address, Bytes, TxKind, U256};
use revm::context::result::ExecutionResult;
use revm::context::{BlockEnv, CfgEnv, TxEnv};
use revm::database::InMemoryDB;
use revm::primitives::hardfork::SpecId;
use revm::{Context, DatabaseRef, ExecuteCommitEvm, ExecuteEvm, MainBuilder, MainContext};
use sluice_proto::{Amount, ChannelKey, Domain, EthAddress};
use sluice_settlement::{
    ChannelEvent, ChannelSlot, RevertReason, answer, call, channels_code, test_token_code,
};

const CHAIN_ID: u64 = 77;
const DEPLOYER: EthAddress = EthAddress([0xdd; 20]);

pub(crate) struct Evm {
    db: InMemoryDB,
    pub(crate) time: u64,
    pub(crate) channels: EthAddress,
    pub(crate) token: EthAddress,
}

/// What a successful call gave.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) output: Vec<u8>,
    pub(crate) events: Vec<ChannelEvent>,
    pub(crate) logs: usize,
}

impl Evm {
    /// With `Channels` and the test token.
    pub(crate) fn new() -> Self {
        let (channels, token) = (EthAddress::default(), EthAddress::default());
        let mut evm = Self { db: InMemoryDB::default(), time: 1_000_000, channels, token };
        evm.channels = evm.deploy(channels_code());
        evm.token = evm.deploy(test_token_code());
        evm
    }

    pub(crate) fn domain(&self) -> Domain {
        Domain { chain_id: CHAIN_ID, contract: self.channels }
    }

    pub(crate) fn deploy(&mut self, code: Vec<u8>) -> EthAddress {
        let tx = self.tx(DEPLOYER, TxKind::Create, code);
        let result = self.evm().transact(tx).unwrap();
        self.evm().commit(result.state);
        EthAddress(result.result.created_address().unwrap().into())
    }

    /// A transaction; a failed one leaves no trace.
    pub(crate) fn send(
        &mut self,
        from: EthAddress,
        to: EthAddress,
        data: Vec<u8>,
    ) -> Result<Done, RevertReason> {
        let tx = self.tx(from, TxKind::Call(to.0.into()), data);
        let executed = self.evm().transact(tx).unwrap();
        let done = match executed.result {
            ExecutionResult::Success { output, logs, .. } => {
                let ours = logs.iter().filter(|log| log.address.0.0 == self.channels.0);
                let events = ours.filter_map(|log| {
                    let topics: Vec<_> = log.topics().iter().map(|topic| topic.0).collect();
                    ChannelEvent::decode(&topics, &log.data.data)
                });
                let (events, logs) = (events.collect(), logs.len());
                Ok(Done { output: output.into_data().to_vec(), events, logs })
            }
            ExecutionResult::Revert { output, .. } => Err(RevertReason::decode(&output)),
            ExecutionResult::Halt { reason, .. } => panic!("halted: {reason:?}"),
        };
        if done.is_ok() {
            self.evm().commit(executed.state);
        }
        done
    }

    /// A transaction to `Channels`.
    pub(crate) fn channels(
        &mut self,
        from: EthAddress,
        data: Vec<u8>,
    ) -> Result<Done, RevertReason> {
        self.send(from, self.channels, data)
    }

    pub(crate) fn slot(&mut self, key: &ChannelKey) -> Option<ChannelSlot> {
        let data = call::channel(key.id(&self.domain()));
        answer::channel(&self.channels(DEPLOYER, data).unwrap().output).unwrap()
    }

    pub(crate) fn balance(&mut self, account: EthAddress) -> u128 {
        self.balance_in(self.token, account)
    }

    pub(crate) fn balance_in(&mut self, token: EthAddress, account: EthAddress) -> u128 {
        let done = self.send(DEPLOYER, token, call::balance_of(account)).unwrap();
        answer::amount(&done.output).unwrap().0
    }

    /// Mints and approves without bound.
    pub(crate) fn provide(&mut self, account: EthAddress, amount: u128) {
        let (token, channels) = (self.token, self.channels);
        self.send(account, token, call::mint(account, Amount(amount))).unwrap();
        self.send(account, token, call::approve(channels, Amount(u128::MAX))).unwrap();
    }

    fn tx(&self, from: EthAddress, kind: TxKind, data: Vec<u8>) -> TxEnv {
        let caller = Address::from(from.0);
        let nonce = self.db.basic_ref(caller).unwrap().map_or(0, |info| info.nonce);
        let data = Bytes::from(data);
        TxEnv { caller, kind, data, nonce, chain_id: Some(CHAIN_ID), ..TxEnv::default() }
    }

    fn evm(
        &mut self,
    ) -> impl ExecuteCommitEvm<
        Tx = TxEnv,
        ExecutionResult = ExecutionResult,
        State = revm::state::EvmState,
        Error: std::fmt::Debug,
    > {
        let mut cfg = CfgEnv::new_with_spec(SpecId::CANCUN);
        cfg.chain_id = CHAIN_ID;
        let block = BlockEnv { timestamp: U256::from(self.time), ..BlockEnv::default() };
        Context::mainnet().with_db(&mut self.db).with_cfg(cfg).with_block(block).build_mainnet()
    }
}
