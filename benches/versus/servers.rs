//! All servers that are compared, and how each is started.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::store::Store;
use crate::{asynchronous, floor, threads};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    Mailchute,
    MailchuteLogging,
    MailchuteAlways,
    MailchuteNever,
    Floor,
    TokioThreads,
    TokioThread,
    TokioFiles,
    Threads,
    SmtpSink,
    Aiosmtpd,
    Nodemailer,
}

pub const ALL: [Server; 12] = [
    Server::Mailchute,
    Server::MailchuteLogging,
    Server::MailchuteAlways,
    Server::MailchuteNever,
    Server::Floor,
    Server::TokioThreads,
    Server::TokioThread,
    Server::TokioFiles,
    Server::Threads,
    Server::SmtpSink,
    Server::Aiosmtpd,
    Server::Nodemailer,
];

/// Programs that would be compared if somebody wrote down how they are started.
const OTHERS: [&str; 3] = ["OpenSMTPD", "Haraka", "go-smtp"];

impl Server {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mailchute => "mailchute",
            Self::MailchuteLogging => "mailchute, with its log",
            Self::MailchuteAlways => "mailchute, --sync always",
            Self::MailchuteNever => "mailchute, --sync never",
            Self::Floor => "floor",
            Self::TokioThreads => "tokio, many threads",
            Self::TokioThread => "tokio, one thread",
            Self::TokioFiles => "tokio, tokio::fs",
            Self::Threads => "mailin, a thread each",
            Self::SmtpSink => "Postfix smtp-sink",
            Self::Aiosmtpd => "aiosmtpd",
            Self::Nodemailer => "Node.js smtp-server",
        }
    }

    /// What it is, and which version.
    pub fn description(self) -> String {
        let tokio = || format!("tokio {}, tokio-util {} (LinesCodec)", locked("tokio"), locked("tokio-util"));
        match self {
            Self::Mailchute => "the release binary, `--log warn`; where it flushes with its journal".to_owned(),
            Self::MailchuteAlways => "the same where it flushes, without the journal".to_owned(),
            Self::MailchuteNever => "the same on a disk, without flushes".to_owned(),
            Self::MailchuteLogging => {
                "the same at its default level: a line for each message, into `/dev/null`".to_owned()
            }
            Self::Floor => "mio, one thread, no protocol: counts octets, answers, create, write, rename; where it flushes it waits for each file, \
                            so that it is no floor there"
                .to_owned(),
            Self::TokioThreads => format!("{}; std's files, in the pool where they are flushed", tokio()),
            Self::TokioThread => "the same with the runtime of one thread".to_owned(),
            Self::TokioFiles => "many threads, files by tokio::fs".to_owned(),
            Self::Threads => format!("mailin {}; blocking calls, as mailin-embedded has them", locked("mailin")),
            Self::SmtpSink => format!("{}; stores nothing", output("postconf", &["-dh", "mail_version"])),
            Self::Aiosmtpd => output("python3", &["-c", "import aiosmtpd as a; print(a.__version__)"]),
            Self::Nodemailer => {
                let version = output(
                    "node",
                    &["-p", "require('smtp-server/package.json').version + ', Node.js ' + process.version"],
                );
                format!("{version}; lets each connection wait 100 ms for its greeting")
            }
        }
    }

    /// Neither mailchute nor the floor.
    pub fn is_peer(self) -> bool {
        !self.is_ours() && self != Self::Floor
    }

    pub fn is_ours(self) -> bool {
        matches!(self, Self::Mailchute | Self::MailchuteLogging | Self::MailchuteAlways | Self::MailchuteNever)
    }

    pub fn is_asynchronous(self) -> bool {
        self.is_peer() && !matches!(self, Self::Threads | Self::SmtpSink)
    }

    pub fn is_single_threaded(self) -> bool {
        matches!(self, Self::TokioThread | Self::SmtpSink | Self::Aiosmtpd | Self::Nodemailer)
    }

    pub fn stores(self) -> bool {
        self != Self::SmtpSink
    }

    /// Whether it is on this machine.
    pub fn is_present(self) -> bool {
        match self {
            Self::SmtpSink => find("smtp-sink").is_some(),
            Self::Aiosmtpd => succeeds("python3", &["-c", "import aiosmtpd"]),
            Self::Nodemailer => succeeds("node", &["-e", "require('smtp-server')"]),
            _ => true,
        }
    }

    /// How it is started to store messages of `size` octets, which only the floor has to know.
    pub fn command(self, address: SocketAddr, maildir: &Path, durable: bool, size: usize) -> Command {
        let sync = if durable { "always" } else { "never" };
        let host = address.ip().to_string();
        let port = address.port().to_string();
        let script = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/versus").join(name);
        let mut command;
        match self {
            _ if self.is_ours() => {
                command = Command::new(env!("CARGO_BIN_EXE_mailchute"));
                let level = if self == Self::MailchuteLogging { "info" } else { "warn" };
                let sync = match self {
                    Self::MailchuteNever => "never",
                    Self::MailchuteAlways => "always",
                    _ if durable => "journal",
                    _ => "never",
                };
                command.args(["--listen", &address.to_string(), "--sync", sync, "--log", level]);
                command.args(["--max-connections", "20000", "--maildir"]).arg(maildir);
            }
            Self::SmtpSink => {
                command = Command::new(find("smtp-sink").unwrap_or_default());
                if rustix::process::geteuid().is_root() {
                    // It insists.
                    command.args(["-u", "nobody"]);
                }
                command.args(["-m", "20000", &address.to_string(), "1000"]);
            }
            Self::Aiosmtpd => {
                command = Command::new("python3");
                command.arg(script("aiosmtpd_peer.py")).args([&host, &port]).arg(maildir).arg(sync);
            }
            Self::Nodemailer => {
                command = Command::new("node");
                command.arg(script("smtp_server_peer.js")).args([&host, &port]).arg(maildir).arg(sync);
            }
            _ => {
                command = Command::new(std::env::current_exe().unwrap());
                let size = size.to_string();
                command.args([SERVE, self.name(), &address.to_string(), sync, &size]).arg(maildir);
            }
        }
        command
    }
}

