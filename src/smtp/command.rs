//! Commands: one line of the peer, read into a verb with what it says (RFC 5321 4.1.1 and the extensions served). Only
//! syntax is judged here; the order of commands, and whether addresses may be UTF-8, the session knows.

use std::str;

use super::address::{DOMAIN_OCTETS_MAX, Path, domain_octets, is_ldh};
use super::reply::{Reply, refuse_if};

/// Commands are read in strict syntax, to the letter, or in lenient syntax: forgiving towards devices, as by default.
pub const LENIENT: bool = false;

/// Whether `character` stands between words: the space, and in lenient syntax the tab.
pub(super) fn is_blank(character: char, strict: bool) -> bool {
    character == ' ' || (character == '\t' && !strict)
}

/// `text` without the blanks at its start, which only lenient syntax has.
pub(super) fn skip_blanks(text: &str, strict: bool) -> &str {
    // Mostly there are none.
    let begins_with_one = matches!(text.as_bytes(), [b' ' | b'\t', ..]);
    if strict || !begins_with_one { text } else { text.trim_start_matches([' ', '\t']) }
}

/// A line without its end, CRLF or LF alone.
pub fn without_end(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r\n").or(line.strip_suffix(b"\n")).unwrap_or(line)
}

/// A command of the peer. What nobody looks at, such as the argument of VRFY, is judged but not kept. The name in `Hello`
/// is printable ASCII, at most 255 octets; in lenient syntax it may be any, and empty. BDAT (RFC 3030 2) has any number of
/// octets, so nothing is to be set aside for them. Who offers AUTH (RFC 4954 4) reads its argument with [`login`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    Hello(Hello, &'a str),
    Mail(Path<'a>, MailParameters),
    Rcpt(Path<'a>),
    Data,
    Bdat { octets: u64, last: bool },
    Rset,
    Noop,
    Quit,
    Vrfy,
    Expn,
    Help,
    Auth(&'a str),
    StartTls,
}

/// With which verb the peer introduces itself: for SMTP without extensions, with them, or for LMTP (RFC 2033 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hello {
    Helo,
    Ehlo,
    Lhlo,
}

/// What MAIL says behind its path (RFC 5321 4.1.1.11). Either kind of body (RFC 6152 2) is stored as it comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MailParameters {
    /// Octets of the message, as the peer estimates them (RFC 1870 6), 0 if it does not; those above `u64` count as
    /// `u64::MAX`.
    pub size: u64,
    /// Whether addresses and header fields may be UTF-8 (RFC 6531 3.4).
    pub smtp_utf8: bool,
}

impl<'a> Command<'a> {
    /// Reads `line`, which comes without its line end. Verbs are in any case, and blanks at the end mean nothing
    /// (RFC 5321 2.4, 4.1.1). Lenient syntax has blanks and tabs for a space and around the colon of MAIL and RCPT,
    /// any name or none after HELO, arguments to DATA, RSET and QUIT, and parameters that mean nothing to a store. The
    /// error is 500 when the verb is none of those above; 501, 553 or 555 when what follows isn't what it takes.
    pub fn parse(mut line: &'a [u8], strict: bool) -> Result<Self, Reply> {
        while let [before @ .., b' ' | b'\t'] = line {
            line = before;
        }
        let mut parts = line.splitn(2, |&octet| is_blank(octet.into(), strict));
        let word = parts.next().unwrap_or_default();
        // What isn't UTF-8 has a place in no argument, just as this control character.
        let argument = skip_blanks(str::from_utf8(parts.next().unwrap_or_default()).unwrap_or("\0"), strict);
        let mut verb = [0; "STARTTLS".len()];
        verb.get_mut(..word.len()).ok_or(Reply::UNRECOGNIZED)?.copy_from_slice(word);
        verb.make_ascii_uppercase();
        match &verb[..word.len()] {
            b"HELO" => hello(Hello::Helo, argument, strict),
            b"EHLO" => hello(Hello::Ehlo, argument, strict),
            b"LHLO" => hello(Hello::Lhlo, argument, strict),
            b"MAIL" => {
                let (reverse_path, rest) = Path::reverse(after_keyword("FROM", argument, strict)?, strict)?;
                Ok(Self::Mail(reverse_path, parameters(rest, 0, strict)?))
            }
            b"RCPT" => {
                let (forward_path, rest) = Path::forward(after_keyword("TO", argument, strict)?, strict)?;
                parameters(rest, SERVED, strict).map(|_| Self::Rcpt(forward_path))
            }
            b"DATA" => nothing(argument, strict).map(|()| Self::Data),
            b"BDAT" => bdat(argument, strict),
            b"RSET" => nothing(argument, strict).map(|()| Self::Rset),
            b"NOOP" => nothing(argument, false).map(|()| Self::Noop),
            b"QUIT" => nothing(argument, strict).map(|()| Self::Quit),
            b"VRFY" => search(argument).map(|()| Self::Vrfy),
            b"EXPN" => search(argument).map(|()| Self::Expn),
            b"HELP" => nothing(argument, false).map(|()| Self::Help),
            b"AUTH" => Ok(Self::Auth(argument)),
            // An argument could be meant for the other side of the handshake: no syntax forgives it.
            b"STARTTLS" => nothing(argument, true).map(|()| Self::StartTls),
            _ => Err(Reply::UNRECOGNIZED),
        }
    }
}

