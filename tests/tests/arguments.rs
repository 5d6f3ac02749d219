//! Every argument of every command, in turn missing, too many, or what it cannot be: the exit code is
//! not zero (2 where the command line itself is wrong), the argument is named, and nothing is made.

use std::any::TypeId;
use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Arg, ArgAction, Command, CommandFactory as _};
use sluice::cli::Cli;
use sluice_proto::{Invite, Keypair, RelayAddr, ServiceName, Ticket};
use tests::{Lab, Process, sluice};

/// The exit code of a command line that is wrong.
const USAGE: i32 = 2;
/// What no number, address, choice or id is.
const RUBBISH: [&str; 6] =
    ["", "no such thing", "-1", "1.5", "0x", "340282366920938463463374607431768211456"];

/// A command that does something, with the words that lead to it.
struct Leaf {
    words: Vec<String>,
    command: Command,
}

fn leaves() -> Vec<Leaf> {
    let mut root = Cli::command();
    root.build();
    let mut found = Vec::new();
    collect(&root, &[], &mut found);
    found
}

fn collect(command: &Command, words: &[String], found: &mut Vec<Leaf>) {
    let below = command.get_subcommands().filter(|below| below.get_name() != "help");
    let mut is_leaf = true;
    for below in below {
        is_leaf = false;
        collect(below, &[words, &[below.get_name().to_owned()]].concat(), found);
    }
    if is_leaf {
        found.push(Leaf { words: words.to_vec(), command: command.clone() });
    }
}

impl Leaf {
    fn name(&self) -> String {
        self.words.join(" ")
    }

    /// Its own arguments; those of all commands are in `config check`'s alone.
    fn arguments(&self) -> impl Iterator<Item = &Arg> {
        let all = self.name() == "config check";
        let given = |arg: &&Arg| !matches!(arg.get_id().as_str(), "help" | "version");
        self.command.get_arguments().filter(given).filter(move |arg| all || !arg.is_global_set())
    }

    /// A command line that is right as far as it goes, without one of the arguments.
    fn line(&self, without: Option<&Arg>) -> Vec<String> {
        let mut line = vec!["sluice".to_owned()];
        line.extend(self.words.iter().cloned());
        for arg in self.command.get_arguments().filter(|arg| arg.is_required_set()) {
            if without.is_some_and(|out| out.get_id() == arg.get_id()) {
                continue;
            }
            match arg.get_long() {
                Some(long) => line.push(format!("--{long}=5")),
                None => line.push("5".to_owned()),
            }
        }
        line
    }
}

/// What is printed of an argument.
fn shown(arg: &Arg) -> String {
    match (arg.get_long(), arg.get_value_names()) {
        (Some(long), _) => format!("--{long}"),
        (None, Some([name, ..])) if arg.is_required_set() => format!("<{name}>"),
        (None, Some([name, ..])) => format!("[{name}]"),
        (None, _) => format!("<{}>", arg.get_id().as_str().to_uppercase()),
    }
}

/// Whether any text is as good as another until it is used.
fn is_text(arg: &Arg) -> bool {
    let kind = arg.get_value_parser().type_id();
    let is_text =
        [TypeId::of::<String>(), TypeId::of::<PathBuf>()].iter().any(|text| kind == *text);
    is_text && arg.get_possible_values().is_empty()
}

/// Parses a command line that is wrong; what is said of it.
fn refusal(line: &[String]) -> Result<String> {
    let Err(error) = Cli::command().try_get_matches_from(line) else {
        anyhow::bail!("{line:?} was taken");
    };
    ensure!(error.exit_code() == USAGE, "{line:?}: exit code {}", error.exit_code());
    Ok(error.to_string())
}

#[test]
fn what_is_missing_too_much_or_unknown_is_named() -> Result<()> {
    let leaves = leaves();
    ensure!(leaves.len() > 15, "{} commands", leaves.len());
    let (mut required, mut flags) = (0, 0);
    for leaf in &leaves {
        for arg in leaf.arguments() {
            let case = format!("{} {}", leaf.name(), shown(arg));
            if arg.is_required_set() {
                let said = refusal(&leaf.line(Some(arg)))?;
                ensure!(said.contains(&shown(arg)), "{case} is missing: {said}");
                required += 1;
            }
            let Some(long) = arg.get_long() else { continue };
            flags += 1;
            let takes = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
            let mut line = leaf.line(Some(arg));
            line.push(if takes { format!("--{long}") } else { format!("--{long}=yes") });
            let said = refusal(&line)?;
            ensure!(said.contains(&format!("--{long}")), "{case} with the wrong value: {said}");
            if arg.get_action().takes_values() && matches!(arg.get_action(), ArgAction::Set) {
                let mut line = leaf.line(Some(arg));
                line.extend([format!("--{long}=5"), format!("--{long}=5")]);
                // Wrong twice over where 5 is none of its values: named all the same.
                let said = refusal(&line)?;
                ensure!(said.contains(&format!("--{long}")), "{case} twice: {said}");
            }
        }
        let mut line = leaf.line(None);
        line.push("--no-such-flag".to_owned());
        ensure!(refusal(&line)?.contains("--no-such-flag"), "{}", leaf.name());
        // As many more than it takes: where any number may be given, none is too many.
        let mut positionals = leaf.command.get_positionals();
        if positionals.all(|arg| matches!(arg.get_action(), ArgAction::Set)) {
            let mut line = leaf.line(None);
            let optional = leaf.command.get_positionals().filter(|arg| !arg.is_required_set());
            line.extend(optional.map(|_| "5".to_owned()));
            line.push("one too many".to_owned());
            ensure!(refusal(&line)?.contains("one too many"), "{}", leaf.name());
        }
    }
    ensure!(required >= 6, "{required} arguments are required");
    ensure!(flags > 40, "{flags} flags");
    // The binary itself ends so.
    let mut process = Process::start("sluice", sluice(), |c| {
        c.args(["channel", "close"]);
    })?;
    ensure!(process.wait()?.code() == Some(USAGE) && process.errors().contains("<CHANNEL>"));
    Ok(())
}

