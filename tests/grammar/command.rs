//! Commands: each verb with what it may and may not say, and the devices that say it otherwise.

use mailchute::smtp::command::*;
use mailchute::smtp::reply::Reply;

use crate::random::Random;

const STRICT: bool = true;

fn parse(line: &str, strict: bool) -> Result<Command<'_>, Reply> {
    Command::parse(line.as_bytes(), strict)
}

/// A command, and where it is AUTH what whoever offers it makes of the argument.
fn parse_whole(line: &[u8], strict: bool) -> Result<Command<'_>, Reply> {
    let command = Command::parse(line, strict)?;
    if let Command::Auth(argument) = command {
        login(argument, strict)?;
    }
    Ok(command)
}

/// The address and the parameters of MAIL, or the reply.
fn mail(line: &str, strict: bool) -> Result<(&str, MailParameters), Reply> {
    match parse(line, strict)? {
        Command::Mail(reverse_path, parameters) => Ok((reverse_path.as_str(), parameters)),
        other => panic!("{line}: {other:?}"),
    }
}

#[track_caller]
fn both(line: &str, expected: Result<Command<'_>, Reply>) {
    assert_eq!(parse(line, STRICT), expected, "strict: {line:?}");
    assert_eq!(parse(line, LENIENT), expected, "lenient: {line:?}");
}

#[track_caller]
fn differ(line: &str, strict: Reply, lenient: Result<Command<'_>, Reply>) {
    assert_eq!(parse(line, STRICT), Err(strict), "strict: {line:?}");
    assert_eq!(parse(line, LENIENT), lenient, "lenient: {line:?}");
}

#[test]
fn verbs() {
    let verbs = [
        ("RSET", Command::Rset),
        ("rset", Command::Rset),
        ("NoOp", Command::Noop),
        ("NOOP anything", Command::Noop),
        ("DATA \t ", Command::Data),
        ("QUIT", Command::Quit),
        ("HELP", Command::Help),
        ("help MAIL", Command::Help),
        ("VRFY somebody", Command::Vrfy),
        ("EXPN list", Command::Expn),
        ("vrfy é SMTPUTF8", Command::Vrfy),
        ("StartTLS", Command::StartTls),
    ];
    for (line, command) in verbs {
        both(line, Ok(command));
    }
    for line in ["", " ", "X", "QUI", "QUITE", "QUIT\r", " QUIT", "STAR", "STARTTL", "STARTTLSX", "START", "TURN"] {
        both(line, Err(Reply::UNRECOGNIZED));
    }
    assert_eq!(Command::parse(b"\x80FAIL", LENIENT), Err(Reply::UNRECOGNIZED));
    assert_eq!(Command::parse(b"\x91UIT", LENIENT), Err(Reply::UNRECOGNIZED));
    for line in ["DATA now", "RSET all", "QUIT please"] {
        assert_eq!(parse(line, STRICT), Err(Reply::BAD_ARGUMENT), "{line}");
        assert!(parse(line, LENIENT).is_ok(), "{line}");
    }
    for line in ["VRFY", "EXPN ", "STARTTLS now", "VRFY  SMTPUTF8"] {
        assert!(parse(line, STRICT).is_err_and(|reply| reply.0.starts_with("501 ")), "{line}");
        assert!(parse(line, LENIENT).is_err() || line.starts_with("VRFY  "), "{line}");
    }
    both("VRFY é", Err(Reply::UTF8_NOT_ANNOUNCED));
    for line in ["NOOP a\0b", "HELP é", "VRFY a\x1b", "DATA \x7f", "QUIT a\x01", "VRFY \u{9b} SMTPUTF8"] {
        assert!(parse(line, LENIENT).is_err_and(|reply| reply.0.starts_with("501 ")), "{line}");
    }
    for verb in ["NOOP", "MAIL", "RCPT", "BDAT", "AUTH", "VRFY", "EHLO", "QUIT"] {
        let line = [verb.as_bytes(), b" FROM:<a\xff@b>"].concat();
        assert!(parse_whole(&line, LENIENT).is_err_and(|reply| reply.0.starts_with("501 ")), "{verb}");
    }
}

