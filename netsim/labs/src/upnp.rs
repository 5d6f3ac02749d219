//! A real miniupnpd on a home's router.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use tests::Process;

use crate::{Home, Namespace};

/// Where it takes UPnP's requests.
const HTTP: u16 = 5000;
/// Where it takes requests of PCP and NAT-PMP (RFC 6887, RFC 6886).
const PCP: u16 = 5351;
/// A mapping lives for this long, in seconds.
const LIFETIME: u32 = 600;
/// As IANA numbers protocols.
const UDP: u8 = 17;
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
/// miniupnpd takes `/etc/miniupnpd/miniupnpd.conf` otherwise; Debian has none.
const CONFIG: &str = "ext_ifname=wan
listening_ip=lan
enable_upnp=UPNP
enable_natpmp=PCP
secure_mode=yes
notify_interval=60
uuid=5d1bd1a4-9c3e-4d6c-8f0a-6a1f2b7c9e10
upnp_table_name=miniupnpd
upnp_nat_table_name=miniupnpd
upnp_forward_chain=forward_asked
upnp_nat_chain=prerouting_asked
upnp_nat_postrouting_chain=postrouting_asked
allow 1024-65535 192.168.1.0/24 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
";

/// What a router lets machines ask it for ports with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// UPnP's Internet Gateway Device.
    Upnp,
    /// RFC 6886.
    NatPmp,
    /// RFC 6887.
    Pcp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Upnp => "UPnP",
            Self::NatPmp => "NAT-PMP",
            Self::Pcp => "PCP",
        })
    }
}

/// A miniupnpd that runs. It ends when this is dropped.
#[derive(Debug)]
pub struct Upnp {
    protocol: Protocol,
    router: Arc<Namespace>,
    _process: Process,
    _folder: TempDir,
}

impl Upnp {
    /// Starts it on the router of `home`; it answers in one protocol alone.
    ///
    /// # Errors
    /// When there is no router, no miniupnpd, or it does not start.
    pub fn start(home: &Home, protocol: Protocol) -> Result<Self> {
        let router = home.router.clone().context("no router")?;
        router.nft(&rules(protocol))?;
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("miniupnpd.conf");
        let is = |is: bool| if is { "yes" } else { "no" };
        let text = CONFIG.replace("UPNP", is(protocol == Protocol::Upnp));
        std::fs::write(&config, text.replace("PCP", is(protocol != Protocol::Upnp)))?;
        let pid = folder.path().join("pid");
        let process = router.call(move || {
            Process::start("miniupnpd", Path::new("/usr/sbin/miniupnpd"), |command| {
                command.arg("-d").arg("-f").arg(config).arg("-P").arg(pid);
                command.args(["-p", &HTTP.to_string()]);
            })
        })?;
        let ready = if protocol == Protocol::Upnp { "HTTP listening" } else { "PCP" };
        process.line(ready)?;
        Ok(Self { protocol, router, _process: process, _folder: folder })
    }

    /// Ports that it forwards now, as nftables has them.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn mappings(&self) -> Result<usize> {
        let chain = self.router.run("nft list chain inet miniupnpd prerouting_asked")?;
        Ok(chain.lines().filter(|line| line.contains("dnat")).count())
    }

    /// Asks it from `machine`, which is at `addr`, to forward a port to `socket`; the outer port.
    ///
    /// # Errors
    /// When it does not.
    pub fn ask(&self, machine: &Namespace, addr: Ipv4Addr, socket: &UdpSocket) -> Result<u16> {
        let port = socket.local_addr()?.port();
        match self.protocol {
            Protocol::Upnp => ask_upnp(machine, addr, port),
            Protocol::NatPmp => ask_nat_pmp(machine, port),
            Protocol::Pcp => ask_pcp(machine, addr, port),
        }
    }
}

