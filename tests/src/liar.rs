//! Clients that keep to every protocol except the payment: what an honest node must not suffer from.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use sluice::roles::Money;
use sluice_metering::{Channel, Payer, PayerEvent, Purse, StreamIndex, Terms, accept_terms};
use sluice_proto::eth::BIND_EXPORTER_LABEL;
use sluice_proto::market::Lease;
use sluice_proto::wire::control::ReserveOffer;
use sluice_proto::wire::session::{self, Hello, OpenService, session::Kind};
use sluice_proto::wire::{self, pay};
use sluice_proto::{Amount, ChannelKey, PeerId, RelayAddr, Ticket, VERSION, WalletKey};
use sluice_transport::{
    AcceptPolicy, Clock, LinkEvent, LinkState, MessageReader, Network, Node, NodeConfig, NoiseKeys,
    Random, RelayLink, Session, export, send_message,
};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::{Member, PATIENCE, loopback};

/// Silence that tells that nothing more comes.
const SILENCE: Duration = Duration::from_millis(400);
/// What a liar's channels hold: enough for all that it might take.
const DEPOSIT: Amount = Amount(1 << 35);

/// A node of its own on a data socket.
///
/// # Errors
/// When it cannot be bound.
pub fn node(who: &Member, accept: AcceptPolicy) -> Result<Node> {
    Ok(Node::bind(NodeConfig {
        key: who.identity.node.clone(),
        noise: NoiseKeys::from_secret(who.identity.noise)?,
        bind: loopback(),
        reset_key: who.identity.reset,
        incarnation: who.identity.incarnation,
        accept,
        idle_timeout: PATIENCE,
        clock: Clock::default(),
        network: Network::Kernel,
        random: Random::default(),
    })?)
}

/// Opens a channel that the terms ask for, and makes its purse.
async fn open_channel(money: &Money, terms: &Terms) -> Result<Paid> {
    let payment = terms.payment.context("the terms ask for nothing")?;
    let wallet = money.wallet.address();
    let key = ChannelKey {
        payer: wallet,
        signer: wallet,
        payee: payment.payee,
        payout: payment.payout,
        token: payment.token,
        salt: terms.lease.0,
    };
    money.chain.open_channel(&money.wallet, key, DEPOSIT, payment.period_s).await?;
    let (id, domain) = (key.id(&payment.domain), payment.domain);
    let channel = Channel { id, domain, signer: wallet, deposit: DEPOSIT, base: Amount(0) };
    Ok(Paid { purse: Purse { channel, key: money.wallet.clone() }, key })
}

fn bind(purse: &Purse, key: &ChannelKey, us: &PeerId, exporter: &[u8; 32]) -> pay::ChannelBinding {
    let Channel { id, domain, .. } = purse.channel;
    let copy = Bytes::copy_from_slice;
    pay::ChannelBinding {
        payer: copy(&key.payer.0),
        signer: copy(&key.signer.0),
        salt: copy(&key.salt),
        channel: copy(&id.0),
        signature: copy(&purse.key.sign(domain.bind_digest(id, &us.to_bytes(), exporter)).0),
    }
}

/// A channel, and who signs for it.
#[derive(Debug, Clone)]
pub struct Paid {
    purse: Purse,
    key: ChannelKey,
}

impl Paid {
    /// The channel, as the chain knows it.
    #[must_use]
    pub fn key(&self) -> &ChannelKey {
        &self.key
    }

    /// What its payer would have to count from, after what was paid before.
    #[must_use]
    pub fn from(mut self, base: Amount) -> Self {
        self.purse.channel.base = base;
        self
    }
}

/// A tenant with a good channel that signs nothing by itself.
#[derive(Debug)]
pub struct LyingTenant {
    session: Session,
    control: (SendStream, MessageReader<session::Session>),
    terms: Terms,
    purse: Purse,
    key: ChannelKey,
    number: u64,
    _link: RelayLink,
}

