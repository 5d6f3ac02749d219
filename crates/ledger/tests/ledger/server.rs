//! A PostgreSQL server of the test's own, in a temporary folder, on a socket of its own.

use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

/// How often, and how long after, a server is asked whether it answers: for two minutes, since what a
/// killed one left behind is repaired first.
const TRIES: u32 = 1_200;
const AGAIN: Duration = Duration::from_millis(100);
/// A server that was killed leaves processes behind for a moment; no other starts meanwhile.
const STARTS: u32 = 100;

/// A server. It is killed, and its folder removed, when it is dropped.
#[derive(Debug)]
pub(crate) struct PostgresServer {
    folder: TempDir,
    programs: PathBuf,
    /// Whom it runs as; `None`: as who runs the test.
    user: Option<(u32, u32)>,
    postmaster: Mutex<Option<Postmaster>>,
}

/// The server's first process, watched by the thread that started it.
#[derive(Debug)]
struct Postmaster {
    pid: u32,
    ended: mpsc::Receiver<std::io::Result<ExitStatus>>,
}

impl PostgresServer {
    /// A server that accepts connections; `None`, and loudly, where PostgreSQL is not installed.
    ///
    /// # Panics
    /// When it is not installed in CI, or does not start.
    pub(crate) async fn start() -> Option<Self> {
        let Some(programs) = programs() else {
            let missing = "PostgreSQL is not installed: apt-get install postgresql";
            assert!(std::env::var_os("CI").is_none(), "{missing}");
            // Past the capture of a test's output.
            let _ = writeln!(std::io::stderr(), "SKIPPED: {missing}");
            return None;
        };
        let folder = tempfile::Builder::new().prefix("sluice-pg").tempdir().expect("a folder");
        let user = unprivileged();
        if let Some((uid, gid)) = user {
            chown(folder.path(), Some(uid), Some(gid)).expect("gives the folder away");
        }
        let readable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path(), readable).expect("lets others in");
        let server = Self { folder, programs, user, postmaster: Mutex::new(None) };
        server.make();
        server.resume().await;
        Some(server)
    }

    /// The URL of a database.
    #[must_use]
    pub(crate) fn url(&self, database: &str) -> String {
        let folder = self.folder.path().display().to_string().replace('/', "%2F");
        format!("postgres://sluice@{folder}:5432/{database}")
    }

    /// Makes a database.
    ///
    /// # Panics
    /// When the server refuses.
    pub(crate) async fn make_database(&self, name: &str) {
        let client = self.client("postgres").await;
        client.batch_execute(&format!("CREATE DATABASE {name}")).await.expect("makes a database");
    }

    /// A connection, by the side of whatever is tested.
    ///
    /// # Panics
    /// When the server does not answer.
    pub(crate) async fn client(&self, database: &str) -> Client {
        for _ in 0..TRIES {
            if let Some(client) = self.try_client(database).await {
                return client;
            }
            tokio::time::sleep(AGAIN).await;
        }
        panic!("the server does not answer: {}", self.log());
    }

    async fn try_client(&self, database: &str) -> Option<Client> {
        let (client, connection) =
            tokio_postgres::connect(&self.url(database), NoTls).await.ok()?;
        tokio::spawn(async move { drop(connection.await) });
        Some(client)
    }

    /// Kills the server's first process, as by `kill -9`; the others end by themselves.
    ///
    /// # Panics
    /// When it does not run.
    pub(crate) fn kill(&self) {
        let postmaster = self.postmaster.lock().expect("whole").take().expect("it runs");
        end(&postmaster);
    }

    /// Starts it again where it was killed, and waits until it answers.
    ///
    /// # Panics
    /// When it does not start.
    pub(crate) async fn resume(&self) {
        for _ in 0..STARTS {
            let postmaster = self.spawn();
            for _ in 0..TRIES {
                if postmaster.ended.try_recv().is_ok() {
                    break;
                }
                if self.try_client("postgres").await.is_some() {
                    *self.postmaster.lock().expect("whole") = Some(postmaster);
                    return;
                }
                tokio::time::sleep(AGAIN).await;
            }
            tokio::time::sleep(AGAIN).await;
        }
        panic!("the server does not start: {}", self.log());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn make(&self) {
        let mut command = self.command("initdb");
        command.args(["--auth=trust", "--username=sluice", "--no-sync", "--no-instructions"]);
        command.args(["--locale=C", "--encoding=UTF8", "-D"]).arg(self.folder.path().join("data"));
        let output = command.output().expect("runs initdb");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn command(&self, program: &str) -> Command {
        let program = self.programs.join(program);
        let mut command = match self.user {
            // Not even root may run a server as root.
            Some((uid, gid)) => {
                let mut command = Command::new("setpriv");
                command.arg(format!("--reuid={uid}")).arg(format!("--regid={gid}"));
                command.args(["--clear-groups", "--pdeathsig", "KILL", "--"]).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    fn spawn(&self) -> Postmaster {
        let path = self.folder.path().join("log");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(path).expect("a log");
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.folder.path().join("data")).arg("-k").arg(self.folder.path());
        for setting in [
            "listen_addresses=",
            "max_connections=60",
            "shared_buffers=32MB",
            // Where a server is killed, it is asked who was there before.
            "log_min_messages=fatal",
        ] {
            command.args(["-c", setting]);
        }
        command.stdout(log.try_clone().expect("another")).stderr(log);
        let (told, pid) = mpsc::channel();
        let (tell, ended) = mpsc::channel();
        // It is killed when the thread that started it ends: one of its own, that waits.
        thread::spawn(move || {
            let mut child: Child = command.spawn().expect("starts the server");
            told.send(child.id()).expect("is waited for");
            let _ = tell.send(child.wait());
        });
        Postmaster { pid: pid.recv().expect("starts"), ended }
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        if let Ok(postmaster) = self.postmaster.get_mut()
            && let Some(postmaster) = postmaster.take()
        {
            end(&postmaster);
        }
    }
}

fn end(postmaster: &Postmaster) {
    let killed = Command::new("kill").args(["-9", &postmaster.pid.to_string()]).status();
    assert!(killed.is_ok_and(|status| status.success()), "{postmaster:?} cannot be killed");
    let _ = postmaster.ended.recv();
}

/// Where `postgres` and `initdb` are.
fn programs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    // Debian keeps them out of the path, by version.
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|found| found.flatten().map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    versions.sort();
    folders.extend(versions.into_iter().rev());
    let complete = |folder: &&PathBuf| {
        ["postgres", "initdb"].iter().all(|program| folder.join(program).exists())
    };
    folders.iter().find(complete).cloned()
}

/// Whom a server may run as when root asks.
fn unprivileged() -> Option<(u32, u32)> {
    let id = |arguments: &[&str]| {
        let output = Command::new("id").args(arguments).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse::<u32>().ok()
    };
    if id(&["-u"]) != Some(0) {
        return None;
    }
    let of = |user: &str| Some((id(&["-u", user])?, id(&["-g", user])?));
    of("postgres").or_else(|| of("nobody"))
}