/// The first argument of this program when it is one of the peers.
pub const SERVE: &str = "serve";

/// Is the peer that the arguments name, until it is killed.
pub fn serve(arguments: &[String]) -> std::io::Result<()> {
    let [_, name, address, sync, size, maildir] = arguments else { panic!("{arguments:?}") };
    let (address, maildir, durable) = (address.parse().unwrap(), Path::new(maildir), sync == "always");
    let server = ALL.into_iter().find(|server| server.name() == name).unwrap();
    let store = || Store::open(maildir, durable);
    match server {
        Server::Floor => floor::serve(address, maildir, durable, size.parse().unwrap()),
        Server::TokioThreads => asynchronous::serve(address, store(), true, false),
        Server::TokioThread => asynchronous::serve(address, store(), false, false),
        Server::TokioFiles => asynchronous::serve(address, store(), true, true),
        Server::Threads => threads::serve(address, store()),
        _ => panic!("{name} is not one of ours"),
    }
}

/// A line for each server that is not compared.
pub fn skipped() -> Vec<String> {
    let missing = ALL.iter().filter(|server| !server.is_present());
    let missing = missing.map(|server| format!("{}: not on this machine", server.name()));
    missing.chain(OTHERS.map(|name| format!("{name}: nobody has written down yet how to start it here"))).collect()
}

/// Where a program is, also where only root looks.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    let mut places = std::env::split_paths(&path).chain(usual).map(|directory| directory.join(program));
    places.find(|place| place.is_file())
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// What a program prints; empty when it can't.
pub fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stderr(Stdio::null()).output();
    output.map_or_else(|_| String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The version of a crate.
fn locked(name: &str) -> &'static str {
    let entry = format!("name = \"{name}\"\nversion = \"");
    let lock = include_str!("../../Cargo.lock").split(&entry).nth(1);
    lock.and_then(|rest| rest.split('"').next()).unwrap_or_default()
}
