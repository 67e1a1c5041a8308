//! The log at its usual level: one line for a message, one for a refused one, and nothing that a peer can break.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Place, Server, text};

/// What the log says at the end of session 1 of a server with `options`, to which a client says `lines`, each with its
/// reply. Ids are `…`.
#[track_caller]
fn log_of(options: &[&str], lines: &[(&str, &str)]) -> Vec<String> {
    let place = Place::new();
    let server = Server::start(&place, &[options, &["--log", "debug"]].concat());
    let mut client = server.connect();
    for (line, reply) in lines {
        client.say(line, reply);
    }
    drop(client);
    server.wait_for_line("session=1 closed");
    let log = server.log();
    server.stop();
    let lines = log.lines().filter_map(|line| line.strip_prefix("INFO  session=1 "));
    lines
        .map(|line| match line.split_once(" id=") {
            Some((before, id)) => format!("{before} id=…{}", &id[id.find(' ').unwrap()..]),
            None => line.to_owned(),
        })
        .collect()
}

const MAIL: (&str, &str) = ("MAIL FROM:<a@b.example>", "250 ");
const RCPT: (&str, &str) = ("RCPT TO:<c@d.example>", "250 ");
const RCPT_AGAIN: (&str, &str) = ("RCPT TO:<e@d.example>", "250 ");
const FOREIGN: (&str, &str) = ("RCPT TO:<x@elsewhere.example>", "550 5.7.1 ");
const DATA: (&str, &str) = ("DATA", "354 ");
const RSET: (&str, &str) = ("RSET", "250 ");

#[test]
fn one_line_for_each_refused_message() {
    let ours = ["--domain", "d.example"];
    let from = "from=\"a@b.example\"";
    let too_large = format!(
        "refused id=… {from} to=\"c@d.example\" recipients=2 reply=\"552 5.3.4 Message exceeds the maximum size\""
    );
    let nobody = format!("{from} to=\"x@elsewhere.example\" recipients=0 reply=\"550 5.7.1 Relaying denied\"");
    let (large, looping) = (text(1, 3000), "Received: x\r\n".repeat(101));
    let chunk = format!("BDAT {}\r\n{}", large.len(), &large[..large.len() - 2]);
    for (options, lines, expected) in [
        (
            &["--max-size", "2000"][..],
            &[("EHLO x", "250"), ("MAIL FROM:<a@b.example> SIZE=2001", "552 ")][..],
            &[format!("refused {from} to=\"\" recipients=0 reply=\"552 5.3.4 Message exceeds the maximum size\"")][..],
        ),
        // Whatever comes between, and also where it goes on.
        (
            &["--max-size", "2000"],
            &[MAIL, RCPT, RCPT_AGAIN, DATA, (&format!("{large}."), "552 "), MAIL, RSET],
            std::slice::from_ref(&too_large),
        ),
        (
            &["--max-size", "2000"],
            &[MAIL, RCPT, RCPT_AGAIN, (&chunk, "552 "), ("NONSENSE", "500 "), RSET],
            std::slice::from_ref(&too_large),
        ),
        (
            &[],
            &[MAIL, RCPT, DATA, (&format!("{looping}."), "554 ")],
            &[format!(
                "refused id=… {from} to=\"c@d.example\" recipients=1 reply=\"554 5.4.6 Too many Received lines: a mail loop\""
            )],
        ),
        (
            &["--bare-newline", "reject"],
            &[MAIL, RCPT, DATA, ("a\nb\r\n.", "550 ")],
            &[format!(
                "refused id=… {from} to=\"c@d.example\" recipients=1 reply=\"550 5.6.11 Lone CR or LF in the message; lines end in CRLF\""
            )],
        ),
        (&ours, &[MAIL, FOREIGN, DATA, ("text\r\n.", "554 ")], &[format!("refused id=… {nobody}")]),
        (&ours, &[MAIL, FOREIGN, ("BDAT 4 LAST\r\nte", "503 ")], &[format!("refused {nobody}")]),
        (&ours, &[MAIL, FOREIGN, RSET, ("QUIT", "221 ")], &[format!("refused {nobody}")]),
        (&ours, &[MAIL, FOREIGN, ("QUIT", "221 ")], &[format!("refused {nobody}")]),
        (
            &["--strict"],
            &[("EHLO x", "250"), MAIL, RCPT, ("DATA\r\nNOOP", "554 ")],
            &[
                format!(
                    "refused {from} to=\"c@d.example\" recipients=1 reply=\"554 5.5.0 You talked before your turn\""
                ),
                "closed reason=end stored=0 hint=too-strict peer=[127.0.0.1] probes=0".to_owned(),
            ],
        ),
        // Who has somebody left, or is but in error, has none.
        (
            &ours,
            &[MAIL, RCPT, FOREIGN, DATA, (".", "250 ")],
            &[format!("stored id=… {from} to=\"c@d.example\" recipients=1 size=0")],
        ),
        (
            &[],
            &[("NONSENSE", "500 "), ("MAIL FROM:<", "501 "), ("RCPT TO:<c@d.example>", "503 "), ("DATA", "503 ")],
            &[],
        ),
        (&[], &[MAIL, RCPT, RSET, MAIL, RCPT], &[]),
    ] {
        assert_eq!(log_of(options, lines), expected, "{lines:?}");
    }
}

#[test]
fn nothing_from_a_peer_breaks_a_line() {
    let ours = ["--domain", "d.example"];
    let nasty = [
        ("HELO x\"\\ session=2", "250 "),
        ("MAIL FROM:<\"a\\\" b\\\\\"@b.example>", "250 "),
        ("RCPT TO:<\"c\\\" to=\"@elsewhere.example>", "550 "),
        RSET,
        ("EHLO x", "250"),
        ("MAIL FROM:<\u{e9}@b.example> SMTPUTF8", "250 "),
        ("RCPT TO:<\u{e9}@elsewhere.example>", "550 "),
    ];
    let log = log_of(&ours, &nasty);
    let reply = "reply=\"550 5.7.1 Relaying denied\"";
    assert_eq!(log.len(), 2, "{log:?}");
    let first = r#"refused from="\"a\\\" b\\\\\"@b.example" to="\"c\\\" to=\"@elsewhere.example" recipients=0 "#;
    assert_eq!(log[0], format!("{first}{reply}"));
    let second = "refused from=\"\u{e9}@b.example\" to=\"\u{e9}@elsewhere.example\" recipients=0 ";
    assert_eq!(log[1], format!("{second}{reply}"));
}
