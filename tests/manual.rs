//! The one table of options, wherever it shows: what `--check` prints, the man page, and OpenWrt's settings.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::fs;
use std::process::Command;

use common::{Place, Server, mailchute, run};

const TABLE: &str = include_str!("../src/options.txt");

/// The name of each setting, what stands for its value, and its help.
fn options() -> Vec<(&'static str, &'static str, &'static str)> {
    let lines = TABLE.lines().filter_map(|line| line.strip_prefix("  --"));
    let options = lines.map(|line| {
        let (option, help) = line.split_once("  ").unwrap();
        let (name, placeholder) = option.split_once(' ').unwrap_or((option, ""));
        (name, placeholder, help.trim())
    });
    options.collect()
}

// ---- --check -------------------------------------------------------------------------------------------------------

#[test]
fn check_prints_what_is_in_force_and_touches_nothing() {
    let place = Place::new();
    let maildir = place.maildir().display().to_string();
    let mut command = mailchute();
    command.args(["--check", "--max-size", "5M", "--strict", "--listen", "127.0.0.1:25,nonsense"]);
    assert_eq!(run(command).status.code(), Some(64));
    for option in ["--check", "-c"] {
        let mut command = mailchute();
        // Nobody may bind to this one.
        command.args(["--max-size", "5M", "--listen", "192.0.2.1:25", option, "--listen", "unix:/a b", "--strict"]);
        command.env("MAILCHUTE_MAILDIR", &maildir).env("MAILCHUTE_DOMAIN", "a.example,*.b.example");
        command.env("MAILCHUTE_MAX_SIZE", "6M").env("MAILCHUTE_TIMEOUT", "");
        let ended = run(command);
        assert_eq!((ended.status.code(), ended.stderr.as_str()), (Some(0), ""));
        let lines: Vec<_> = ended.stdout.lines().collect();
        for line in [
            "--listen \"192.0.2.1:25\"  # from --listen",
            "--listen \"unix:/a b\"  # from --listen",
            "--max-size \"5M\"  # from --max-size",
            "--strict \"yes\"  # from --strict",
            &format!("--maildir {maildir:?}  # from MAILCHUTE_MAILDIR"),
            "--domain \"a.example\"  # from MAILCHUTE_DOMAIN",
            "--domain \"*.b.example\"  # from MAILCHUTE_DOMAIN",
            "--timeout 5m  # by default",
            "--recipients none  # by default",
        ] {
            assert!(lines.contains(&line), "no {line} in\n{}", ended.stdout);
        }
        for (name, ..) in options() {
            let count = lines.iter().filter(|line| line.split(' ').next() == Some(&format!("--{name}"))).count();
            assert_eq!(count, if ["listen", "domain"].contains(&name) { 2 } else { 1 }, "{name} in\n{}", ended.stdout);
        }
        assert!(!place.maildir().exists());
    }
}

#[test]
fn a_server_says_what_is_in_force_at_level_debug() {
    let place = Place::new();
    for (level, told) in [("debug", true), ("info", false)] {
        let server = Server::start(&place, &["--max-size", "5M", "--log", level]);
        let log = server.log();
        assert_eq!(log.contains("DEBUG --max-size \"5M\"  # from --max-size"), told, "{log}");
        assert_eq!(log.matches("# by default").count() > 20, told, "{log}");
        server.stop();
    }
}

// ---- the man page --------------------------------------------------------------------------------------------------

const MANUAL: &str = "dist/mailchute.8";
/// With this variable the page is written, not compared.
const WRITE: &str = "MAILCHUTE_WRITE_MANUAL";