#[test]
fn hello_names() {
    for (line, hello, name) in [
        ("HELO example.com", Hello::Helo, "example.com"),
        ("ehlo [192.168.1.21]", Hello::Ehlo, "[192.168.1.21]"),
        ("HELO 1.2.3.4", Hello::Helo, "1.2.3.4"),
        ("HELO medea ", Hello::Helo, "medea"), // HP
        ("LHLO [IPv6:::1]", Hello::Lhlo, "[IPv6:::1]"),
    ] {
        both(line, Ok(Command::Hello(hello, name)));
    }
    for (device, line, name) in [
        ("Danfoss drive", "HELO", ""),
        ("Danfoss drive", "EHLO ", ""),
        ("Nextcloud behind a wildcard vhost", "EHLO ~^wildcard", "~^wildcard"),
        ("ownCloud on a default vhost", "EHLO _", "_"),
        ("ownCloud on a default vhost", "EHLO ~", "~"),
        ("a printer with a display name", "EHLO \t My_Printer 3rd floor", "My_Printer 3rd floor"),
        ("Windows 98", "EHLO PC_1", "PC_1"),
    ] {
        let hello = if line.starts_with("HELO") { Hello::Helo } else { Hello::Ehlo };
        assert_eq!(parse(line, LENIENT), Ok(Command::Hello(hello, name)), "{device}");
        assert_eq!(parse(line, STRICT), Err(Reply::BAD_NAME), "{device}");
    }
    let name = "d".repeat(255);
    both(&format!("EHLO {name}"), Ok(Command::Hello(Hello::Ehlo, &name)));
    both(&format!("EHLO {name}d"), Err(Reply::BAD_NAME));
    for line in ["EHLO a\0b", "EHLO x\rInjected: y", "HELO é", "HELO \x1b[2J", "EHLO a\tb", "LHLO \x7f"] {
        both(line, Err(Reply::BAD_NAME));
    }
}

#[test]
fn mail_from_devices() {
    for (device, line, address) in [
        ("LSI MegaRAID", "MAIL FROM: test@testingsmtp.com", "test@testingsmtp.com"),
        ("LSI MegaRAID", "MAIL FROM:raid@example.com", "raid@example.com"),
        ("HPE iLO", "MAIL FROM:<ilo.@example.com>", "ilo.@example.com"),
        ("HPE iLO", "MAIL FROM:<ilo..x@example.com>", "ilo..x@example.com"),
        ("cron", "MAIL FROM:<root>", "root"),
        ("a person", "mail  from : < a@b > ", "a@b"),
        ("a tab for a space", "MAIL\tFROM:\t<a@b>\tSIZE=", "a@b"),
        ("Nagios", "MAIL FROM:<a@b> AUTH=<>", "a@b"),
        ("smtp4dev#565", "MAIL FROM:<a@b> RET=HDRS ENVID=a=b", "a@b"),
        ("SIZE not known yet", "MAIL FROM:<> SIZE=", ""),
        ("SIZE not known yet", "MAIL FROM:<> SIZE", ""),
    ] {
        assert_eq!(mail(line, LENIENT), Ok((address, MailParameters::default())), "{device}: {line}");
        assert!(parse(line, STRICT).is_err(), "{device}: {line}");
    }
    for (device, line, address) in [
        ("LSI MegaRAID", "RCPT TO: richlowe@internet--tips.net", "richlowe@internet--tips.net"),
        ("cron", "RCPT TO:<root>", "root"),
        ("a person", "rcpt to :postmaster", "Postmaster"),
        ("asks for notifications", "RCPT TO:<a@b> NOTIFY=NEVER ORCPT=rfc822;a@b", "a@b"),
    ] {
        let Ok(Command::Rcpt(forward_path)) = parse(line, LENIENT) else { panic!("{device}: {line}") };
        assert_eq!(forward_path.as_str(), address, "{device}");
        assert!(parse(line, STRICT).is_err(), "{device}: {line}");
    }
}

#[test]
fn paths() {
    let none = MailParameters::default();
    for strict in [STRICT, LENIENT] {
        assert_eq!(mail("mail From:<>", strict), Ok(("", none)));
        assert_eq!(mail("MAIL FROM:<@x,@y:\"a b\"@[1.2.3.4]>  ", strict), Ok(("\"a b\"@[1.2.3.4]", none)));
        let Ok(Command::Rcpt(forward_path)) = parse("RCPT TO:<é@x>", strict) else { panic!("{strict:?}") };
        assert!(!forward_path.as_str().is_ascii());
    }
    for line in ["MAIL", "MAIL FROM", "MAIL FROM <a@b>", "MAIL TO:<a@b>", "MAIL <a@b>", "MAIL FROM\0:<a@b>"] {
        both(line, Err(Reply::SYNTAX_ERROR));
    }
    for line in ["MAIL FROM:", "MAIL FROM:<a@b", "MAIL FROM:a@b>", "MAIL FROM:<a@b>SIZE=1", "MAIL FROM:<a\0b@x>"] {
        both(line, Err(Reply::BAD_REVERSE_PATH));
    }
    for line in ["RCPT TO:", "RCPT TO:<>", "RCPT TO:<a@b>>", "RCPT TO:<a\x1b@b>", "RCPT TO:<a\u{85}@b>"] {
        both(line, Err(Reply::BAD_FORWARD_PATH));
    }
    assert_eq!(Command::parse(b"MAIL FROM:<\xe5@x>", LENIENT), Err(Reply::SYNTAX_ERROR));
}

