//! Commands: one line of the peer, read into a verb with what it says (RFC 5321 4.1.1 and the extensions served).
//!
//! Only syntax is judged here; the order of commands, and whether addresses may be UTF-8, the session knows.

use std::str;

use super::address::{DOMAIN_OCTETS_MAX, Domain, ForwardPath, ReversePath, class};
use super::reply::Reply;

/// How commands are read: forgiving towards devices, as by default, or to the letter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Syntax {
    /// Read RFC 5321 to the letter.
    pub strict: bool,
}

impl Syntax {
    pub(super) fn choose<T>(self, strict: T, lenient: T) -> T {
        if self.strict { strict } else { lenient }
    }

    /// Whether `octet` stands between words: the space, and in lenient syntax the tab.
    pub(super) fn is_blank(self, octet: u8) -> bool {
        octet == b' ' || (octet == b'\t' && !self.strict)
    }

    /// `text` without the blanks at its start, which only lenient syntax has.
    pub(super) fn skip_blanks(self, text: &str) -> &str {
        let blanks = text.bytes().take_while(|octet| !self.strict && self.is_blank(*octet)).count();
        text.get(blanks..).unwrap_or_default()
    }
}

/// A command of the peer. What nobody looks at, such as the argument of VRFY, is judged but not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// HELO, EHLO or LHLO (RFC 5321 4.1.1.1, RFC 2033 4.1).
    Hello {
        /// Which of them.
        hello: Hello,
        /// Printable ASCII, at most 255 octets; in lenient syntax any, and empty when the peer gives none.
        name: &'a str,
    },
    /// MAIL (RFC 5321 4.1.1.2).
    Mail {
        /// Where the message comes from.
        reverse_path: ReversePath<'a>,
        /// What its extensions say.
        parameters: MailParameters,
    },
    /// RCPT (RFC 5321 4.1.1.3).
    Rcpt {
        /// Where the message goes.
        forward_path: ForwardPath<'a>,
    },
    /// DATA (RFC 5321 4.1.1.4).
    Data,
    /// BDAT (RFC 3030 2).
    Bdat {
        /// How many octets follow; any number, so nothing is to be set aside for them.
        octets: u64,
        /// Whether they are the last of the message.
        last: bool,
    },
    /// RSET (RFC 5321 4.1.1.5).
    Rset,
    /// NOOP (RFC 5321 4.1.1.9).
    Noop,
    /// QUIT (RFC 5321 4.1.1.10).
    Quit,
    /// VRFY (RFC 5321 4.1.1.6); its argument in UTF-8 ends in ` SMTPUTF8` (RFC 6531 3.7.4.2).
    Vrfy,
    /// EXPN (RFC 5321 4.1.1.7), with an argument as VRFY.
    Expn,
    /// HELP (RFC 5321 4.1.1.8).
    Help,
    /// AUTH (RFC 4954 4).
    Auth {
        /// 1 to 20 letters, digits, hyphens and underscores, in any case.
        mechanism: &'a str,
        /// In base64, which isn't proven here; empty where `=` was sent.
        initial_response: Option<&'a str>,
    },
    /// STARTTLS (RFC 3207 4).
    StartTls,
}

/// With which verb the peer introduces itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hello {
    /// SMTP without extensions.
    Helo,
    /// SMTP with extensions.
    Ehlo,
    /// LMTP.
    Lhlo,
}

/// What MAIL says behind its path (RFC 5321 4.1.1.11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MailParameters {
    /// Octets of the message, as the peer estimates them (RFC 1870 6); those above `u64` count as `u64::MAX`.
    pub size: Option<u64>,
    /// Kind of its body (RFC 6152 2). Either is stored as it comes.
    pub body: Option<Body>,
    /// Whether addresses and header fields may be UTF-8 (RFC 6531 3.4).
    pub smtp_utf8: bool,
}

/// Kind of a message's body (RFC 6152 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// `7BIT`.
    SevenBit,
    /// `8BITMIME`.
    EightBitMime,
}