fn hello(hello: Hello, name: &str, strict: bool) -> Result<Command<'_>, Reply> {
    let good = is_text(name) && (!strict || domain_octets(name, strict) == Some(name.len()));
    refuse_if(!good || name.len() > DOMAIN_OCTETS_MAX, Reply::BAD_NAME).map(|()| Command::Hello(hello, name))
}

/// What stands behind `FROM:` or `TO:`.
fn after_keyword<'a>(keyword: &str, argument: &'a str, strict: bool) -> Result<&'a str, Reply> {
    let (word, rest) = argument.split_at_checked(keyword.len()).ok_or(Reply::SYNTAX_ERROR)?;
    let path = skip_blanks(rest, strict).strip_prefix(':').filter(|_| word.eq_ignore_ascii_case(keyword));
    path.map(|path| skip_blanks(path, strict)).ok_or(Reply::SYNTAX_ERROR)
}

/// Parameters that are served; then those that mean nothing to a store, which lenient syntax ignores (RFC 4954, 3461).
const PARAMETERS: [&str; 8] = ["SIZE", "BODY", "SMTPUTF8", "AUTH", "RET", "ENVID", "NOTIFY", "ORCPT"];
const SERVED: usize = 3;

/// Reads the parameters in `text`, which is empty or begins with a blank (RFC 5321 4.1.2); those before the `first` are
/// none of the verb. Lenient syntax has empty values, `=` in them, and those that it ignores.
fn parameters(text: &str, first: usize, strict: bool) -> Result<MailParameters, Reply> {
    let mut parameters = MailParameters::default();
    let known = PARAMETERS.get(first..if strict { SERVED } else { PARAMETERS.len() }).unwrap_or_default();
    let mut seen = [false; PARAMETERS.len()];
    for word in text.get(1..).into_iter().flat_map(|text| words(text, strict)) {
        let (keyword, value) = word.split_once('=').map_or((word, None), |(keyword, value)| (keyword, Some(value)));
        let is_value = |value| is_text(value) && !(strict && (value.is_empty() || value.contains('=')));
        let is_keyword = !keyword.is_empty() && keyword.bytes().all(is_ldh);
        refuse_if(!is_keyword || !value.is_none_or(is_value), Reply::PARAMETER_MALFORMED)?;
        let found = known.iter().zip(&mut seen).find(|(known, _)| known.eq_ignore_ascii_case(keyword));
        let (keyword, seen) = found.ok_or(Reply::PARAMETER_UNKNOWN)?;
        match (*keyword, value) {
            _ if std::mem::replace(seen, true) => return Err(Reply::PARAMETER_MALFORMED),
            ("SIZE", None | Some("")) if !strict => {}
            ("SIZE", Some(value)) if is_number(value) => parameters.size = value.parse().unwrap_or(u64::MAX),
            ("BODY", Some(value)) if ["7BIT", "8BITMIME"].iter().any(|body| value.eq_ignore_ascii_case(body)) => {}
            // Others can't be served, such as BINARYMIME of RFC 3030 3 (RFC 5321 4.1.1.11).
            ("BODY", Some(value)) if !value.is_empty() => return Err(Reply::PARAMETER_UNKNOWN),
            ("SMTPUTF8", None) => parameters.smtp_utf8 = true,
            ("SIZE" | "BODY" | "SMTPUTF8", _) => return Err(Reply::PARAMETER_MALFORMED),
            _ => {}
        }
    }
    Ok(parameters)
}

