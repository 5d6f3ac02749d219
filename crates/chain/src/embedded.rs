//! A chain in a folder: the EVM in this process, its state in one file.

mod evm;
mod store;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use alloy_primitives::{Address, Bytes, TxKind, U256};
use sluice_proto::eth::keccak256;
use sluice_proto::{Amount, Domain, EthAddress};
use sluice_settlement::{ChannelEvent, RevertReason, call, channels_code, test_token_code};

use self::evm::{Executed, Failed, GAS_PRICE_WEI};
use self::store::{Store, World, io};
use crate::{ChainError, FeeEstimate, TxReceipt};

/// The embedded chain's id (EIP-155): not a public network's, nor a development node's 31337.
pub const EMBEDDED_CHAIN_ID: u64 = 0x0051_11CE;

/// Account that deploys the contracts; nobody has its key.
const DEPLOYER: Address = Address::repeat_byte(0xde);
/// What [`fund`](Embedded::fund) tops an account's gas money up to: 10 coins.
const GAS_MONEY_WEI: u128 = 10_000_000_000_000_000_000;

/// A development chain in a folder. Several handles, also of several processes on one machine, may
/// share the folder: each operation holds its lock and sees what the others did. Each transaction
/// is a block of its own and final at once. Time is the machine's clock plus what
/// [`Chain::advance_dev`](crate::Chain::advance_dev) added.
#[derive(Debug, Clone)]
pub struct Embedded {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    lock_path: PathBuf,
    lock: File,
    /// As read last; `None` when it must be read again.
    world: Mutex<Option<World>>,
    /// Held from approving a deposit until it was taken.
    spending: tokio::sync::Mutex<()>,
}

