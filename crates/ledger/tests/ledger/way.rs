//! The way to a server, which can be cut: what is sent vanishes, and nothing answers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_postgres::Config;
use tokio_postgres::config::Host;

/// The statement whose answer never comes.
const COMMIT: &[u8] = b"COMMIT\0";

/// A listener on loopback, which carries bytes to a server's socket and back.
pub(crate) struct Way {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// The next COMMIT is the last thing that gets through.
    armed: AtomicBool,
    cut: AtomicBool,
    dialled: AtomicU32,
}

impl Way {
    /// To the server with this URL, which listens at a socket in a folder.
    pub(crate) async fn to(url: &str) -> Self {
        let config: Config = url.parse().expect("a URL");
        let [Host::Unix(folder)] = config.get_hosts() else { panic!("{url}") };
        let socket = folder.join(".s.PGSQL.5432");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let address = listener.local_addr().expect("has an address");
        let state = Arc::<State>::default();
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                tokio::spawn(carry(from, socket.clone(), shared.clone()));
            }
        });
        Self { address, state }
    }

    /// The URL of a database at its end.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://sluice@{}/{database}", self.address)
    }

    /// It is cut with the next COMMIT, which is done and never answered.
    pub(crate) fn cut_at_commit(&self) {
        self.state.armed.store(true, SeqCst);
    }

    /// New connections get through again.
    pub(crate) fn mend(&self) {
        self.state.cut.store(false, SeqCst);
    }

    /// Connections that were made while it was cut.
    pub(crate) fn dialled_in_vain(&self) -> u32 {
        self.state.dialled.load(SeqCst)
    }
}

async fn carry(from: TcpStream, socket: PathBuf, state: Arc<State>) {
    let (mut hear, mut say) = from.into_split();
    let mut bytes = vec![0; 64 << 10];
    if state.cut.load(SeqCst) {
        state.dialled.fetch_add(1, SeqCst);
        while hear.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
        return;
    }
    let (mut answers, mut server) =
        UnixStream::connect(socket).await.expect("is there").into_split();
    let lost = Arc::new(AtomicBool::new(false));
    let (seen, is_lost) = (state.clone(), lost.clone());
    let back = tokio::spawn(async move {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(read @ 1..) = answers.read(&mut bytes).await {
            // Once lost a connection stays so.
            is_lost.fetch_or(seen.cut.load(SeqCst), SeqCst);
            if !is_lost.load(SeqCst) && say.write_all(&bytes[..read]).await.is_err() {
                return;
            }
        }
        if is_lost.load(SeqCst) {
            // Its end vanishes too.
            std::future::pending::<()>().await;
        }
    });
    while let Ok(read @ 1..) = hear.read(&mut bytes).await {
        let commits = bytes[..read].windows(COMMIT.len()).any(|part| part == COMMIT);
        let last = commits && state.armed.swap(false, SeqCst);
        lost.fetch_or(state.cut.load(SeqCst), SeqCst);
        if last {
            state.cut.store(true, SeqCst);
        }
        if !lost.load(SeqCst) && server.write_all(&bytes[..read]).await.is_err() {
            break;
        }
    }
    back.abort();
}
