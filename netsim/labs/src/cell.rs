//! A provider and a tenant, each at home, and what they reach one another through.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{Curl, Downloaded, Lab, Process, Python, content, sha256_of};

use crate::{Access, Home, Host, Internet, Link, Namespace};

/// The download: 50 MB.
const LEN: usize = 50_000_000;
/// Its content.
const SEED: u64 = 11;
/// The last bytes of the addresses of the machines at home.
const PROVIDER: u8 = 10;
const TENANT: u8 = 20;
/// Relays listen here.
const PORT: u16 = 4433;
/// Every role's configuration: nothing is charged, and relays take packets over TCP too.
const CONFIG: &str = "version = 1

[relay]
tcp = \"0.0.0.0:443\"
";

/// How packets go between provider and tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathKind {
    /// From socket to socket.
    Direct,
    /// Through a relay that both reach by UDP.
    Relayed,
    /// Through a relay that at least one of them reaches only by TCP.
    Tcp,
}

impl PathKind {
    /// Whether this is what a role at `home` says in its event of a path.
    fn is_told(self, event: &Value, home: &Home) -> bool {
        let kind = if self == Self::Direct { "direct" } else { "relayed" };
        let over_tcp = self == Self::Tcp && home.access == Access::UdpBlocked;
        event["kind"] == kind && event["over_tcp"] == over_tcp
    }
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Direct => "direct",
            Self::Relayed => "relayed",
            Self::Tcp => "relayed over TCP",
        })
    }
}

/// A lab with a provider that serves a file from a web server at home, and a tenant. Declared in the
/// order in which it ends: processes before the namespaces that they run in.
#[derive(Debug)]
pub struct Cell {
    tenant: Option<Process>,
    provider: Option<Process>,
    relays: Vec<Option<Process>>,
    web: Python,
    lab: Arc<Lab>,
    addresses: Vec<String>,
    ticket: String,
    /// The tenant's home.
    pub tenant_home: Home,
    /// The provider's home.
    pub provider_home: Home,
    /// Where the relays are.
    pub hosts: Vec<Host>,
    /// What is between all of them.
    pub internet: Internet,
}

impl Cell {
    /// Builds it, with relays in data centres and homes on these links, and measures it. Nothing of
    /// `sluice` runs yet.
    ///
    /// # Errors
    /// When something is missing, or a link is not as asked.
    pub fn build(relays: usize, provider: (Access, Link), tenant: (Access, Link)) -> Result<Self> {
        let lossy = [provider.1, tenant.1].iter().any(|link| link.loss > 0.0);
        let mut internet = if lossy { Internet::lossy(SEED)? } else { Internet::new(SEED)? };
        let hosts = (0..relays).map(|n| internet.host(&format!("relay {n}"), Link::DATA_CENTRE));
        let hosts = hosts.collect::<Result<Vec<_>>>()?;
        let provider_home = internet.home("provider", provider.0, provider.1, PROVIDER)?;
        let tenant_home = internet.home("tenant", tenant.0, tenant.1, TENANT)?;
        internet.measure()?;
        for host in &hosts {
            count_frames(host, &provider_home, &tenant_home)?;
        }
        let lab = Arc::new(Lab::free()?);
        lab.write("sluice.toml", CONFIG)?;
        let folder = lab.path().join("web");
        std::fs::create_dir(&folder)?;
        std::fs::write(folder.join("file"), file())?;
        let web = provider_home.host.call(move || Python::serve(&folder))?;
        Ok(Self {
            tenant: None,
            provider: None,
            relays: hosts.iter().map(|_| None).collect(),
            web,
            lab,
            addresses: vec![String::new(); relays],
            ticket: String::new(),
            tenant_home,
            provider_home,
            hosts,
            internet,
        })
    }