impl Embedded {
    pub(crate) fn open(dir: &Path) -> Result<Self, ChainError> {
        std::fs::create_dir_all(dir).map_err(|e| io("create", dir, e))?;
        let lock_path = dir.join("chain.lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|e| io("open", &lock_path, e))?;
        let shared = Shared {
            store: Store::new(dir),
            lock_path,
            lock,
            world: Mutex::default(),
            spending: tokio::sync::Mutex::default(),
        };
        shared.with_world(|_| Ok(()))?;
        Ok(Self { shared: Arc::new(shared) })
    }

    pub(crate) fn domain() -> Domain {
        Domain { chain_id: EMBEDDED_CHAIN_ID, contract: EthAddress(channels_address().into()) }
    }

    pub(crate) const fn gas_price_wei() -> u128 {
        GAS_PRICE_WEI as u128
    }

    pub(crate) fn spending(&self) -> &tokio::sync::Mutex<()> {
        &self.shared.spending
    }

    pub(crate) fn token() -> EthAddress {
        EthAddress(token_address().into())
    }

    pub(crate) async fn call(&self, to: EthAddress, data: Vec<u8>) -> Result<Vec<u8>, ChainError> {
        self.blocking("read the chain", EthAddress::default(), move |world| {
            let time = time(world);
            evm::call(world, time, Address::ZERO, to.0.into(), data.into())
                .map(|executed| executed.output.into())
        })
        .await
    }

    pub(crate) async fn estimate(
        &self,
        what: &'static str,
        caller: EthAddress,
        to: EthAddress,
        data: Vec<u8>,
    ) -> Result<FeeEstimate, ChainError> {
        self.blocking(what, caller, move |world| {
            let time = time(world);
            let executed = evm::call(world, time, caller.0.into(), to.0.into(), data.into())?;
            Ok(FeeEstimate { gas: executed.gas, fee_wei: fee_wei(executed.gas) })
        })
        .await
    }

    pub(crate) async fn send(
        &self,
        what: &'static str,
        caller: EthAddress,
        to: EthAddress,
        data: Vec<u8>,
    ) -> Result<TxReceipt, ChainError> {
        self.blocking(what, caller, move |world| {
            let kind = TxKind::Call(to.0.into());
            let hash = transaction_hash(world, caller, to, &data);
            let time = time(world);
            let executed = evm::transact(world, time, caller.0.into(), kind, data.into())?;
            Ok(receipt(world, hash, &executed))
        })
        .await
    }

    /// Tops the account's gas money up and mints tokens for it.
    pub(crate) async fn fund(&self, account: EthAddress, tokens: Amount) -> Result<(), ChainError> {
        self.blocking("give test money", account, move |world| {
            top_up_coins(world, account.0.into());
            if tokens.0 == 0 {
                return Ok(());
            }
            top_up_coins(world, DEPLOYER);
            let mint = Bytes::from(call::mint(account, tokens));
            let time = time(world);
            evm::transact(world, time, DEPLOYER, TxKind::Call(token_address()), mint)?;
            Ok(())
        })
        .await
    }

    pub(crate) async fn coin_balance(&self, account: EthAddress) -> Result<u128, ChainError> {
        self.blocking("read the chain", account, move |world| {
            let address = Address::from(account.0);
            let balance = world.db.cache.accounts.get(&address).map(|a| a.info.balance);
            Ok(balance.unwrap_or_default().saturating_to())
        })
        .await
    }

    pub(crate) async fn now_unix_s(&self) -> Result<u64, ChainError> {
        self.blocking("read the chain", EthAddress::default(), |world| Ok(time(world))).await
    }

    pub(crate) async fn advance(&self, seconds: u64) -> Result<(), ChainError> {
        self.blocking("advance time", EthAddress::default(), move |world| {
            world.ahead_s = world.ahead_s.saturating_add(seconds);
            world.time = time(world);
            world.block += 1;
            Ok(())
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        what: &'static str,
        caller: EthAddress,
        work: impl FnOnce(&mut World) -> Result<T, Failed> + Send + 'static,
    ) -> Result<T, ChainError> {
        let shared = Arc::clone(&self.shared);
        let work = move || {
            shared.with_world(|world| work(world).map_err(|failed| explain(failed, what, caller)))
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

impl Shared {
    /// Runs `work` on the newest state, alone among all handles of the folder, and saves what it
    /// changed before anybody can see it.
    fn with_world<T>(
        &self,
        work: impl FnOnce(&mut World) -> Result<T, ChainError>,
    ) -> Result<T, ChainError> {
        let mut slot = self.world.lock().unwrap_or_else(PoisonError::into_inner);
        self.lock.lock().map_err(|e| io("lock", &self.lock_path, e))?;
        let _unlock = Unlock(&self.lock);
        let mut world = self.newest(slot.take())?;
        let before = (world.block, world.ahead_s);
        let result = work(&mut world);
        if (world.block, world.ahead_s) != before {
            world.generation += 1;
            self.store.save(&world)?;
        }
        *slot = Some(world);
        result
    }

    /// The state on disk, which is `cached` unless another handle has written since.
    fn newest(&self, cached: Option<World>) -> Result<World, ChainError> {
        match (self.store.generation()?, cached) {
            (Some(on_disk), Some(world)) if world.generation == on_disk => Ok(world),
            (Some(_), _) => self.store.load(),
            (None, _) => {
                let world = genesis();
                self.store.save(&world)?;
                Ok(world)
            }
        }
    }
}

/// Gives the folder's lock back, also when the work panics.
struct Unlock<'a>(&'a File);

impl Drop for Unlock<'_> {
    fn drop(&mut self) {
        // Closing the file would give it back as well.
        let _ = self.0.unlock();
    }
}

fn channels_address() -> Address {
    DEPLOYER.create(0)
}

fn token_address() -> Address {
    DEPLOYER.create(1)
}

/// A new chain with both contracts deployed.
fn genesis() -> World {
    let mut world = World { generation: 1, ..World::default() };
    top_up_coins(&mut world, DEPLOYER);
    for (code, address) in
        [(channels_code(), channels_address()), (test_token_code(), token_address())]
    {
        let now = clock_unix_s();
        let created = evm::transact(&mut world, now, DEPLOYER, TxKind::Create, code.into())
            .expect("our own contracts deploy on an empty chain")
            .created;
        assert_eq!(created, Some(address), "the deployer's first two transactions");
    }
    world
}

fn top_up_coins(world: &mut World, address: Address) {
    let account = world.db.cache.accounts.entry(address).or_default();
    let mut info = account.info.clone();
    if info.balance < U256::from(GAS_MONEY_WEI) {
        info.balance = U256::from(GAS_MONEY_WEI);
        world.db.insert_account_info(address, info);
        world.block += 1;
    }
}

fn receipt(world: &World, hash: [u8; 32], executed: &Executed) -> TxReceipt {
    let events = executed.logs.iter().filter(|log| log.address == channels_address());
    let events = events.filter_map(|log| {
        let topics: Vec<[u8; 32]> = log.topics().iter().map(|topic| topic.0).collect();
        ChannelEvent::decode(&topics, &log.data.data)
    });
    TxReceipt {
        hash,
        gas: executed.gas,
        gas_approval: 0,
        fee_wei: fee_wei(executed.gas),
        block: world.block,
        events: events.collect(),
    }
}

fn fee_wei(gas: u64) -> u128 {
    u128::from(gas) * u128::from(GAS_PRICE_WEI)
}

/// Unique among this chain's transactions, since each is a block of its own.
fn transaction_hash(world: &World, caller: EthAddress, to: EthAddress, data: &[u8]) -> [u8; 32] {
    let numbers = [EMBEDDED_CHAIN_ID.to_be_bytes(), world.block.to_be_bytes()].concat();
    keccak256(&[&numbers, &caller.0[..], &to.0[..], data].concat())
}

fn explain(failed: Failed, what: &'static str, account: EthAddress) -> ChainError {
    match failed {
        Failed::Reverted(data) => {
            ChainError::Reverted { what, reason: RevertReason::decode(&data) }
        }
        Failed::Funds { balance, needed } => ChainError::InsufficientFunds {
            account,
            what,
            reason: format!("it has {balance} wei and the transaction may need {needed} wei"),
        },
    }
}

/// Chain time never goes back, even if the machine's clock does.
fn time(world: &World) -> u64 {
    clock_unix_s().saturating_add(world.ahead_s).max(world.time)
}

fn clock_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
