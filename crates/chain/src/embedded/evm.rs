//! Executing transactions on a [`World`].

use alloy_primitives::{Address, Bytes, Log, TxKind, U256};
use revm::context::result::{EVMError, ExecutionResult, InvalidTransaction, ResultAndState};
use revm::context::{BlockEnv, CfgEnv, TxEnv};
use revm::database::{CacheDB, EmptyDB};
use revm::primitives::hardfork::SpecId;
use revm::{Context, DatabaseCommit, DatabaseRef, ExecuteEvm, MainBuilder, MainContext};

use super::EMBEDDED_CHAIN_ID;
use super::store::World;

/// Price of gas: 1 gwei, so that fees show.
pub(super) const GAS_PRICE_WEI: u64 = 1_000_000_000;
/// Gas that one transaction may use; the caller's balance must cover it.
const GAS_LIMIT: u64 = 10_000_000;

/// What an execution gave.
#[derive(Debug)]
pub(super) struct Executed {
    pub(super) gas: u64,
    pub(super) output: Bytes,
    pub(super) logs: Vec<Log>,
    pub(super) created: Option<Address>,
}

/// Why an execution gave nothing.
#[derive(Debug)]
pub(super) enum Failed {
    /// The contract's reason, encoded.
    Reverted(Bytes),
    /// The caller's balance does not cover the gas.
    Funds { balance: U256, needed: U256 },
}

/// Executes in a new block at `time` and keeps the outcome. A failed transaction leaves no trace.
pub(super) fn transact(
    world: &mut World,
    time: u64,
    caller: Address,
    kind: TxKind,
    data: Bytes,
) -> Result<Executed, Failed> {
    let block = world.block + 1;
    let (executed, state) = run(world, block, time, GAS_PRICE_WEI, caller, kind, data)?;
    world.db.commit(state);
    world.db.cache.logs.clear();
    world.block = block;
    world.time = time;
    Ok(executed)
}

/// Executes in the newest block and keeps nothing: a read, or a dry run. Charges nothing.
pub(super) fn call(
    world: &World,
    time: u64,
    caller: Address,
    to: Address,
    data: Bytes,
) -> Result<Executed, Failed> {
    run(world, world.block, time, 0, caller, TxKind::Call(to), data).map(|(executed, _)| executed)
}

fn run(
    world: &World,
    block: u64,
    time: u64,
    gas_price: u64,
    caller: Address,
    kind: TxKind,
    data: Bytes,
) -> Result<(Executed, revm::state::EvmState), Failed> {
    let nonce = world
        .db
        .basic_ref(caller)
        .expect("an empty database behind the cache cannot fail")
        .map_or(0, |info| info.nonce);
    let tx = TxEnv {
        caller,
        gas_limit: GAS_LIMIT,
        gas_price: u128::from(gas_price),
        kind,
        data,
        nonce,
        chain_id: Some(EMBEDDED_CHAIN_ID),
        ..TxEnv::default()
    };
    let block = BlockEnv {
        number: U256::from(block),
        timestamp: U256::from(time),
        basefee: gas_price,
        ..BlockEnv::default()
    };
    let mut cfg = CfgEnv::new_with_spec(SpecId::CANCUN);
    cfg.chain_id = EMBEDDED_CHAIN_ID;
    let mut evm = Context::mainnet()
        .with_db(CacheDB::new(&world.db))
        .with_cfg(cfg)
        .with_block(block)
        .build_mainnet();
    judge(evm.transact(tx))
}

fn judge(
    result: Result<ResultAndState, EVMError<<CacheDB<EmptyDB> as DatabaseRef>::Error>>,
) -> Result<(Executed, revm::state::EvmState), Failed> {
    let ResultAndState { result, state } = match result {
        Ok(result) => result,
        Err(EVMError::Transaction(InvalidTransaction::LackOfFundForMaxFee { fee, balance })) => {
            return Err(Failed::Funds { balance: *balance, needed: *fee });
        }
        Err(error) => unreachable!("we build valid transactions over memory, yet: {error}"),
    };
    let gas = result.tx_gas_used();
    match result {
        ExecutionResult::Success { logs, output, .. } => {
            let created = output.address().copied();
            Ok((Executed { gas, output: output.into_data(), logs, created }, state))
        }
        ExecutionResult::Revert { output, .. } => Err(Failed::Reverted(output)),
        ExecutionResult::Halt { .. } => Err(Failed::Reverted(Bytes::new())),
    }
}