/// Whether `text` is 1 to 20 digits, as `size-value` of RFC 1870 6.
fn is_number(text: &str) -> bool {
    matches!(text.len(), 1..=20) && text.bytes().all(|octet| octet.is_ascii_digit())
}

fn bdat(argument: &str, strict: bool) -> Result<Command<'_>, Reply> {
    let [number, last, more] = three_words(argument, strict);
    let octets = number.filter(|number| is_number(number)).and_then(crate::config::number);
    let good = more.is_none() && last.is_none_or(|word| word.eq_ignore_ascii_case("LAST"));
    octets.filter(|_| good).map(|octets| Command::Bdat { octets, last: last.is_some() }).ok_or(Reply::BAD_CHUNK)
}

/// The argument of AUTH, or 501: a mechanism, and perhaps an initial response, not proven here.
pub fn login(argument: &str, strict: bool) -> Result<(&str, Option<&str>), Reply> {
    let [mechanism, initial_response, more] = three_words(argument, strict);
    let mechanism = mechanism.unwrap_or_default();
    nothing(initial_response.unwrap_or_default(), false)?;
    let named = mechanism.bytes().all(|octet| is_ldh(octet) || octet == b'_') && matches!(mechanism.len(), 1..=20);
    refuse_if(!named || more.is_some(), Reply::BAD_ARGUMENT).map(|()| (mechanism, initial_response))
}

/// The argument of VRFY or EXPN, which in UTF-8 ends in ` SMTPUTF8` (RFC 6531 3.7.4.2).
fn search(argument: &str) -> Result<(), Reply> {
    let announced = argument.rsplit_once(' ').filter(|(_, keyword)| keyword.eq_ignore_ascii_case("SMTPUTF8"));
    let string = announced.map_or(argument, |(string, _)| string);
    refuse_if(string.is_empty(), Reply::BAD_ARGUMENT)?;
    refuse_if(string.starts_with(' ') || string.chars().any(char::is_control), Reply::SYNTAX_ERROR)?;
    refuse_if(announced.is_none() && !string.is_ascii(), Reply::UTF8_NOT_ANNOUNCED)
}

/// The argument of a command that takes none, or any text that means nothing.
fn nothing(argument: &str, strict: bool) -> Result<(), Reply> {
    refuse_if(strict && !argument.is_empty(), Reply::BAD_ARGUMENT)?;
    refuse_if(!is_text(argument), Reply::SYNTAX_ERROR)
}

/// Whether `text` is printable ASCII. A space at its start is one that strict syntax has no place for.
fn is_text(text: &str) -> bool {
    text.bytes().all(|octet| matches!(octet, b' '..=b'~')) && !text.starts_with(' ')
}

/// The first words: who takes two of them minds the third.
fn three_words(text: &str, strict: bool) -> [Option<&str>; 3] {
    let mut words = words(text, strict);
    [words.next(), words.next(), words.next()]
}

fn words(text: &str, strict: bool) -> impl Iterator<Item = &str> {
    let words = text.split(move |character| is_blank(character, strict));
    words.filter(move |word| strict || !word.is_empty())
}

/// Talk that isn't SMTP, since somebody took this port for another: how `line` is answered, which may be incomplete as TLS
/// has no lines, and a word for the log. Commands never are foreign.
pub fn foreign(line: &[u8]) -> Option<(Reply, &'static &'static str)> {
    const REQUESTS: [&[u8]; 6] = [b"GET ", b"POST ", b"CONNECT ", b"PUT ", b"HEAD ", b"OPTIONS "];
    match line {
        // The record type "handshake" of RFC 8446 5.1.
        [0x16, ..] => Some((Reply::NOT_TLS, &"tls-on-plain")),
        // Of a proxy header in version 2; two empty lines come before.
        [0] | [b'P', b'R', b'O', b'X', b'Y', b' ', ..] => Some((Reply::NO_PROXY_HEADER, &"proxy-header")),
        _ => REQUESTS.iter().any(|request| line.starts_with(request)).then_some((Reply::NOT_HTTP, &"http")),
    }
}
