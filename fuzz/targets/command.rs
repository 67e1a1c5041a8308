//! The command parser: what it reads lies within the line and its limits, has no control characters, means the same when
//! it is written as the RFCs write it, and is read no other way where all is to the letter.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mailchute::smtp::address::Path;
use mailchute::smtp::command::{Command, Hello, LENIENT, MailParameters, foreign, login};
use mailchute::smtp::reply::Reply;

const STRICT: bool = true;

fuzz_target!(|line: &[u8]| {
    let lenient = check(line, LENIENT);
    // What is right to the letter means nothing else where more is forgiven.
    match check(line, STRICT) {
        Ok(Command::Auth(argument)) => {
            let Ok(Command::Auth(forgiven)) = lenient else { panic!("{lenient:?}") };
            assert!(login(argument, STRICT).is_err() || login(argument, STRICT) == login(forgiven, LENIENT));
        }
        Ok(command) => assert_eq!(lenient, Ok(command)),
        Err(_) => {}
    }
    // Blanks at the end mean nothing, nor does the case of the verb.
    assert_eq!(Command::parse(&[line, b"\t "].concat(), LENIENT), lenient);
    let verb = line.iter().position(|octet| matches!(octet, b' ' | b'\t')).unwrap_or(line.len());
    let flipped = [&line[..verb].iter().map(|octet| flip(*octet)).collect::<Vec<_>>()[..], &line[verb..]].concat();
    assert_eq!(Command::parse(&flipped, LENIENT), lenient);
});

fn flip(octet: u8) -> u8 {
    if octet.is_ascii_alphabetic() { octet ^ 0x20 } else { octet }
}

fn check(line: &[u8], strict: bool) -> Result<Command<'_>, Reply> {
    let command = Command::parse(line, strict);
    let command = match command {
        Ok(command) => command,
        Err(reply) => {
            assert!(["500", "501", "553", "555"].contains(&&reply.0[..3]), "{reply:?}");
            return Err(reply);
        }
    };
    assert_eq!(foreign(line), None, "a command is foreign");
    match command {
        Command::Hello(_, name) => {
            within(name, line);
            assert!(name.len() <= 255 && name.bytes().all(|octet| matches!(octet, b' '..=b'~')), "{name:?}");
            assert!(!strict || !name.is_empty());
        }
        Command::Mail(path, _) => check_path(path, "", line, strict),
        Command::Rcpt(path) => check_path(path, "Postmaster", line, strict),
        // This stands for what is not UTF-8.
        Command::Auth(argument) if argument != "\0" => {
            within(argument, line);
            check_login(argument, line, strict);
        }
        _ => {}
    }
    let written = write(&command);
    assert_eq!(Command::parse(written.as_bytes(), strict), Ok(command), "{written:?}");
    Ok(command)
}

/// Whether a text is part of the line.
fn within(text: &str, line: &[u8]) {
    let (inner, outer) = (text.as_bytes().as_ptr_range(), line.as_ptr_range());
    assert!(text.is_empty() || outer.start <= inner.start && inner.end <= outer.end, "{text:?}");
}

fn check_path(path: Path<'_>, other: &str, line: &[u8], strict: bool) {
    let (text, local_part) = (path.as_str(), path.local_part());
    assert!(!text.chars().any(char::is_control), "{text:?}");
    if text == other {
        assert_eq!((local_part, path.domain()), (other, None));
        return;
    }
    within(text, line);
    assert!((1..=if strict { 64 } else { 255 }).contains(&local_part.len()), "{text:?}");
    match path.domain() {
        Some(domain) => {
            assert_eq!(text, format!("{local_part}@{domain}"));
            // RFC 5321 4.1.3 has more octets in the literals of families that are not known yet.
            let literal = domain.starts_with('[') && domain.ends_with(']');
            assert!(
                (1..=255).contains(&domain.len()) && !domain.contains([' ', '/', '"', '\\']) || literal,
                "{domain:?}"
            );
            assert!(literal || !domain.contains(['@', '<', '>', '[', ']', ':']), "{domain:?}");
        }
        None => assert!(text == local_part && !strict, "{text:?}"),
    }
    assert_eq!(Path::mailbox(text, strict), Some(path), "read by itself");
    assert_eq!(path.unquoted().collect::<String>(), unquote(local_part), "{text:?}");
    // Only quotes hide what would end the path.
    assert!(local_part.starts_with('"') || !local_part.contains([' ', '<', '>', '@', '"', '\\']), "{text:?}");
}

/// A local part without its quotes, read the slow way.
fn unquote(local_part: &str) -> String {
    let Some(quoted) = local_part.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return local_part.to_owned();
    };
    let (mut text, mut escaped) = (String::new(), false);
    for character in quoted.chars() {
        escaped = character == '\\' && !escaped;
        if !escaped {
            text.push(character);
        }
    }
    text
}

fn check_login(argument: &str, line: &[u8], strict: bool) {
    match login(argument, strict) {
        Ok((mechanism, response)) => {
            within(mechanism, line);
            assert!((1..=20).contains(&mechanism.len()) && mechanism.is_ascii(), "{mechanism:?}");
            assert!(response.is_none_or(|text| !text.contains(' ') && !text.is_empty()), "{response:?}");
            let response = response.map_or(String::new(), |text| format!(" {text}"));
            assert!(login(&format!("{mechanism}{response}"), strict).is_ok());
        }
        Err(reply) => assert!(reply.0.starts_with("501"), "{reply:?}"),
    }
}

/// A command as the RFCs write it.
fn write(command: &Command<'_>) -> String {
    match command {
        Command::Hello(Hello::Helo, name) => format!("HELO {name}"),
        Command::Hello(Hello::Ehlo, name) => format!("EHLO {name}"),
        Command::Hello(Hello::Lhlo, name) => format!("LHLO {name}"),
        Command::Mail(path, MailParameters { size, smtp_utf8 }) => {
            let size = if *size > 0 { format!(" SIZE={size}") } else { String::new() };
            let utf8 = if *smtp_utf8 { " SMTPUTF8" } else { "" };
            format!("MAIL FROM:<{}>{size}{utf8}", path.as_str())
        }
        Command::Rcpt(path) => format!("RCPT TO:<{}>", path.as_str()),
        Command::Data => "DATA".to_owned(),
        Command::Bdat { octets, last } => format!("BDAT {octets}{}", if *last { " LAST" } else { "" }),
        Command::Rset => "RSET".to_owned(),
        Command::Noop => "NOOP".to_owned(),
        Command::Quit => "QUIT".to_owned(),
        Command::Vrfy => "VRFY x".to_owned(),
        Command::Expn => "EXPN x".to_owned(),
        Command::Help => "HELP".to_owned(),
        Command::Auth(argument) => format!("AUTH {argument}"),
        Command::StartTls => "STARTTLS".to_owned(),
    }
}