#[test]
fn mail_parameters() {
    let size = |size| MailParameters { size, ..MailParameters::default() };
    let none = MailParameters::default();
    let good = [
        ("SIZE=0", size(0)),
        ("size=25000000", size(25_000_000)),
        ("SIZE=18446744073709551615", size(u64::MAX)),
        ("SIZE=18446744073709551617", size(u64::MAX)),
        ("SIZE=99999999999999999999", size(u64::MAX)),
        ("BODY=7bit", none),
        ("body=8BitMime", none),
        ("SMTPUTF8 SIZE=1 BODY=8BITMIME", MailParameters { size: 1, smtp_utf8: true }),
    ];
    let malformed = [
        "SIZE=-1",
        "SIZE=+5",
        "SIZE=0x1",
        "SIZE=1e3",
        "SIZE=100000000000000000000",
        "BODY",
        "BODY=",
        "SMTPUTF8=",
        "SIZE=0000000000000000000000000000000000000001",
        "SMTPUTF8=1",
        "SIZE=1 SIZE=1",
        "SMTPUTF8 smtputf8",
        "=1",
        "ENVID=a\0b",
        "AUTH=é",
        "SIZE=1\x7f",
        "<c@d>",
        "x>",
        "é",
        "a_b=1",
        "ENVID=\u{9b}",
        "RET=a ret=b BODY=é",
    ];
    let unknown = ["XFOO", "XFOO=1", "BODY=BINARYMIME", "BODY=9BIT", "BY=1;R", "garbage", "SIZE=1 XFOO=<>"];
    for strict in [STRICT, LENIENT] {
        for (text, parameters) in good {
            assert_eq!(mail(&format!("MAIL FROM:<a@b> {text}"), strict), Ok(("a@b", parameters)), "{text}");
        }
        for text in unknown {
            assert_eq!(mail(&format!("MAIL FROM:<a@b> {text}"), strict), Err(Reply::PARAMETER_UNKNOWN), "{text}");
        }
    }
    for text in malformed {
        let line = format!("MAIL FROM:<a@b> {text}");
        assert_eq!(mail(&line, LENIENT), Err(Reply::PARAMETER_MALFORMED), "{text}");
        assert!(parse(&line, STRICT).is_err(), "{text}");
    }
    for text in ["AUTH=<>", "RET=FULL", "ENVID=1", "NOTIFY=NEVER", "ORCPT=x;y"] {
        let line = format!("MAIL FROM:<a@b> {text}");
        assert_eq!(mail(&line, STRICT), Err(Reply::PARAMETER_UNKNOWN), "{text}");
        assert!(mail(&line, LENIENT).is_ok(), "{text}");
    }
    for text in [" SIZE=1", "SIZE=1  BODY=7BIT", "SIZE=", "SIZE", "SIZE=1\tBODY=7BIT"] {
        let line = format!("MAIL FROM:<a@b> {text}");
        assert_eq!(mail(&line, STRICT), Err(Reply::PARAMETER_MALFORMED), "{text}");
        assert!(mail(&line, LENIENT).is_ok(), "{text}");
    }
    for text in ["SIZE=1", "BODY=7BIT", "SMTPUTF8", "X=1"] {
        both(&format!("RCPT TO:<a@b> {text}"), Err(Reply::PARAMETER_UNKNOWN));
    }
}

#[test]
fn chunks() {
    for (line, octets, last) in [
        ("BDAT 0", 0, false),
        ("BDAT 86 LAST", 86, true),
        ("bdat 00000000000000000007 last", 7, true),
        ("BDAT 18446744073709551615 LAST", u64::MAX, true),
    ] {
        both(line, Ok(Command::Bdat { octets, last }));
    }
    differ("BDAT \t 7 \t Last", Reply::BAD_CHUNK, Ok(Command::Bdat { octets: 7, last: true }));
    for line in [
        "BDAT",
        "BDAT LAST",
        "BDAT -1",
        "BDAT +5",
        "BDAT 1.0",
        "BDAT 0x10",
        "BDAT 18446744073709551616",
        "BDAT 1LAST",
        "BDAT 1 LAST x",
        "BDAT 1 LASTS",
        "BDAT 1 2",
        "BDAT \x7f",
        "BDAT 1\0",
        "BDAT ١",
        "BDAT 000000000000000000001",
        "BDAT 1111111111111111111111111111111111111111",
    ] {
        both(line, Err(Reply::BAD_CHUNK));
    }
}