/// What stands before the options, and behind them.
const BEFORE: &str = r#".\" Made from src/options.txt by tests/manual.rs: MAILCHUTE_WRITE_MANUAL=yes cargo test --test manual
.TH MAILCHUTE 8 "" "mailchute VERSION" "System Manager's Manual"
.SH NAME
mailchute \- SMTP server that stores mail in a Maildir
.SH SYNOPSIS
.B mailchute
.RI [ OPTION ]...
.br
.B mailchute healthcheck
.RI [ ADDR ]
.br
.B mailchute journal
.I FILE
.SH DESCRIPTION
.B mailchute
takes mail by SMTP or LMTP and has it safely in a Maildir before it says 250.
It receives and stores, and does nothing else: it never relays.
It stays in the foreground and logs to standard error, or to syslog.
.PP
.B mailchute journal
lists what is in
.IR FILE ,
a .mailchute\-journal.N of a Maildir: where each message is, whether it waits or is published, and where it goes.
.PP
.B mailchute healthcheck
asks a server whether it takes mail, in less than a second, and stores nothing: the one at
.IR ADDR ,
which is IP:PORT or unix:PATH, else at the first address in
.BR MAILCHUTE_LISTEN ,
else at 127.0.0.1:2525.
.SH OPTIONS
What stands in brackets holds without the option.
Options with three dots behind their value may be given several times.
"#;
const BEHIND: &str = r#".SH ENVIRONMENT
Each option can also be given as a variable:
.BR MAILCHUTE_LISTEN ,
.B MAILCHUTE_MAX_SIZE
and so on.
An option wins over its variable, several values in a variable are separated by commas, and an empty variable counts as
unset.
What is a mere switch takes yes or no there.
.TP
.B RUST_LOG
filters of the log, where neither
.B \-\-log
nor its variable is given.
.TP
.BR LISTEN_FDS ", " LISTEN_PID ", " LISTEN_FDNAMES
sockets that a service manager opened; they are used in place of
.BR \-\-listen .
One that is named lmtp speaks LMTP.
.TP
.B NOTIFY_SOCKET
where a service manager is told of the start and of the end.
.SH SIGNALS
.TP
.BR SIGTERM ", " SIGINT
end the server: messages that are coming in may finish for 8 seconds.
A second signal ends it at once.
.TP
.B SIGHUP
has the table of recipients read again.
.SH EXIT STATUS
.TP
.B 0
It was told to end.
.TP
.B 1
It could not start, or go on; one line on standard error says why.
.TP
.B 64
An option or a variable is wrong.
.PP
That of a health check is 0 if mail is taken, 1 if not, and 2 if it was used wrongly.
.SH EXAMPLES
.nf
mailchute \-\-listen 0.0.0.0:25 \-\-domain example.org \-\-maildir /var/mail/in \-\-user mail
mailchute healthcheck 127.0.0.1:25
.fi
.SH SEE ALSO
.BR systemd.socket (5),
.BR maildir (5)
"#;

/// Text as roff has it: no hyphen is a minus, no line begins a request, and nothing needs more than ASCII.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('…', "...");
    assert!(text.is_ascii() && !text.starts_with(['.', '\'']), "{text}");
    text
}

fn page() -> String {
    let mut page = BEFORE.replace("VERSION", env!("CARGO_PKG_VERSION"));
    for (name, placeholder, help) in options() {
        let value = if placeholder.is_empty() { String::new() } else { format!(" \" {}\"", roff(placeholder)) };
        page += &format!(".TP\n.BI \\-\\-{}{value}\n{}\n", roff(name), roff(help));
    }
    // Those that set nothing: `-c, --check`.
    for line in TABLE.lines().filter_map(|line| line.strip_prefix("  -").filter(|rest| !rest.starts_with('-'))) {
        let (names, help) = line.split_once("  ").unwrap();
        page += &format!(".TP\n.B \\-{}\n{}\n", roff(names), roff(help.trim()));
    }
    page + BEHIND
}

#[test]
fn the_man_page_agrees_with_the_table_of_options() {
    if std::env::var_os(WRITE).is_some() {
        fs::write(MANUAL, page()).unwrap();
    }
    let there = fs::read_to_string(MANUAL).unwrap_or_default();
    assert!(there == page(), "{MANUAL} is not what the table says: {WRITE}=yes cargo test --test manual writes it");
}

// ---- OpenWrt -------------------------------------------------------------------------------------------------------