impl LyingTenant {
    /// Opens a session and accepts the terms.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn begin(who: &Member, ticket: &Ticket) -> Result<Self> {
        Self::begin_on(who, ticket, Bytes::new(), None).await
    }

    /// Asks for a lease that nobody has, and pays it from the channel of another.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn begin_anew(who: &Member, ticket: &Ticket, other: &Paid) -> Result<Self> {
        let nobodys = Bytes::from_static(&[0; 32]);
        Self::begin_on(who, ticket, nobodys, Some(other.clone())).await
    }

    /// Opens a session with a ticket, and takes whatever terms are offered.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn begin_on_ticket(
        who: &Member,
        ticket: &Ticket,
        paid: Option<&Paid>,
    ) -> Result<Self> {
        Self::begin_on(who, ticket, Bytes::new(), paid.cloned()).await
    }

    /// Opens a session under a lease, paid from a channel of its own or from that of another.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn begin_under(who: &Member, lease: &Lease, paid: Option<&Paid>) -> Result<Self> {
        let name = Bytes::copy_from_slice(&lease.lease.0);
        Self::begin_on(who, &lease.ticket(), name, paid.cloned()).await
    }

    async fn begin_on(
        who: &Member,
        ticket: &Ticket,
        lease: Bytes,
        paid: Option<Paid>,
    ) -> Result<Self> {
        let node = node(who, AcceptPolicy::Nobody)?;
        let link = node.link(*ticket.relays.first().context("no relay")?, None);
        let session = node.connect(ticket, &link).await?;
        let (send, receive) = session.connection().open_bi().await?;
        let mut control = (send, MessageReader::new(receive));
        let hello = Hello { versions: vec![VERSION], lease, ..Hello::default() };
        say(&mut control, Kind::Hello(hello)).await?;
        let Kind::Offer(offer) = hear(&mut control).await? else { bail!("no offer") };
        let signed = offer.terms.context("no terms")?;
        let terms = Terms::open(&signed)?;
        let money = who.money.as_ref().context("a liar needs money, or it is not heard")?;
        let Paid { purse, key } = match paid {
            Some(paid) => paid,
            None => open_channel(money, &terms).await?,
        };
        let mut accept = accept_terms(&who.identity.node, &signed.terms);
        accept.channel = Some(bind(&purse, &key, &who.peer(), &session.exporter()));
        say(&mut control, Kind::Accept(accept)).await?;
        let Kind::Ready(ready) = hear(&mut control).await? else { bail!("not ready") };
        let number = ready.session;
        Ok(Self { session, control, terms, purse, key, number, _link: link })
    }

    /// The terms that it accepted and does not keep.
    #[must_use]
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// The channel that pays it.
    #[must_use]
    pub fn paid(&self) -> Paid {
        Paid { purse: self.purse.clone(), key: self.key }
    }

    /// Asks a web service for content; the stream of the answer.
    ///
    /// # Errors
    /// When the session is gone.
    pub async fn ask(&self, service: &str, path: &str) -> Result<RecvStream> {
        let (mut send, receive) = self.session.connection().open_bi().await?;
        let open = OpenService { service: service.to_owned() };
        send.write_all(&wire::prefixed(&open)).await?;
        send.write_all(format!("GET /{path} HTTP/1.1\r\n\r\n").as_bytes()).await?;
        send.finish()?;
        Ok(receive)
    }

    /// An honest payer's account that has read `n` bytes from a stream, paying with `key`.
    #[must_use]
    pub fn payer(&self, key: &WalletKey) -> Payer {
        let purse = Purse { key: key.clone(), ..self.purse.clone() };
        Payer::new(self.terms.clone(), Some(purse), self.number, None)
    }

    /// Sends a pay message, whatever it is.
    ///
    /// # Errors
    /// When the session is gone.
    pub fn pay(&self, message: Bytes) -> Result<()> {
        Ok(self.session.connection().send_datagram(message)?)
    }

    /// Waits for what the provider says of payment.
    ///
    /// # Errors
    /// When it says nothing.
    pub async fn hear_of_payment(&self) -> Result<Bytes> {
        let message = timeout(PATIENCE, self.session.connection().read_datagram()).await;
        Ok(message.context("the provider is silent")??)
    }

    /// Waits until the provider ends the session, and says in which words.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ended(&self) -> Result<String> {
        let ended = timeout(PATIENCE, self.session.connection().closed()).await;
        Ok(ended.context("the session lasts")?.to_string())
    }

    /// Leaves without a word.
    pub fn leave(self) {
        drop(self.control);
        self.session.close(0, "");
    }
}