#[test]
fn what_is_no_number_address_choice_or_id_is_refused_by_name() -> Result<()> {
    let mut tried = 0;
    for leaf in leaves() {
        for arg in leaf.arguments().filter(|arg| arg.get_action().takes_values()) {
            for value in RUBBISH.into_iter().filter(|_| !is_text(arg)) {
                let line = match arg.get_long() {
                    Some(long) => {
                        [leaf.line(Some(arg)), vec![format!("--{long}={value}")]].concat()
                    }
                    None if value.starts_with('-') => continue,
                    // The other positionals stand before it.
                    None => [leaf.line(Some(arg)), vec![value.to_owned()]].concat(),
                };
                let said = refusal(&line)?;
                ensure!(said.contains(&shown(arg)), "{line:?}: {said}");
                tried += 1;
            }
        }
    }
    ensure!(tried > 100, "{tried} values");
    Ok(())
}

/// Arguments that take any text: what is wrong with it is found when it is used. Command, argument, a
/// command line, and words of the message.
#[rustfmt::skip]
const TEXTS: &[(&str, &str, &[&str], &[&str])] = &[
    ("config check", "config", &["config", "check", "--config", "nowhere.toml"], &["nowhere.toml", "no such file"]),
    ("config check", "log", &["redeem", "--log", "a=b=c"], &["log filter"]),
    ("demo", "file", &["demo", "--file", "nowhere"], &["nowhere"]),
    ("demo", "rpc", &["demo", "--rpc", "nowhere"], &["URL", "http://HOST:PORT"]),
    ("relay", "state_dir", &["relay", "--state-dir", "file"], &["file", "directory"]),
    ("provide", "expose", &["provide", "--expose", "nothing"], &["--expose nothing"]),
    ("provide", "relay", &["provide", "--relay", "nobody"], &["--relay nobody"]),
    ("provide", "state_dir", &["provide", "--expose", "web=tcp:127.0.0.1:9", "--relay", RELAY, "--state-dir", "file"], &["file", "directory"]),
    ("connect", "ticket", &["connect", "nothing", "--map", "127.0.0.1:0=web"], &["not a ticket"]),
    ("connect", "map", &["connect", "sluice1", "--map", "nothing"], &["--map nothing"]),
    ("connect", "state_dir", &["connect", TICKET, "--map", "127.0.0.1:0=web", "--state-dir", "file"], &["file", "directory"]),
    ("order", "state_dir", &["order", "--service", "web", "--bootstrap", "/ip4/127.0.0.1/udp/9/quic-v1", "--state-dir", "file"], &["file", "directory"]),
    ("award", "bid", &["award", "nothing", "--state-dir", "state"], &["no bids are kept", "--bids-only"]),
    ("award", "state_dir", &["award", "1", "--state-dir", "file"], &["file", "directory"]),
    ("doctor", "ticket", &["doctor", "nothing"], &["not a ticket"]),
    ("doctor", "relay", &["doctor", "--relay", "nobody"], &["--relay nobody"]),
    ("bids", "state_dir", &["bids", "--state-dir", "file"], &["file"]),
    ("leases", "state_dir", &["leases", "--state-dir", "file"], &["file"]),
    ("nodes", "state_dir", &["nodes", "--state-dir", "file"], &["file"]),
    ("relays", "state_dir", &["relays", "--state-dir", "file"], &["file"]),
    ("redeem", "state_dir", &["redeem", "--state-dir", "file"], &["file", "directory"]),
    ("channel list", "state_dir", &["channel", "list", "--state-dir", "file"], &["file", "directory"]),
    ("channel top-up", "channel", &["channel", "top-up", "nothing", "5", "--state-dir", "state"], &["nothing", "channel"]),
    ("channel top-up", "state_dir", &["channel", "top-up", "00", "5", "--state-dir", "file"], &["file", "directory"]),
    ("channel close", "channel", &["channel", "close", "", "--state-dir", "state"], &["beginning", "channel"]),
    ("channel close", "state_dir", &["channel", "close", "00", "--state-dir", "file"], &["file", "directory"]),
    ("ledger list", "state_dir", &["ledger", "list", "--state-dir", "file"], &["file", "directory"]),
    ("ledger export", "out", &["ledger", "export", "--state-dir", "state", "--out", "nowhere/out"], &["nowhere/out"]),
    ("ledger export", "state_dir", &["ledger", "export", "--state-dir", "file"], &["file", "directory"]),
    ("ledger verify", "state_dir", &["ledger", "verify", "--offline", "--state-dir", "file"], &["file", "directory"]),
    ("wallet create", "file", &["wallet", "create", "nowhere/new", "--passphrase-file", "secret"], &["nowhere/new"]),
    ("wallet create", "passphrase_file", &["wallet", "create", "new", "--passphrase-file", "nowhere"], &["nowhere"]),
    ("wallet import", "file", &["wallet", "import", "nowhere/new", "--from", "key", "--passphrase-file", "secret"], &["nowhere/new"]),
    ("wallet import", "from", &["wallet", "import", "new", "--from", "secret", "--passphrase-file", "secret"], &["secret", "damaged"]),
    ("wallet import", "passphrase_file", &["wallet", "import", "new", "--from", "key", "--passphrase-file", "open"], &["open", "chmod 600"]),
    ("wallet show", "file", &["wallet", "show", "nowhere"], &["nowhere"]),
    ("wallet show", "state_dir", &["wallet", "show", "--state-dir", "file"], &["file"]),
    ("wallet balance", "account", &["wallet", "balance", "nobody"], &["nobody"]),
    ("wallet balance", "state_dir", &["wallet", "balance", "--state-dir", "file"], &["file"]),
    ("watch", "vouchers", &["watch", "nowhere", "--once"], &["nowhere"]),
    ("watch", "state_dir", &["watch", "secret", "--once", "--state-dir", "file"], &["file"]),
];
const RELAY: &str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN@127.0.0.1:9";
/// In a good ticket's place.
const TICKET: &str = "a ticket";