/// What the init script finds of OpenWrt's own functions, with settings in variables `uci_NAME`, values on lines of their own.
const STUBS: &str = r#"
procd_open_instance() { :; }
procd_close_instance() { :; }
procd_set_param() { [ "$1" != command ] || { shift; printf '%s\n' "$@"; }; }
procd_append_param() { shift; printf '%s\n' "$@"; }
config_get() { eval "$1=\"\${uci_$3:-$4}\""; }
config_get_bool() { config_get "$@"; }
config_list_foreach() {
    eval "list=\"\$uci_$2\""
    while read -r item; do [ -z "$item" ] || "$3" "$item" "$4"; done <<END
$list
END
}
mkdir() { :; }
chmod() { :; }
chown() { :; }
"#;

/// Each setting of the file for OpenWrt, as a shell's assignment of one or more lines: those that count, or all.
fn uci(all: bool) -> Vec<(String, String)> {
    let mut settings: Vec<(String, String)> = Vec::new();
    for line in fs::read_to_string("dist/openwrt/mailchute.config").unwrap().lines() {
        let line = if all { line.trim_start_matches('#') } else { line };
        let Some((kind, rest)) = line.trim().split_once(' ') else { continue };
        let Some((name, value)) = rest.split_once(' ').filter(|_| ["option", "list"].contains(&kind)) else { continue };
        let value = value.trim_matches('\'');
        match settings.iter_mut().find(|(known, _)| known == name) {
            Some((_, values)) => *values += &format!("\n{value}"),
            None => settings.push((name.to_owned(), value.to_owned())),
        }
    }
    settings
}

/// The command line that the init script makes of these settings.
fn of_openwrt(settings: &[(String, String)]) -> Vec<String> {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{STUBS}\n. dist/openwrt/mailchute.init\nstart_instance main")]);
    command.envs(settings.iter().map(|(name, value)| (format!("uci_{name}"), value)));
    let ended = run(command);
    assert_eq!(ended.stderr, "");
    ended.stdout.lines().map(str::to_owned).collect()
}

#[test]
fn openwrt_has_every_option() {
    let mut settings = uci(true);
    for (name, ..) in options() {
        let name = name.replace('-', "_");
        assert!(settings.iter().any(|(known, _)| *known == name), "mailchute.config lacks {name}");
    }
    assert_eq!(settings.len(), options().len() + 1, "all and `enabled`");
    assert_eq!(of_openwrt(&settings), <[&str; 0]>::default(), "not enabled");
    for (name, value) in &mut settings {
        if name == "enabled"
            || options().iter().any(|(known, kind, _)| kind.is_empty() && known.replace('-', "_") == *name)
        {
            assert_eq!(value, "0");
            "1".clone_into(value);
        }
    }
    let arguments = of_openwrt(&settings);
    assert_eq!(arguments[0], "/usr/sbin/mailchute");
    let mut command = mailchute();
    command.args(&arguments[1..]).arg("--check");
    let ended = run(command);
    assert_eq!((ended.status.code(), ended.stderr.as_str()), (Some(0), ""), "{arguments:?}");
    for (name, ..) in options() {
        assert!(ended.stdout.contains(&format!("  # from --{name}\n")), "{name} is not in {arguments:?}");
    }
    assert_eq!(ended.stdout.matches("from --listen\n").count(), 2);
    // As it is installed, but enabled.
    let mut settings = uci(false);
    settings.iter_mut().filter(|(name, _)| name == "enabled").for_each(|(_, value)| "1".clone_into(value));
    assert_eq!(
        of_openwrt(&settings)[1..],
        [
            "--listen",
            "0.0.0.0:25",
            "--listen",
            "[::]:25",
            "--maildir",
            "/srv/mailchute",
            "--max-connections",
            "64",
            "--user",
            "mailchute"
        ]
    );
    assert!(
        fs::read_to_string("dist/openwrt/Makefile")
            .unwrap()
            .contains(&format!("PKG_VERSION:={}\n", env!("CARGO_PKG_VERSION")))
    );
}
