//! The one table of options, wherever it shows: what `--check` prints, the man page, and OpenWrt's settings.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

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