impl<'a> Command<'a> {
    /// Reads `line`, which comes without its line end. Verbs are in any case, and blanks at the end mean nothing
    /// (RFC 5321 2.4, 4.1.1). Lenient syntax has blanks and tabs for a space and around the colon of MAIL and RCPT,
    /// any name or none after HELO, arguments to DATA, RSET and QUIT, and parameters that mean nothing to a store.
    ///
    /// # Errors
    /// 500 when the verb is none of those above; 501, 553 or 555 when what follows isn't what it takes.
    pub fn parse(mut line: &'a [u8], syntax: Syntax) -> Result<Self, Reply> {
        while let [before @ .., b' ' | b'\t'] = line {
            line = before;
        }
        // Makes nothing but a letter an upper-case letter.
        let upper_case = |octets: [u8; 4]| (u32::from_ne_bytes(octets) & 0xDFDF_DFDF).to_ne_bytes();
        let (word, rest) = line.split_first_chunk().ok_or(Reply::UNRECOGNIZED)?;
        let verb = upper_case(*word);
        let rest = match rest.split_first_chunk() {
            Some((tail, rest)) if verb == *b"STAR" && upper_case(*tail) == *b"TTLS" => rest,
            _ if verb == *b"STAR" => return Err(Reply::UNRECOGNIZED),
            _ => rest,
        };
        let argument = match rest {
            [] => rest,
            [blank, argument @ ..] if syntax.is_blank(*blank) => argument,
            _ => return Err(Reply::UNRECOGNIZED),
        };
        // What isn't UTF-8 has a place in no argument, just as this control character.
        let argument = syntax.skip_blanks(str::from_utf8(argument).unwrap_or("\0"));
        match &verb {
            b"HELO" => hello(Hello::Helo, argument, syntax),
            b"EHLO" => hello(Hello::Ehlo, argument, syntax),
            b"LHLO" => hello(Hello::Lhlo, argument, syntax),
            b"MAIL" => mail(argument, syntax),
            b"RCPT" => rcpt(argument, syntax),
            b"DATA" => nothing(argument, syntax.strict).map(|()| Self::Data),
            b"BDAT" => bdat(argument, syntax),
            b"RSET" => nothing(argument, syntax.strict).map(|()| Self::Rset),
            b"NOOP" => text(argument).map(|_| Self::Noop),
            b"QUIT" => nothing(argument, syntax.strict).map(|()| Self::Quit),
            b"VRFY" => search(argument).map(|()| Self::Vrfy),
            b"EXPN" => search(argument).map(|()| Self::Expn),
            b"HELP" => text(argument).map(|_| Self::Help),
            b"AUTH" => auth(argument, syntax),
            // An argument could be meant for the other side of the handshake: no syntax forgives it.
            b"STAR" => nothing(argument, true).map(|()| Self::StartTls),
            _ => Err(Reply::UNRECOGNIZED),
        }
    }
}

fn hello(hello: Hello, argument: &str, syntax: Syntax) -> Result<Command<'_>, Reply> {
    let name = text(argument).map_err(|_| Reply::BAD_NAME)?;
    let good = name.len() <= DOMAIN_OCTETS_MAX && (!syntax.strict || Domain::parse(name, syntax).is_some());
    if good { Ok(Command::Hello { hello, name }) } else { Err(Reply::BAD_NAME) }
}

fn mail(argument: &str, syntax: Syntax) -> Result<Command<'_>, Reply> {
    let (reverse_path, rest) = ReversePath::parse(after_keyword("FROM", argument, syntax)?, syntax)?;
    let mut parameters = MailParameters::default();
    each_parameter(rest, syntax, |keyword, value| {
        match (keyword, value) {
            ("SIZE", None | Some("")) if !syntax.strict => {}
            ("SIZE", Some(value)) if is_number(value) => parameters.size = Some(value.parse().unwrap_or(u64::MAX)),
            ("BODY", Some(value)) if !value.is_empty() => parameters.body = Some(body(value)?),
            ("SMTPUTF8", None) => parameters.smtp_utf8 = true,
            ("SIZE" | "BODY" | "SMTPUTF8", _) => return Err(Reply::PARAMETER_MALFORMED),
            _ => return Err(Reply::PARAMETER_UNKNOWN),
        }
        Ok(())
    })?;
    Ok(Command::Mail { reverse_path, parameters })
}

fn rcpt(argument: &str, syntax: Syntax) -> Result<Command<'_>, Reply> {
    let (forward_path, rest) = ForwardPath::parse(after_keyword("TO", argument, syntax)?, syntax)?;
    each_parameter(rest, syntax, |_, _| Err(Reply::PARAMETER_UNKNOWN))?;
    Ok(Command::Rcpt { forward_path })
}

/// What stands behind `FROM:` or `TO:`.
fn after_keyword<'a>(keyword: &str, argument: &'a str, syntax: Syntax) -> Result<&'a str, Reply> {
    let (word, rest) = argument.split_at_checked(keyword.len()).ok_or(Reply::SYNTAX_ERROR)?;
    let path = syntax.skip_blanks(rest).strip_prefix(':').filter(|_| word.eq_ignore_ascii_case(keyword));
    path.map(|path| syntax.skip_blanks(path)).ok_or(Reply::SYNTAX_ERROR)
}

