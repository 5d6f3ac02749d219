//! A way to a node that can be cut, and that can lie.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

/// Longest request that is read.
const REQUEST_MAX: usize = 1 << 20;
/// Bytes of an answer that is too long for any method.
const FLOOD: usize = 64 << 20;
/// Longest wait for a request, so that no thread is left behind.
const PATIENCE: Duration = Duration::from_secs(30);

/// What becomes of requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mood {
    /// The node answers.
    Honest,
    /// Connections end at once.
    Refuses,
    /// Nothing is answered, ever.
    Hangs,
    /// HTTP status 503.
    Overloaded,
    /// HTTP status 200, and a page for people.
    Rubbish,
    /// An answer that does not end for a long time.
    Floods,
    /// It says that it is of chain 1, and forgot what it had been asked.
    OtherChain,
    /// The node answers, but this is what it says of each channel: deposit, redeemed, end, period.
    Slot([u64; 4]),
    /// The node answers, but it counts one transaction of each account too many.
    Ahead,
    /// The node answers, but what is at this path of the results of this method is something else,
    /// or missing.
    Field(&'static str, Vec<String>, Option<Value>),
}

/// A way to a node; it leads there until the process ends.
#[derive(Debug, Clone)]
pub struct Way {
    url: String,
    mood: Arc<(Mutex<Mood>, Condvar)>,
}

impl Way {
    /// Begins one to a node of this URL.
    ///
    /// # Errors
    /// When no port is free.
    pub fn to(node: &str) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}", listener.local_addr()?);
        let way = Self { url, mood: Arc::new((Mutex::new(Mood::Honest), Condvar::new())) };
        let (own, node) = (way.clone(), node.to_owned());
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let (way, node) = (own.clone(), node.clone());
                std::thread::spawn(move || way.carry(near, &node));
            }
        });
        Ok(way)
    }

    /// Its own URL.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What becomes of requests from now on.
    pub fn set(&self, mood: Mood) {
        *self.now() = mood;
        self.mood.1.notify_all();
    }

    fn now(&self) -> MutexGuard<'_, Mood> {
        self.mood.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries one request to the node, and its answer back.
    fn carry(&self, mut near: TcpStream, node: &str) -> Option<()> {
        near.set_read_timeout(Some(PATIENCE)).ok()?;
        let mood = self.now().clone();
        if mood == Mood::Refuses {
            return None;
        }
        let request = body(&mut near)?;
        match mood {
            Mood::Refuses => None,
            Mood::Hangs => {
                let is_over = |mood: &mut Mood| *mood == Mood::Hangs;
                drop(self.mood.1.wait_while(self.now(), is_over));
                None
            }
            Mood::Overloaded => answer(&mut near, "503 Service Unavailable", b"later"),
            Mood::Rubbish => answer(&mut near, "200 OK", b"<html>Sign in to this network</html>"),
            Mood::Floods => answer(&mut near, "200 OK", &vec![b' '; FLOOD]),
            Mood::Honest | Mood::OtherChain | Mood::Slot(_) | Mood::Ahead | Mood::Field(..) => {
                let mut far = TcpStream::connect(node.strip_prefix("http://")?).ok()?;
                far.set_read_timeout(Some(PATIENCE)).ok()?;
                let text = request.to_string();
                let head = "Connection: close\r\nContent-Type: application/json\r\n";
                let len = text.len();
                write!(
                    far,
                    "POST / HTTP/1.1\r\nHost: {node}\r\n{head}Content-Length: {len}\r\n\r\n{text}"
                )
                .ok()?;
                let mut told = body(&mut far)?;
                mood.spoil(&request, &mut told);
                answer(&mut near, "200 OK", told.to_string().as_bytes())
            }
        }
    }
}

impl Mood {
    fn spoil(&self, request: &Value, answer: &mut Value) {
        let method = &request["method"];
        match self {
            Self::OtherChain if method == "eth_chainId" => answer["result"] = json!("0x1"),
            Self::OtherChain => {
                answer["result"] = Value::Null;
            }
            Self::Slot(slot) if method == "eth_call" => {
                let words: String = slot.iter().map(|word| format!("{word:064x}")).collect();
                answer["result"] = json!(format!("0x{words}"));
            }
            Self::Ahead if method == "eth_getTransactionCount" => {
                let is_pending = request["params"][1] == "pending";
                let hex = answer["result"].as_str().filter(|_| is_pending);
                let count = hex.and_then(|hex| u64::from_str_radix(hex.get(2..)?, 16).ok());
                if let Some(count) = count {
                    answer["result"] = json!(format!("{:#x}", count.saturating_add(1)));
                }
            }
            Self::Field(of, path, to) if method == of => {
                spoil(&mut answer["result"], path, to.as_ref());
            }
            Self::Honest
            | Self::Refuses
            | Self::Hangs
            | Self::Overloaded
            | Self::Rubbish
            | Self::Floods
            | Self::Slot(_)
            | Self::Ahead
            | Self::Field(..) => {}
        }
    }
}

/// Puts something else at a path, or takes away what is there. A number in a path is an index.
fn spoil(value: &mut Value, path: &[String], to: Option<&Value>) {
    let Some((last, above)) = path.split_last() else {
        *value = to.cloned().unwrap_or_default();
        return;
    };
    let mut found = value;
    for part in above {
        let next = match part.parse::<usize>() {
            Ok(index) => found.get_mut(index),
            Err(_) => found.get_mut(part),
        };
        let Some(next) = next else { return };
        found = next;
    }
    match (found, to) {
        (Value::Object(map), Some(to)) => drop(map.insert(last.clone(), to.clone())),
        (Value::Object(map), None) => drop(map.remove(last)),
        (Value::Array(list), Some(to)) => {
            if let Some(place) = last.parse().ok().and_then(|index: usize| list.get_mut(index)) {
                *place = to.clone();
            }
        }
        (_, _) => {}
    }
}

/// The JSON after a head of HTTP.
fn body(from: &mut impl Read) -> Option<Value> {
    let mut text = Vec::new();
    loop {
        let body = text.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
        if let Some(Ok(found)) = body.map(|at| serde_json::from_slice(&text[at..])) {
            return Some(found);
        }
        let mut buffer = [0; 4096];
        let len = from.read(&mut buffer).ok().filter(|len| *len > 0)?;
        text.extend_from_slice(&buffer[..len]);
        if text.len() > REQUEST_MAX {
            return None;
        }
    }
}

fn answer(to: &mut impl Write, status: &str, body: &[u8]) -> Option<()> {
    let head = "Connection: close\r\nContent-Type: application/json\r\n";
    write!(to, "HTTP/1.1 {status}\r\n{head}Content-Length: {}\r\n\r\n", body.len()).ok()?;
    to.write_all(body).ok()
}