#[test]
fn a_text_that_cannot_be_used_is_named_and_every_argument_that_takes_one_has_its_case() -> Result<()>
{
    let mut texts = BTreeSet::new();
    for leaf in leaves() {
        for arg in leaf.arguments().filter(|arg| arg.get_action().takes_values() && is_text(arg)) {
            texts.insert(format!("{} {}", leaf.name(), arg.get_id()));
        }
    }
    let cases: BTreeSet<_> =
        TEXTS.iter().map(|(command, arg, ..)| format!("{command} {arg}")).collect();
    ensure!(
        texts == cases,
        "no case: {:?}; no argument: {:?}",
        texts.difference(&cases).collect::<Vec<_>>(),
        cases.difference(&texts).collect::<Vec<_>>()
    );

    let lab = Lab::paid()?;
    lab.write("file", "a file, and no directory")?;
    for (name, text) in
        [("secret", "open sesame\n"), ("key", &"11".repeat(32)), ("open", "sesame\n")]
    {
        let path = lab.write(name, text)?;
        let mode = if name == "open" { 0o644 } else { 0o600 };
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    }
    // One with a ledger in it.
    drop(lab.relay_called("state", &["--bind", "127.0.0.1:0"])?);
    let (before, good) = (entries(&lab)?, ticket()?);
    for (command, arg, args, words) in TEXTS {
        let mut process = Process::start("sluice", sluice(), |c| {
            let args = args.iter().map(|arg| if *arg == TICKET { good.as_str() } else { arg });
            c.args(args).current_dir(lab.path()).env("HOME", lab.path());
            for name in ["SLUICE_LOG", "SLUICE_STATE", "SLUICE_PASSPHRASE", "XDG_STATE_HOME"] {
                c.env_remove(name);
            }
        })?;
        let (status, said) = (process.wait()?, process.errors());
        ensure!(!status.success(), "{command} {arg}: {args:?} was taken: {}", process.output());
        for word in *words {
            ensure!(said.contains(word), "{command} {arg}: {word:?} is not in: {said}");
        }
    }
    ensure!(entries(&lab)? == before, "files were made: {:?}", entries(&lab)?);
    Ok(())
}

fn ticket() -> Result<String> {
    let key = Keypair::ed25519_from_bytes([2; 32])?;
    let ticket = Ticket {
        peer: key.public().to_peer_id(),
        noise_key: [5; 32],
        relays: vec![RelayAddr::new(key.public().to_peer_id(), "127.0.0.1:9".parse()?)],
        invite: Invite::issue(&[7; 16], 0),
        expires_unix_s: 0,
        services: vec![ServiceName::parse("web")?],
    };
    Ok(ticket.encode(&key))
}

fn entries(lab: &Lab) -> Result<BTreeSet<PathBuf>> {
    let all = std::fs::read_dir(lab.path())?.map(|entry| anyhow::Ok(entry?.path()));
    // Where state goes unless it is told.
    let all = all.filter(|path| !matches!(path, Ok(path) if path.ends_with(".local")));
    all.collect()
}