/// All parameters that are known.
const KEYWORDS: [&str; 8] = ["SIZE", "BODY", "SMTPUTF8", "AUTH", "RET", "ENVID", "NOTIFY", "ORCPT"];

/// Calls `take` with the keyword, in upper case, and the value of each parameter in `text`, which is empty or
/// begins with a blank (RFC 5321 4.1.2). Lenient syntax has empty values, `=` in them, and some that it ignores.
fn each_parameter<'a>(
    text: &'a str,
    syntax: Syntax,
    mut take: impl FnMut(&'static str, Option<&'a str>) -> Result<(), Reply>,
) -> Result<(), Reply> {
    let mut seen = [false; KEYWORDS.len()];
    for word in text.get(1..).into_iter().flat_map(|text| words(text, syntax)) {
        let end = class::span(word.as_bytes(), class::KEYWORD);
        let (keyword, rest) = word.split_at_checked(end).filter(|_| end > 0).ok_or(Reply::PARAMETER_MALFORMED)?;
        let value = rest.strip_prefix('=');
        let good = value.map_or(rest.is_empty(), |value| {
            class::all(value.as_bytes(), class::TEXT) && !(syntax.strict && (value.is_empty() || value.contains('=')))
        });
        if !good {
            return Err(Reply::PARAMETER_MALFORMED);
        }
        let known = KEYWORDS.iter().zip(&mut seen).find(|(known, _)| known.eq_ignore_ascii_case(keyword));
        let (keyword, seen) = known.ok_or(Reply::PARAMETER_UNKNOWN)?;
        if std::mem::replace(seen, true) {
            return Err(Reply::PARAMETER_MALFORMED);
        }
        // For a store these change nothing: AUTH of RFC 4954 5, and those about notifications of RFC 3461 4.
        match *keyword {
            "AUTH" | "RET" | "ENVID" | "NOTIFY" | "ORCPT" if !syntax.strict => {}
            keyword => take(keyword, value)?,
        }
    }
    Ok(())
}

fn body(value: &str) -> Result<Body, Reply> {
    let bodies = [("7BIT", Body::SevenBit), ("8BITMIME", Body::EightBitMime)];
    let body = bodies.into_iter().find(|(name, _)| value.eq_ignore_ascii_case(name));
    // Others can't be served, such as BINARYMIME of RFC 3030 3 (RFC 5321 4.1.1.11).
    body.map(|(_, body)| body).ok_or(Reply::PARAMETER_UNKNOWN)
}

/// Whether `text` is 1 to 20 digits, as `size-value` of RFC 1870 6.
fn is_number(text: &str) -> bool {
    matches!(text.len(), 1..=20) && text.bytes().all(|octet| octet.is_ascii_digit())
}

fn bdat(argument: &str, syntax: Syntax) -> Result<Command<'_>, Reply> {
    let mut words = words(argument, syntax);
    let number = words.next().filter(|word| is_number(word));
    let octets = number.and_then(|number| number.parse().ok()).ok_or(Reply::BAD_CHUNK)?;
    let last = match (words.next(), words.next()) {
        (None, _) => false,
        (Some(word), None) if word.eq_ignore_ascii_case("LAST") => true,
        _ => return Err(Reply::BAD_CHUNK),
    };
    Ok(Command::Bdat { octets, last })
}

fn auth(argument: &str, syntax: Syntax) -> Result<Command<'_>, Reply> {
    let mut words = words(argument, syntax);
    let mechanism = words.next().unwrap_or_default();
    let named = class::all(mechanism.as_bytes(), class::KEYWORD | class::UNDERSCORE);
    let initial_response = words.next().map(text).transpose()?;
    if !named || !matches!(mechanism.len(), 1..=20) || initial_response == Some("") || words.next().is_some() {
        return Err(Reply::BAD_ARGUMENT);
    }
    Ok(Command::Auth { mechanism, initial_response: initial_response.map(|text| if text == "=" { "" } else { text }) })
}

