//! The embedded chain's file: a header, every account, every contract's code, a checksum.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use revm::bytecode::Bytecode;
use revm::database::{CacheDB, EmptyDB};
use revm::state::AccountInfo;

use crate::ChainError;

const MAGIC: &[u8; 8] = b"SLUICEEV";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 8 + 4 + 8;
const CHECKSUM_LEN: usize = 32;

/// The chain at one moment.
#[derive(Debug, Default)]
pub(super) struct World {
    /// Counts writes to the file, so that another process's are noticed.
    pub(super) generation: u64,
    /// Number of the newest block.
    pub(super) block: u64,
    /// The newest block's time, Unix seconds.
    pub(super) time: u64,
    /// How far chain time is ahead of the machine's clock, seconds.
    pub(super) ahead_s: u64,
    pub(super) db: CacheDB<EmptyDB>,
}

/// The folder's files.
#[derive(Debug)]
pub(super) struct Store {
    state: PathBuf,
    draft: PathBuf,
    dir: PathBuf,
}

impl Store {
    pub(super) fn new(dir: &Path) -> Self {
        Self {
            state: dir.join("chain.state"),
            draft: dir.join("chain.state.new"),
            dir: dir.to_owned(),
        }
    }

    /// The generation on disk; `None` when there is no file yet.
    pub(super) fn generation(&self) -> Result<Option<u64>, ChainError> {
        let mut file = match File::open(&self.state) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(io("read", &self.state, source)),
        };
        let mut header = [0; HEADER_LEN];
        file.read_exact(&mut header).map_err(|_| self.corrupt("it is cut off"))?;
        self.parse_header(&mut Reader(&header)).map(Some)
    }

    pub(super) fn load(&self) -> Result<World, ChainError> {
        let bytes = std::fs::read(&self.state).map_err(|e| io("read", &self.state, e))?;
        self.parse_header(&mut Reader(&bytes))?;
        let (body, checksum) = bytes
            .split_last_chunk::<CHECKSUM_LEN>()
            .ok_or_else(|| self.corrupt("it is cut off"))?;
        if keccak256(body) != *checksum {
            return Err(self.corrupt("its checksum does not fit"));
        }
        let mut reader = Reader(body);
        let generation = self.parse_header(&mut reader)?;
        read_body(&mut reader, generation)
            .filter(|_| reader.0.is_empty())
            .ok_or_else(|| self.corrupt("its content makes no sense"))
    }

    /// Replaces the file; when this returns the new state is on disk, when it fails the old one is.
    pub(super) fn save(&self, world: &World) -> Result<(), ChainError> {
        let bytes = to_bytes(world);
        let mut file = File::create(&self.draft).map_err(|e| io("write", &self.draft, e))?;
        file.write_all(&bytes)
            .and_then(|()| file.sync_all())
            .map_err(|e| io("write", &self.draft, e))?;
        std::fs::rename(&self.draft, &self.state).map_err(|e| io("replace", &self.state, e))?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(|e| io("sync", &self.dir, e))
    }

    fn parse_header(&self, reader: &mut Reader<'_>) -> Result<u64, ChainError> {
        if reader.take::<8>() != Some(*MAGIC) {
            return Err(self.corrupt("it does not start as such a file does"));
        }
        let version = reader.u32().ok_or_else(|| self.corrupt("it is cut off"))?;
        if version > VERSION {
            let path = self.state.clone();
            return Err(ChainError::Newer { path, found: version, known: VERSION });
        }
        reader.u64().ok_or_else(|| self.corrupt("it is cut off"))
    }

    fn corrupt(&self, reason: &'static str) -> ChainError {
        ChainError::Corrupt { path: self.state.clone(), reason }
    }
}

pub(super) fn io(what: &'static str, path: &Path, source: std::io::Error) -> ChainError {
    ChainError::Io { what, path: path.to_owned(), source }
}

fn to_bytes(world: &World) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_be_bytes());
    for number in [world.generation, world.block, world.time, world.ahead_s] {
        out.extend_from_slice(&number.to_be_bytes());
    }
    let cache = &world.db.cache;
    let mut accounts: Vec<_> = cache.accounts.iter().collect();
    accounts.sort_by_key(|(address, _)| **address);
    put_count(&mut out, accounts.len());
    for (address, account) in accounts {
        out.extend_from_slice(address.as_slice());
        out.extend_from_slice(&account.info.nonce.to_be_bytes());
        out.extend_from_slice(&account.info.balance.to_be_bytes::<32>());
        out.extend_from_slice(account.info.code_hash.as_slice());
        let mut slots: Vec<_> = account.storage.iter().filter(|(_, v)| !v.is_zero()).collect();
        slots.sort();
        put_count(&mut out, slots.len());
        for (key, value) in slots {
            out.extend_from_slice(&key.to_be_bytes::<32>());
            out.extend_from_slice(&value.to_be_bytes::<32>());
        }
    }
    let mut codes: Vec<_> = cache.contracts.values().filter(|code| !code.is_empty()).collect();
    codes.sort_by_key(|code| code.hash_slow());
    put_count(&mut out, codes.len());
    for code in codes {
        let bytes = code.original_bytes();
        put_count(&mut out, bytes.len());
        out.extend_from_slice(&bytes);
    }
    let checksum = keccak256(&out);
    out.extend_from_slice(checksum.as_slice());
    out
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    let count = u32::try_from(count).expect("a development chain stays below 2^32 of anything");
    out.extend_from_slice(&count.to_be_bytes());
}

fn read_body(reader: &mut Reader<'_>, generation: u64) -> Option<World> {
    let mut world = World {
        generation,
        block: reader.u64()?,
        time: reader.u64()?,
        ahead_s: reader.u64()?,
        ..World::default()
    };
    for _ in 0..reader.u32()? {
        let address = Address::from(reader.take::<20>()?);
        let info = AccountInfo {
            nonce: reader.u64()?,
            balance: reader.word()?,
            code_hash: B256::from(reader.take::<32>()?),
            // To be looked up by its hash among the codes below.
            code: None,
            ..AccountInfo::default()
        };
        world.db.insert_account_info(address, info);
        for _ in 0..reader.u32()? {
            let (slot, value) = (reader.word()?, reader.word()?);
            world.db.insert_account_storage(address, slot, value).ok()?;
        }
    }
    for _ in 0..reader.u32()? {
        let len = usize::try_from(reader.u32()?).ok()?;
        let code = Bytecode::new_raw(Bytes::copy_from_slice(reader.slice(len)?));
        world.db.cache.contracts.insert(code.hash_slow(), code);
    }
    Some(world)
}

/// Takes from the front; `None` at the end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn slice(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.slice(N)?.try_into().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    fn word(&mut self) -> Option<U256> {
        self.take().map(U256::from_be_bytes::<32>)
    }
}
