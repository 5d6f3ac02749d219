//! JSON-RPC over HTTP, with answers of a bounded length.

use std::task::{Context, Poll};

use alloy_json_rpc::{RequestPacket, ResponsePacket};
use alloy_transport::{TransportError, TransportErrorKind, TransportFut};
use alloy_transport_http::reqwest::header::CONTENT_TYPE;
use alloy_transport_http::reqwest::{Client, Response, Url};
use tower_service::Service;

/// Longest answer that is read: a receipt of 100 redemptions has 100 KiB, and nothing that is asked
/// for here is longer. A node may not fill the memory.
const ANSWER_MAX: usize = 4 << 20;

/// A node's URL.
#[derive(Debug, Clone)]
pub(super) struct Http {
    client: Client,
    url: Url,
}

impl Http {
    pub(super) const fn new(client: Client, url: Url) -> Self {
        Self { client, url }
    }

    async fn ask(self, request: RequestPacket) -> Result<ResponsePacket, TransportError> {
        let body = serde_json::to_vec(&request).map_err(TransportError::ser_err)?;
        let asked = self.client.post(self.url).header(CONTENT_TYPE, "application/json").body(body);
        let answer = asked.send().await.map_err(TransportErrorKind::custom)?;
        let status = answer.status();
        let body = read(answer).await?;
        let words = || String::from_utf8_lossy(&body).into_owned();
        if status.is_success() {
            return serde_json::from_slice(&body)
                .map_err(|error| TransportError::deser_err(error, words()));
        }
        // Some nodes put their reason into an answer that has an HTTP error, too.
        match serde_json::from_slice::<ResponsePacket>(&body) {
            Ok(answer) if answer.is_error() => Ok(answer),
            Ok(_) | Err(_) => Err(TransportErrorKind::http_error(status.as_u16(), words())),
        }
    }
}

async fn read(mut answer: Response) -> Result<Vec<u8>, TransportError> {
    let mut body = Vec::new();
    while let Some(part) = answer.chunk().await.map_err(TransportErrorKind::custom)? {
        if body.len().saturating_add(part.len()) > ANSWER_MAX {
            let words = format!("its answer is too long: more than {ANSWER_MAX} bytes");
            return Err(TransportErrorKind::custom_str(&words));
        }
        body.extend_from_slice(&part);
    }
    Ok(body)
}

impl Service<RequestPacket> for Http {
    type Response = ResponsePacket;
    type Error = TransportError;
    type Future = TransportFut<'static>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: RequestPacket) -> TransportFut<'static> {
        Box::pin(self.clone().ask(request))
    }
}