/// The argument of VRFY or EXPN.
fn search(argument: &str) -> Result<(), Reply> {
    let announced = argument.rsplit_once(' ').filter(|(_, keyword)| keyword.eq_ignore_ascii_case("SMTPUTF8"));
    let string = announced.map_or(argument, |(string, _)| string);
    match string {
        "" => Err(Reply::BAD_ARGUMENT),
        _ if string.starts_with(' ') || string.chars().any(char::is_control) => Err(Reply::SYNTAX_ERROR),
        _ if announced.is_none() && !string.is_ascii() => Err(Reply::UTF8_NOT_ANNOUNCED),
        _ => Ok(()),
    }
}

/// The argument of a command that takes none.
fn nothing(argument: &str, strict: bool) -> Result<(), Reply> {
    if strict && !argument.is_empty() { Err(Reply::BAD_ARGUMENT) } else { text(argument).map(|_| ()) }
}

/// `argument`, if it is printable ASCII. A space at its start is one that strict syntax has no place for.
fn text(argument: &str) -> Result<&str, Reply> {
    let printable = class::all(argument.as_bytes(), class::TEXT) && !argument.starts_with(' ');
    if printable { Ok(argument) } else { Err(Reply::SYNTAX_ERROR) }
}

fn words(argument: &str, syntax: Syntax) -> impl Iterator<Item = &str> {
    let mut left = Some(argument);
    let words = std::iter::from_fn(move || {
        let text = left?;
        let end = text.bytes().position(|octet| syntax.is_blank(octet)).unwrap_or(text.len());
        left = text.get(end + 1..);
        text.get(..end)
    });
    words.filter(move |word| syntax.strict || !word.is_empty())
}

/// Talk that isn't SMTP: somebody took this port for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// A request of HTTP, perhaps with commands in its body.
    Http,
    /// The start of a TLS handshake.
    Tls,
    /// The header that a proxy puts in front of a connection, in either version.
    ProxyHeader,
}