    /// Serves the file from a neighbour of the provider's machine instead, 192.168.1.`number`; its
    /// network, and its port.
    ///
    /// # Errors
    /// When there is no LAN, or no Python.
    pub fn serve_from(&mut self, number: u8) -> Result<(Arc<Namespace>, u16)> {
        let neighbour = self.provider_home.neighbour(number)?;
        let folder = self.lab.path().join("web");
        let addr = Ipv4Addr::new(192, 168, 1, number);
        self.web = neighbour.call(move || Python::serve_at(&folder, addr))?;
        Ok((neighbour, self.web.addr().port()))
    }

    /// Starts relays, provider and tenant; the tenant's local port of the web server.
    ///
    /// # Errors
    /// When one of them is not ready in time.
    pub fn start(&mut self, direct: &str) -> Result<SocketAddr> {
        for number in 0..self.hosts.len() {
            self.start_relay(number)?;
        }
        self.provide(direct)?;
        self.connect(direct)
    }

    /// Starts the relay of this number, which has the same identity each time.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub fn start_relay(&mut self, number: usize) -> Result<()> {
        let (lab, host) = (self.lab.clone(), &self.hosts[number]);
        let bind = host.at(PORT).to_string();
        let relay = host
            .namespace
            .call(move || lab.run(&format!("relay-{number}"), &["relay", "--bind", &bind]))?;
        self.addresses[number] = text(&relay.event(0, "ready")?, "address")?;
        self.relays[number] = Some(relay);
        Ok(())
    }

    /// Kills the relay of this number (SIGKILL).
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_relay(&mut self, number: usize) -> Result<()> {
        self.relays[number].take().context("no such relay runs")?.kill()
    }

    /// Starts the provider.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub fn provide(&mut self, direct: &str) -> Result<()> {
        let lab = self.lab.clone();
        let expose = format!("web=tcp:{}", self.web.addr());
        let mut args = vec!["provide".to_owned(), "--direct".into(), direct.into()];
        args.extend(["--expose".to_owned(), expose]);
        args.extend(self.addresses.iter().flat_map(|a| ["--relay".to_owned(), a.clone()]));
        let provider = self.provider_home.host.call(move || {
            let args: Vec<_> = args.iter().map(String::as_str).collect();
            lab.run("provide", &args)
        })?;
        self.ticket = text(&provider.event(0, "ready")?, "ticket")?;
        self.provider = Some(provider);
        Ok(())
    }

    /// Starts the tenant, once the one before has stopped; its local port of the web server.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub fn connect(&mut self, direct: &str) -> Result<SocketAddr> {
        if let Some(mut before) = self.tenant.take() {
            before.stop()?;
        }
        let (lab, ticket, direct) = (self.lab.clone(), self.ticket.clone(), direct.to_owned());
        let tenant = self.tenant_home.host.call(move || {
            let map = ["--map", "127.0.0.1:0=web"];
            lab.run("connect", &[&["connect", &ticket, "--direct", &direct], &map[..]].concat())
        })?;
        let ready = tenant.event(0, "ready").with_context(|| self.story())?;
        let port = ready["map"][0].as_str().and_then(|m| m.split_once('=')).context("no port")?.0;
        self.tenant = Some(tenant);
        Ok(port.parse()?)
    }

    /// Stops tenant and provider in order.
    ///
    /// # Errors
    /// When one of them does not end well.
    pub fn stop(&mut self) -> Result<()> {
        let roles = [self.tenant.as_mut(), self.provider.as_mut()];
        roles.into_iter().flatten().try_for_each(Process::stop)
    }

    /// The tenant.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn tenant(&self) -> &Process {
        self.tenant.as_ref().expect("the tenant runs")
    }

    /// The provider.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn provider(&self) -> &Process {
        self.provider.as_ref().expect("the provider runs")
    }

    /// The newest path that the tenant told of.
    #[must_use]
    pub fn path(&self) -> Option<Value> {
        self.tenant().events("path").pop()
    }

    /// Waits until the newest path of both ends is of this kind.
    ///
    /// # Errors
    /// When it is not in time.
    pub fn wait_for_path(&self, kind: PathKind) -> Result<()> {
        let ends = [(self.tenant(), &self.tenant_home), (self.provider(), &self.provider_home)];
        tests::until(&format!("a path that is {kind}"), || {
            let mut newest = ends.iter().map(|(role, home)| (role.events("path").pop(), home));
            newest.all(|(path, home)| path.is_some_and(|p| kind.is_told(&p, home))).then_some(())
        })
        .with_context(|| self.story())
    }

    /// The relay that carries the session, if one does.
    #[must_use]
    pub fn carrying(&self) -> Option<usize> {
        let remote = self.path()?["remote"].as_str()?.to_owned();
        self.hosts.iter().position(|host| remote == host.at(PORT).to_string())
    }

    /// Frames that this relay sent to the provider and to the tenant since it was started.
    ///
    /// # Errors
    /// When they cannot be counted.
    pub fn frames_sent(&self, number: usize) -> Result<[u64; 2]> {
        let counters = self.hosts[number].namespace.run("nft --json list counters")?;
        let counters: Value = serde_json::from_str(&counters)?;
        let all = counters["nftables"].as_array().context("no counters")?;
        let count = |name: &str| {
            let counter = all.iter().find(|c| c["counter"]["name"] == name);
            counter.and_then(|c| c["counter"]["packets"].as_u64()).context("no such counter")
        };
        Ok([count("to_provider")?, count("to_tenant")?])
    }

    /// Starts the download in the tenant's home.
    ///
    /// # Errors
    /// When there is no curl.
    pub fn download(&self, from: SocketAddr) -> Result<Curl> {
        let to = self.lab.path().join("download");
        self.tenant_home.host.call(move || Curl::to_file(from, "file", &to, false))
    }

    /// Waits until the download ended, and compares it with what was served.
    ///
    /// # Errors
    /// When it failed, or other bytes came.
    pub fn finish(&self, download: Curl) -> Result<()> {
        let came = download.finish().with_context(|| self.story())?;
        ensure!(came == served(), "other bytes came: {} of {LEN}", came.bytes);
        Ok(())
    }

    /// Bytes of the download.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> u64 {
        LEN as u64
    }

    /// Bytes that all relays together sent on their wires so far.
    ///
    /// # Errors
    /// When they cannot be counted.
    pub fn relayed_bytes(&self) -> Result<u64> {
        self.hosts.iter().map(|host| Ok(host.namespace.counts("wan")?.1)).sum()
    }

    /// The last that everybody said, for a failure's message.
    #[must_use]
    pub fn story(&self) -> String {
        let roles = self.relays.iter().chain([&self.provider, &self.tenant]);
        roles.flatten().map(Process::story).collect()
    }
}