/// Chains for its rules, and a firewall in front of the protocols that it shall not hear: the first
/// byte of a request is the version, 0 of NAT-PMP, 2 of PCP.
fn rules(protocol: Protocol) -> String {
    let deaf = match protocol {
        Protocol::Upnp => "",
        Protocol::NatPmp => "udp dport 5351 @th,64,8 2 drop",
        Protocol::Pcp => "udp dport 5351 @th,64,8 0 drop",
    };
    format!(
        "insert rule ip filter forward ct status dnat accept
table inet miniupnpd {{
chain forward_asked {{ }}
chain prerouting_asked {{ }}
chain postrouting_asked {{ }}
chain forward {{
    type filter hook forward priority filter - 1;
    jump forward_asked
}}
chain prerouting {{
    type nat hook prerouting priority dstnat;
    jump prerouting_asked
}}
chain postrouting {{
    type nat hook postrouting priority srcnat - 1;
    jump postrouting_asked
}}
chain requests {{
    type filter hook input priority filter - 1;
    {deaf}
}}
}}"
    )
}

fn ask_nat_pmp(machine: &Namespace, port: u16) -> Result<u16> {
    let mut request = vec![0, 1, 0, 0];
    request.extend(port.to_be_bytes());
    request.extend(port.to_be_bytes());
    request.extend(LIFETIME.to_be_bytes());
    let answer = request_answer(machine, &request)?;
    ensure!(answer.len() == 16 && answer[..4] == [0, 129, 0, 0], "refused: {answer:?}");
    Ok(u16::from_be_bytes([answer[10], answer[11]]))
}

fn ask_pcp(machine: &Namespace, addr: Ipv4Addr, port: u16) -> Result<u16> {
    let mut request = vec![2, 1, 0, 0];
    request.extend(LIFETIME.to_be_bytes());
    request.extend(addr.to_ipv6_mapped().octets());
    request.extend(b"netsim-labs!");
    request.extend([UDP, 0, 0, 0]);
    request.extend(port.to_be_bytes());
    request.extend(port.to_be_bytes());
    request.extend(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().octets());
    let answer = request_answer(machine, &request)?;
    ensure!(answer.len() == 60 && answer[..4] == [2, 129, 0, 0], "refused: {answer:?}");
    Ok(u16::from_be_bytes([answer[42], answer[43]]))
}

fn request_answer(machine: &Namespace, request: &[u8]) -> Result<Vec<u8>> {
    let socket = machine.udp(Ipv4Addr::UNSPECIFIED, 0)?;
    socket.set_read_timeout(Some(Duration::from_millis(250)))?;
    tests::until("the router answers", || {
        let mut answer = vec![0; 128];
        socket.send_to(request, SocketAddr::from((ROUTER, PCP))).ok()?;
        let len = socket.recv(&mut answer).ok()?;
        answer.truncate(len);
        Some(answer)
    })
}

fn ask_upnp(machine: &Namespace, addr: Ipv4Addr, port: u16) -> Result<u16> {
    let service = "urn:schemas-upnp-org:service:WANIPConnection:1";
    let envelope = format!(
        r#"<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body><u:AddPortMapping xmlns:u="{service}"><NewRemoteHost></NewRemoteHost><NewExternalPort>{port}</NewExternalPort><NewProtocol>UDP</NewProtocol><NewInternalPort>{port}</NewInternalPort><NewInternalClient>{addr}</NewInternalClient><NewEnabled>1</NewEnabled><NewPortMappingDescription>lab</NewPortMappingDescription><NewLeaseDuration>{LIFETIME}</NewLeaseDuration></u:AddPortMapping></s:Body></s:Envelope>"#
    );
    let action = format!("SOAPAction:\"{service}#AddPortMapping\"");
    let url = format!("http://{ROUTER}:{HTTP}/ctl/IPConn");
    let line = format!("curl -sS --fail --max-time 10 -H {action} --data-binary @- {url}");
    machine.feed(&line, &envelope)?;
    Ok(port)
}