/// Which foreign talk begins with `line`, which may be incomplete: TLS has no lines. Commands never are foreign.
pub fn foreign(line: &[u8]) -> Option<Foreign> {
    const REQUESTS: [&[u8]; 6] = [b"GET ", b"POST ", b"CONNECT ", b"PUT ", b"HEAD ", b"OPTIONS "];
    match line {
        // The record type "handshake" of RFC 8446 5.1.
        [0x16, ..] => Some(Foreign::Tls),
        // In version 2, two empty lines and this one come first.
        [0] => Some(Foreign::ProxyHeader),
        _ if line.starts_with(b"PROXY ") => Some(Foreign::ProxyHeader),
        _ => REQUESTS.iter().any(|request| line.starts_with(request)).then_some(Foreign::Http),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::super::address::tests::Random;
    use super::*;

    const STRICT: Syntax = Syntax { strict: true };
    const LENIENT: Syntax = Syntax { strict: false };

    fn parse(line: &str, syntax: Syntax) -> Result<Command<'_>, Reply> {
        Command::parse(line.as_bytes(), syntax)
    }

    /// The address and the parameters of MAIL, or the reply.
    fn mail(line: &str, syntax: Syntax) -> Result<(&str, MailParameters), Reply> {
        match parse(line, syntax)? {
            Command::Mail { reverse_path, parameters } => Ok((reverse_path.as_str(), parameters)),
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
            assert!(parse(line, STRICT).is_err_and(|reply| reply.code == 501), "{line}");
            assert!(parse(line, LENIENT).is_err() || line.starts_with("VRFY  "), "{line}");
        }
        both("VRFY é", Err(Reply::UTF8_NOT_ANNOUNCED));
        for line in ["NOOP a\0b", "HELP é", "VRFY a\x1b", "DATA \x7f", "QUIT a\x01", "VRFY \u{9b} SMTPUTF8"] {
            assert!(parse(line, LENIENT).is_err_and(|reply| reply.code == 501), "{line}");
        }
        for verb in ["NOOP", "MAIL", "RCPT", "BDAT", "AUTH", "VRFY", "EHLO", "QUIT"] {
            let line = [verb.as_bytes(), b" FROM:<a\xff@b>"].concat();
            assert!(Command::parse(&line, LENIENT).is_err_and(|reply| reply.code == 501), "{verb}");
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
            both(line, Ok(Command::Hello { hello, name }));
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
            assert_eq!(parse(line, LENIENT), Ok(Command::Hello { hello, name }), "{device}");
            assert_eq!(parse(line, STRICT), Err(Reply::BAD_NAME), "{device}");
        }
        let name = "d".repeat(255);
        both(&format!("EHLO {name}"), Ok(Command::Hello { hello: Hello::Ehlo, name: &name }));
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
            let Ok(Command::Rcpt { forward_path }) = parse(line, LENIENT) else { panic!("{device}: {line}") };
            assert_eq!(forward_path.as_str(), address, "{device}");
            assert!(parse(line, STRICT).is_err(), "{device}: {line}");
        }
    }

    #[test]
    fn paths() {
        let none = MailParameters::default();
        for syntax in [STRICT, LENIENT] {
            assert_eq!(mail("mail From:<>", syntax), Ok(("", none)));
            assert_eq!(mail("MAIL FROM:<@x,@y:\"a b\"@[1.2.3.4]>  ", syntax), Ok(("\"a b\"@[1.2.3.4]", none)));
            assert!(
                matches!(parse("RCPT TO:<é@x>", syntax), Ok(Command::Rcpt { forward_path }) if !forward_path.is_ascii())
            );
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
        let size = |size| MailParameters { size: Some(size), ..MailParameters::default() };
        let body = |body| MailParameters { body: Some(body), ..MailParameters::default() };
        let good = [
            ("SIZE=0", size(0)),
            ("size=25000000", size(25_000_000)),
            ("SIZE=18446744073709551615", size(u64::MAX)),
            ("SIZE=18446744073709551617", size(u64::MAX)),
            ("SIZE=99999999999999999999", size(u64::MAX)),
            ("BODY=7bit", body(Body::SevenBit)),
            ("body=8BitMime", body(Body::EightBitMime)),
            (
                "SMTPUTF8 SIZE=1 BODY=8BITMIME",
                MailParameters { size: Some(1), body: Some(Body::EightBitMime), smtp_utf8: true },
            ),
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
        for syntax in [STRICT, LENIENT] {
            for (text, parameters) in good {
                assert_eq!(mail(&format!("MAIL FROM:<a@b> {text}"), syntax), Ok(("a@b", parameters)), "{text}");
            }
            for text in unknown {
                assert_eq!(mail(&format!("MAIL FROM:<a@b> {text}"), syntax), Err(Reply::PARAMETER_UNKNOWN), "{text}");
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
        let auth = |mechanism, initial_response| Ok(Command::Auth { mechanism, initial_response });
        both("AUTH LOGIN", auth("LOGIN", None));
        both("auth plain =", auth("plain", Some("")));
        both("AUTH PLAIN AGEAYg==", auth("PLAIN", Some("AGEAYg==")));
        both("AUTH SCRAM-SHA-256 \t", auth("SCRAM-SHA-256", None));
        differ("AUTH \tLOGIN  YQ==", Reply::BAD_ARGUMENT, auth("LOGIN", Some("YQ==")));
        for line in ["AUTH", "AUTH =", "AUTH A.B", "AUTH ABCDEFGHIJKLMNOPQRSTU", "AUTH PLAIN a b", "AUTH é"] {
            both(line, Err(Reply::BAD_ARGUMENT));
        }
        both("AUTH PLAIN a\0b", Err(Reply::SYNTAX_ERROR));
    }

    #[test]
    fn foreign_talk() {
        for (line, talk) in [
            (&b"GET / HTTP/1.1"[..], Some(Foreign::Http)),
            (b"POST / HTTP/1.1", Some(Foreign::Http)),
            (b"PUT /x", Some(Foreign::Http)),
            (b"HEAD / HTTP/1.0", Some(Foreign::Http)),
            (b"OPTIONS * HTTP/1.1", Some(Foreign::Http)),
            (b"CONNECT a:25 HTTP/1.1", Some(Foreign::Http)),
            (b"\x16\x03\x01\x02\x00", Some(Foreign::Tls)),
            (b"\x16", Some(Foreign::Tls)),
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 25", Some(Foreign::ProxyHeader)),
            (b"\0", Some(Foreign::ProxyHeader)),
            (b"GETX", None),
            (b"", None),
            (b"MAIL FROM:<a@b>", None),
        ] {
            assert_eq!(foreign(line), talk, "{}", line.escape_ascii());
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
            let lenient = Command::parse(&line, LENIENT);
            if let Ok(strict) = Command::parse(&line, STRICT) {
                accepted += 1;
                assert_eq!(lenient, Ok(strict), "{}", line.escape_ascii());
            }
            if let Err(reply) = lenient {
                assert!(matches!(reply.code, 500 | 501 | 553 | 555), "{}", line.escape_ascii());
            } else {
                assert_eq!(foreign(&line), None);
                assert!(!line.contains(&0) && !line.contains(&0x7f), "{}", line.escape_ascii());
            }
        }
        assert!(accepted > 50_000, "too few commands survive: {accepted}");
    }
}
