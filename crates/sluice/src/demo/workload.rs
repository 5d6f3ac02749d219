//! The demo's workload and its client: a web server with one file, and a download of it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context as TaskContext, Poll, Waker};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Frame, SizeHint};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Bytes of a body's chunk.
const CHUNK: usize = 256 * 1024;

/// What the web server serves.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// So many bytes that no one can compress or guess.
    Made(u64),
    /// A file of the user's.
    File(Arc<PathBuf>),
}

impl Content {
    /// Its length and SHA-256, read as the server reads it but not from the server.
    pub(crate) fn digest(&self) -> Result<(u64, [u8; 32])> {
        let mut body = self.open()?;
        let mut hasher = Sha256::new();
        let mut len = 0;
        while let Some(chunk) = body.read(u64::MAX)? {
            hasher.update(&chunk);
            len += chunk.len() as u64;
        }
        Ok((len, hasher.finalize().into()))
    }

    fn open(&self) -> Result<ContentBody> {
        match self {
            Self::Made(len) => {
                let source = Source::Made(0x5EED_0F5A_1D1C_E000);
                Ok(ContentBody { len: *len, left: *len, source, hold: None })
            }
            Self::File(path) => {
                let context = || format!("failed to read {}", path.display());
                let file = std::fs::File::open(path.as_path()).with_context(context)?;
                let meta = file.metadata().with_context(context)?;
                ensure!(meta.is_file(), "{} is not a file", path.display());
                let (len, source) = (meta.len(), Source::File(file));
                Ok(ContentBody { len, left: len, source, hold: None })
            }
        }
    }
}

/// Holds the server back in the middle of its answer until it is released: what comes after crosses
/// another path.
#[derive(Debug)]
pub(crate) struct Hold {
    at: u64,
    open: AtomicBool,
    waiting: Mutex<Option<Waker>>,
}

impl Hold {
    /// Before byte number `at`.
    pub(crate) fn at(at: u64) -> Arc<Self> {
        Arc::new(Self { at, open: AtomicBool::new(false), waiting: Mutex::default() })
    }

    pub(crate) fn release(&self) {
        self.open.store(true, Relaxed);
        if let Some(waker) = self.waiting.lock().take() {
            waker.wake();
        }
    }

    /// How many bytes may go after `served`; none: the waker is kept.
    fn room(&self, served: u64, waker: &Waker) -> u64 {
        *self.waiting.lock() = Some(waker.clone());
        if self.open.load(Relaxed) { u64::MAX } else { self.at.saturating_sub(served) }
    }
}

enum Source {
    Made(u64),
    File(std::fs::File),
}

struct ContentBody {
    len: u64,
    left: u64,
    source: Source,
    hold: Option<Arc<Hold>>,
}

impl ContentBody {
    fn read(&mut self, room: u64) -> std::io::Result<Option<Bytes>> {
        use std::io::Read;
        if self.left == 0 {
            return Ok(None);
        }
        let want = usize::try_from(self.left.min(room)).unwrap_or(CHUNK).min(CHUNK);
        let mut chunk = vec![0; want.next_multiple_of(8)];
        match &mut self.source {
            Source::Made(state) => {
                for word in chunk.as_chunks_mut::<8>().0 {
                    // SplitMix64: fast, and nothing a compressor could use.
                    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
                    let mut z = *state;
                    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
                    *word = (z ^ (z >> 31)).to_le_bytes();
                }
                chunk.truncate(want);
            }
            Source::File(file) => {
                let n = file.read(&mut chunk[..want])?;
                if n == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
                chunk.truncate(n);
            }
        }
        self.left -= chunk.len() as u64;
        Ok(Some(chunk.into()))
    }
}

impl Body for ContentBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let served = self.len - self.left;
        let room = self.hold.as_ref().map_or(u64::MAX, |hold| hold.room(served, cx.waker()));
        if room == 0 {
            return Poll::Pending;
        }
        Poll::Ready(self.read(room).transpose().map(|chunk| chunk.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// A web server on loopback; it ends with the set that it runs in.
pub(crate) async fn serve(
    content: Content,
    hold: Arc<Hold>,
    tasks: &mut JoinSet<()>,
) -> Result<SocketAddr> {
    let listener =
        TcpListener::bind(("127.0.0.1", 0)).await.context("failed to start the web server")?;
    let addr = listener.local_addr()?;
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (content, hold) = (content.clone(), hold.clone());
            connections.spawn(async move {
                let service =
                    service_fn(move |request| answer(content.clone(), hold.clone(), request));
                let served = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                if let Err(error) = served.await {
                    tracing::debug!(%error, "web server connection ended");
                }
            });
        }
    });
    Ok(addr)
}

type Answer = Response<http_body_util::Either<ContentBody, Empty<Bytes>>>;

#[expect(clippy::unused_async, reason = "hyper asks for a future")]
async fn answer(
    content: Content,
    hold: Arc<Hold>,
    request: Request<hyper::body::Incoming>,
) -> Result<Answer> {
    use http_body_util::Either;
    if request.method() != Method::GET || request.uri().path() != "/file" {
        let mut missing = Response::new(Either::Right(Empty::new()));
        *missing.status_mut() = StatusCode::NOT_FOUND;
        return Ok(missing);
    }
    let body = ContentBody { hold: Some(hold), ..content.open()? };
    Ok(Response::new(Either::Left(body)))
}

/// What a download brought.
#[derive(Debug)]
pub(crate) struct Downloaded {
    pub(crate) file_bytes: u64,
    pub(crate) sha256: [u8; 32],
}

/// A socket that counts what passes, both ways: what an account must come to.
struct Counted {
    stream: TcpStream,
    passed: Arc<AtomicU64>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let done = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.passed.fetch_add((buf.filled().len() - before) as u64, Relaxed);
        done
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write(cx, buf);
        if let Poll::Ready(Ok(n)) = &done {
            self.passed.fetch_add(*n as u64, Relaxed);
        }
        done
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Downloads the file by HTTP from `addr`. `passed` counts the bytes of the socket, both ways:
/// the request and the response with their headers.
pub(crate) async fn download(addr: SocketAddr, passed: Arc<AtomicU64>) -> Result<Downloaded> {
    let stream = TcpStream::connect(addr).await.context("failed to reach the tunnel's port")?;
    let stream = Counted { stream, passed };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request =
        Request::get("/file").header("host", "home.example").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await.context("no HTTP response")?;
    ensure!(response.status() == StatusCode::OK, "HTTP status {}", response.status());
    let mut body = response.into_body();
    let (mut file_bytes, mut hasher) = (0, Sha256::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.context("the download broke off")?;
        if let Some(data) = frame.data_ref() {
            hasher.update(data);
            file_bytes += data.len() as u64;
        }
    }
    drop(sender);
    let _ = connection.await;
    Ok(Downloaded { file_bytes, sha256: hasher.finalize().into() })
}
