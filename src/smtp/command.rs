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

/// What MAIL says behind its path (RFC 5321 4.1.1.11). Either kind of body (RFC 6152 2) is stored as it comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MailParameters {
    /// Octets of the message, as the peer estimates them (RFC 1870 6); those above `u64` count as `u64::MAX`.
    pub size: Option<u64>,
    /// Whether addresses and header fields may be UTF-8 (RFC 6531 3.4).
    pub smtp_utf8: bool,
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
            ("BODY", Some(value)) if ["7BIT", "8BITMIME"].iter().any(|body| value.eq_ignore_ascii_case(body)) => {}
            // Others can't be served, such as BINARYMIME of RFC 3030 3 (RFC 5321 4.1.1.11).
            ("BODY", Some(value)) if !value.is_empty() => return Err(Reply::PARAMETER_UNKNOWN),
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