/// Counts a relay's frames to both homes: UDP payload whose first byte is 0x80 to 0xBF.
fn count_frames(relay: &Host, provider: &Home, tenant: &Home) -> Result<()> {
    let (provider, tenant) = (provider.public, tenant.public);
    relay.namespace.nft(&format!(
        "table ip frames {{
counter to_provider {{ }}
counter to_tenant {{ }}
chain out {{
    type filter hook output priority filter;
    udp sport {PORT} @th,64,2 2 ip daddr {provider} counter name to_provider
    udp sport {PORT} @th,64,2 2 ip daddr {tenant} counter name to_tenant
}}
}}"
    ))
}

fn text(event: &Value, key: &str) -> Result<String> {
    Ok(event[key].as_str().with_context(|| format!("no {key}: {event}"))?.to_owned())
}

fn file() -> &'static [u8] {
    static FILE: OnceLock<Vec<u8>> = OnceLock::new();
    FILE.get_or_init(|| {
        let mut bytes = vec![0; LEN];
        content(SEED, 0, &mut bytes);
        bytes
    })
}

fn served() -> Downloaded {
    static SERVED: OnceLock<Downloaded> = OnceLock::new();
    *SERVED.get_or_init(|| Downloaded { bytes: LEN as u64, sha256: sha256_of(file()) })
}