/// The datagram of a voucher for `n` more bytes read from a stream.
#[must_use]
pub fn voucher_for(payer: &mut Payer, stream: &RecvStream, n: u64) -> Bytes {
    let now = Clock::default().now();
    payer.handle_read(StreamIndex(stream.id().index()), n, now);
    payer.flush(now);
    while let Some(event) = payer.poll_event() {
        if let PayerEvent::Persist { seq, .. } = event {
            payer.handle_persisted(seq, now);
        }
    }
    payer.poll_transmit(now).expect("a flush signs for what was read")
}

async fn say(
    control: &mut (SendStream, MessageReader<session::Session>),
    kind: Kind,
) -> Result<()> {
    Ok(send_message(&mut control.0, &session::Session { kind: Some(kind) }).await?)
}

async fn hear(control: &mut (SendStream, MessageReader<session::Session>)) -> Result<Kind> {
    let message = timeout(PATIENCE, control.1.next()).await.context("no answer")??;
    let kind = message.and_then(|m| m.kind).context("the other side is gone")?;
    if let Kind::Refusal(refusal) = &kind {
        bail!("refused: {}", refusal.message);
    }
    Ok(kind)
}

/// Reads until the stream ends or nothing comes for a while; how much that was.
///
/// # Errors
/// When the stream breaks.
pub async fn read_all(stream: &mut RecvStream) -> Result<u64> {
    let mut got = 0;
    while let Ok(read) = timeout(SILENCE, stream.read_chunk(65_536, true)).await {
        match read? {
            Some(chunk) => got += chunk.bytes.len() as u64,
            None => break,
        }
    }
    Ok(got)
}

/// A provider with a good channel to its relay that answers no claim.
#[derive(Debug)]
pub struct LyingHolder {
    /// Its node, on which sessions come in.
    pub node: Node,
    /// What tenants need.
    pub ticket: Ticket,
    _link: RelayLink,
}

impl LyingHolder {
    /// Reserves at the relay, and never pays.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn begin(who: &Member, relay: RelayAddr) -> Result<Self> {
        let node = node(who, AcceptPolicy::Invited(who.identity.invites))?;
        let (events, heard) = mpsc::channel(64);
        let link = node.link(relay, Some(events));
        tokio::spawn(accept_offers(who.clone(), heard));
        let mut state = link.state();
        let reserved = state.wait_for(|s| matches!(s, LinkState::Reserved(_)));
        timeout(PATIENCE, reserved).await.context("no reservation")??;
        let ticket = Ticket {
            peer: node.id(),
            noise_key: NoiseKeys::from_secret(who.identity.noise)?.public(),
            relays: vec![relay],
            invite: sluice_proto::Invite::issue(&who.identity.invites, 0),
            expires_unix_s: 0,
            services: Vec::new(),
        };
        Ok(Self { node, ticket, _link: link })
    }
}

async fn accept_offers(who: Member, mut heard: mpsc::Receiver<LinkEvent>) {
    while let Some(event) = heard.recv().await {
        if let LinkEvent::Offer { offer, connection, reply } = event {
            let refused = |e: anyhow::Error| pay::Refusal {
                code: wire::code::CHANNEL,
                message: e.to_string(),
            };
            let exporter = export(&connection, BIND_EXPORTER_LABEL, b"");
            // The link may have broken meanwhile.
            let _ = reply.send(accept_offer(&who, &offer, &exporter).await.map_err(refused));
        }
    }
}

async fn accept_offer(
    who: &Member,
    offer: &ReserveOffer,
    exporter: &[u8; 32],
) -> Result<pay::Accept> {
    let signed = offer.terms.as_ref().context("no terms")?;
    let money = who.money.as_ref().context("a liar needs money, or it is not heard")?;
    let Paid { purse, key } = open_channel(money, &Terms::open(signed)?).await?;
    let mut accept = accept_terms(&who.identity.node, &signed.terms);
    accept.channel = Some(bind(&purse, &key, &who.peer(), exporter));
    Ok(accept)
}