#[test]
fn authentication() {
    both("auth plain x", Ok(Command::Auth("plain x")));
    both("AUTH \t", Ok(Command::Auth("")));
    for strict in [STRICT, LENIENT] {
        assert_eq!(login("LOGIN", strict), Ok(("LOGIN", None)));
        assert_eq!(login("plain =", strict), Ok(("plain", Some("="))));
        assert_eq!(login("PLAIN AGEAYg==", strict), Ok(("PLAIN", Some("AGEAYg=="))));
        assert_eq!(login("SCRAM-SHA-256", strict), Ok(("SCRAM-SHA-256", None)));
        for argument in ["", "=", "A.B", "ABCDEFGHIJKLMNOPQRSTU", "PLAIN a b", "é"] {
            assert_eq!(login(argument, strict), Err(Reply::BAD_ARGUMENT), "{argument}");
        }
        assert_eq!(login("PLAIN a\0b", strict), Err(Reply::SYNTAX_ERROR));
    }
    assert_eq!(login("LOGIN  YQ==", STRICT), Err(Reply::BAD_ARGUMENT));
    assert_eq!(login("LOGIN  YQ==", LENIENT), Ok(("LOGIN", Some("YQ=="))));
}

#[test]
fn foreign_talk() {
    for (line, talk) in [
        (&b"GET / HTTP/1.1"[..], Some("http")),
        (b"POST / HTTP/1.1", Some("http")),
        (b"PUT /x", Some("http")),
        (b"HEAD / HTTP/1.0", Some("http")),
        (b"OPTIONS * HTTP/1.1", Some("http")),
        (b"CONNECT a:25 HTTP/1.1", Some("http")),
        (b"\x16\x03\x01\x02\x00", Some("tls-on-plain")),
        (b"\x16", Some("tls-on-plain")),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 25", Some("proxy-header")),
        (b"\0", Some("proxy-header")),
        (b"GETX", None),
        (b"", None),
        (b"MAIL FROM:<a@b>", None),
    ] {
        assert_eq!(foreign(line).map(|(_, hint)| *hint), talk, "{}", line.escape_ascii());
    }
}

#[test]
fn any_octets_are_a_command_or_a_reply() {
    let seeds: [&[u8]; 12] = [
        b"MAIL FROM:<a@b> SIZE=1 BODY=7BIT SMTPUTF8",
        b"RCPT TO:<\"a\\b\"@[IPv6:::1]>",
        b"EHLO [1.2.3.4]",
        b"BDAT 86 LAST",
        b"AUTH PLAIN =",
        b"VRFY \xc3\xa9 SMTPUTF8",
        b"STARTTLS",
        b"NOOP x",
        b"DATA",
        b"QUIT",
        b"MAIL FROM: @x,@y:r\xc3\xa9.@[tag:x] AUTH=<>",
        b"RCPT TO:<postmaster>",
    ];
    let octets = b"\0\t\x7f\x80\xc2\xc3\xa9\xff <>@:;,.[]\"\\=-+09aZ";
    let mut random = Random::new(2);
    let mut accepted = 0;
    for round in 0..400_000 {
        let mut line: Vec<u8> = random.choose(&seeds).to_vec();
        if round % 8 == 0 {
            line = (0..random.below(40)).map(|_| u8::try_from(random.below(256)).unwrap()).collect();
        }
        for _ in 0..random.below(4) {
            let at = random.below(line.len() + 1);
            match random.below(4) {
                0 => line.insert(at, random.choose(octets)),
                1 => line.truncate(at),
                2 => line.extend_from_slice(&random.choose(&seeds)[at.min(4)..]),
                _ if at < line.len() => line[at] = random.choose(octets),
                _ => {}
            }
        }
        let lenient = parse_whole(&line, LENIENT);
        if let Ok(strict) = parse_whole(&line, STRICT) {
            accepted += 1;
            assert_eq!(lenient, Ok(strict), "{}", line.escape_ascii());
        }
        if let Err(reply) = lenient {
            assert!(["500", "501", "553", "555"].contains(&&reply.0[..3]), "{}", line.escape_ascii());
        } else {
            assert_eq!(foreign(&line), None);
            assert!(!line.contains(&0) && !line.contains(&0x7f), "{}", line.escape_ascii());
        }
    }
    assert!(accepted > 50_000, "too few commands survive: {accepted}");
}
