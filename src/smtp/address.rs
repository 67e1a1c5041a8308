//! Addresses of the envelope: paths, mailboxes and domains as RFC 5321 4.1.2 and 4.1.3 write them.
//!
//! All of it borrows from the command line and is printed back as it was sent. What lenient [`Syntax`] forgives
//! devices stands at each function. No syntax has control characters, those beyond ASCII included.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::command::Syntax;
use super::reply::Reply;

/// Octets in a local part, quotes included (RFC 5321 4.5.3.1.1).
pub const LOCAL_PART_OCTETS_MAX: usize = 64;
/// The same for lenient syntax, since the tags of mailing lists outgrow 64.
pub const LOCAL_PART_OCTETS_MAX_LENIENT: usize = 255;
/// Octets in a domain (RFC 5321 4.5.3.1.2), in lenient syntax too: the DNS has no longer ones.
pub const DOMAIN_OCTETS_MAX: usize = 255;
/// Octets in a path with its brackets and its source route (RFC 5321 4.5.3.1.3).
pub const PATH_OCTETS_MAX: usize = 256;
/// The same for lenient syntax: half of the longest command line.
pub const PATH_OCTETS_MAX_LENIENT: usize = 1024;

/// Classes of octets; one octet may be in several. Octets from 128 on are those of well-formed UTF-8.
pub(super) mod class {
    /// `atext`: what an unquoted local part has between its dots.
    pub const ATOM: u8 = 1;
    /// The dot itself.
    pub const DOT: u8 = 2;
    /// Letter, digit or hyphen of a domain.
    pub const LABEL: u8 = 4;
    /// The underscore, which only devices have in names of hosts.
    pub const UNDERSCORE: u8 = 8;
    /// `qtextSMTP`: what needs no backslash within quotes.
    pub const QUOTED: u8 = 16;
    /// `dcontent`: what stands within the brackets of an address literal.
    pub const LITERAL: u8 = 32;
    /// ASCII letter, digit or hyphen: keywords of parameters, tags of address literals.
    pub const KEYWORD: u8 = 64;
    /// Printable ASCII and the space.
    pub const TEXT: u8 = 128;

    const fn of(octet: u8) -> u8 {
        match octet {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' => ATOM | LABEL | KEYWORD | QUOTED | LITERAL | TEXT,
            b'_' => ATOM | UNDERSCORE | QUOTED | LITERAL | TEXT,
            b'!' | b'#'..=b'\'' | b'*' | b'+' | b'/' | b'=' | b'?' | b'^' | b'`' | b'{'..=b'~' => {
                ATOM | QUOTED | LITERAL | TEXT
            }
            b'.' => DOT | QUOTED | LITERAL | TEXT,
            b'(' | b')' | b',' | b':' | b';' | b'<' | b'>' | b'@' => QUOTED | LITERAL | TEXT,
            b' ' | b'[' | b']' => QUOTED | TEXT,
            b'"' => LITERAL | TEXT,
            b'\\' => TEXT,
            128.. => ATOM | LABEL | QUOTED,
            0..=31 | 127 => 0,
        }
    }

    const CLASSES: [u8; 256] = {
        let mut classes = [0; 256];
        let mut octet = 0;
        while octet < classes.len() {
            classes[octet] = of(octet as u8);
            octet += 1;
        }
        classes
    };

    /// How many octets at the start of `octets` are in one of `classes`.
    pub fn span(octets: &[u8], classes: u8) -> usize {
        octets.iter().position(|&octet| CLASSES[usize::from(octet)] & classes == 0).unwrap_or(octets.len())
    }

    /// Whether all of `octets` are in one of `classes`; true of none.
    pub fn all(octets: &[u8], classes: u8) -> bool {
        span(octets, classes) == octets.len()
    }
}

/// Where a message comes from, the argument of MAIL: `Reverse-path` of RFC 5321 4.1.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReversePath<'a> {
    /// `<>`, the sender of notifications, which nobody may answer (RFC 5321 4.5.5).
    Null,
    /// A mailbox, to which notifications go.
    Mailbox(Mailbox<'a>),
}

/// Where a message goes, the argument of RCPT: `Forward-path` of RFC 5321 4.1.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardPath<'a> {
    /// `<Postmaster>` without a domain, in any case: who answers for this server (RFC 5321 4.1.1.3, 4.5.1).
    Postmaster,
    /// A mailbox.
    Mailbox(Mailbox<'a>),
}

impl<'a> ReversePath<'a> {
    /// Reads the path at the start of `text`; returns it and what follows, nothing or a blank and more. A source
    /// route is read and dropped (RFC 5321 appendix C). Lenient syntax does without the brackets, has blanks just
    /// inside them, and mailboxes as [`Mailbox::parse`] has them.
    ///
    /// # Errors
    /// 501 5.1.7 when it isn't one, or longer than the limits above.
    pub fn parse(text: &'a str, syntax: Syntax) -> Result<(Self, &'a str), Reply> {
        match path(text, syntax) {
            Some((None, rest)) => Ok((Self::Null, rest)),
            Some((Some(mailbox), rest)) if mailbox.is_complete(syntax) => Ok((Self::Mailbox(mailbox), rest)),
            _ => Err(Reply::BAD_REVERSE_PATH),
        }
    }

    /// What stands between the brackets, without a source route; empty for the null path.
    pub fn as_str(&self) -> &'a str {
        match self {
            Self::Null => "",
            Self::Mailbox(mailbox) => mailbox.text,
        }
    }

    /// If not, it takes SMTPUTF8 with MAIL (RFC 6531 3.4), or gets [`Reply::UTF8_NOT_ANNOUNCED`].
    pub fn is_ascii(&self) -> bool {
        self.as_str().is_ascii()
    }
}

impl<'a> ForwardPath<'a> {
    /// Reads the path at the start of `text`, as [`ReversePath::parse`] does, but no null one.
    ///
    /// # Errors
    /// 501 5.1.3 when it isn't one, or longer than the limits above.
    pub fn parse(text: &'a str, syntax: Syntax) -> Result<(Self, &'a str), Reply> {
        match path(text, syntax) {
            Some((Some(mailbox), rest)) if mailbox.text.eq_ignore_ascii_case("Postmaster") => {
                Ok((Self::Postmaster, rest))
            }
            Some((Some(mailbox), rest)) if mailbox.is_complete(syntax) => Ok((Self::Mailbox(mailbox), rest)),
            _ => Err(Reply::BAD_FORWARD_PATH),
        }
    }

    /// What stands between the brackets, without a source route; `Postmaster` in this spelling.
    pub fn as_str(&self) -> &'a str {
        match self {
            Self::Postmaster => "Postmaster",
            Self::Mailbox(mailbox) => mailbox.text,
        }
    }

    /// If not, it takes SMTPUTF8 with MAIL, as [`ReversePath::is_ascii`] says.
    pub fn is_ascii(&self) -> bool {
        self.as_str().is_ascii()
    }
}

/// `Mailbox` of RFC 5321 4.1.2: who, and at which domain. Equal when spelled equally.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mailbox<'a> {
    text: &'a str,
    local_part: &'a str,
    domain: Option<Domain<'a>>,
}

impl<'a> Mailbox<'a> {
    /// Reads all of `text`. Lenient syntax has dots anywhere in a local part (HPE iLO), no domain (`root`), or one
    /// as [`Domain::parse`] has it.
    pub fn parse(text: &'a str, syntax: Syntax) -> Option<Self> {
        let (mailbox, rest) = Self::read(text, syntax)?;
        (rest.is_empty() && mailbox.is_complete(syntax)).then_some(mailbox)
    }

    fn read(text: &'a str, syntax: Syntax) -> Option<(Self, &'a str)> {
        let (local_part, rest) = text.split_at_checked(local_part_octets(text.as_bytes(), syntax)?)?;
        let (domain, rest) = match rest.strip_prefix('@') {
            Some(rest) => Domain::read(rest, syntax).map(|(domain, rest)| (Some(domain), rest))?,
            None => (None, rest),
        };
        let text = text.get(..text.len() - rest.len())?;
        let printable = text.is_ascii() || !text.chars().any(char::is_control);
        printable.then_some((Self { text, local_part, domain }, rest))
    }

    /// As it was sent.
    pub fn as_str(&self) -> &'a str {
        self.text
    }

    /// What stands before the `@`, quotes and backslashes included.
    pub fn local_part(&self) -> &'a str {
        self.local_part
    }

    /// What stands behind the `@`; none for `root` and `Postmaster`.
    pub fn domain(&self) -> Option<Domain<'a>> {
        self.domain
    }

    /// If not, it takes SMTPUTF8 with MAIL, as [`ReversePath::is_ascii`] says.
    pub fn is_ascii(&self) -> bool {
        self.text.is_ascii()
    }

    /// What the local part means, without its quotes and backslashes: `"a\b"`, `"ab"` and `ab` name one mailbox
    /// (RFC 5321 4.1.2). The result may hold anything printable, `/` and blanks too.
    pub fn unquoted(&self) -> impl Iterator<Item = char> + Clone + use<'a> {
        let inside = self.local_part.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
        let mut characters = inside.unwrap_or(self.local_part).chars();
        std::iter::from_fn(move || characters.next().and_then(|c| if c == '\\' { characters.next() } else { Some(c) }))
    }

    fn is_complete(&self, syntax: Syntax) -> bool {
        self.domain.is_some() || !syntax.strict
    }
}

/// `Domain` or `address-literal` of RFC 5321 4.1.2 and 4.1.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain<'a> {
    /// A name of the DNS, or what a device takes for one, as it was sent.
    Name(&'a str),
    /// `[192.0.2.1]`; numbers with leading zeros are decimal all the same.
    Ipv4Literal(Ipv4Addr),
    /// `[IPv6:2001:db8::1]`.
    Ipv6Literal(Ipv6Addr),
    /// `[tag:content]` with another tag, without its brackets; no such tag is registered so far.
    GeneralLiteral(&'a str),
}

impl<'a> Domain<'a> {
    /// Reads all of `text`. Lenient syntax has underscores, hyphens at either end of a label, and a dot at the end.
    pub fn parse(text: &'a str, syntax: Syntax) -> Option<Self> {
        Self::read(text, syntax).filter(|(_, rest)| rest.is_empty()).map(|(domain, _)| domain)
    }

    fn read(text: &'a str, syntax: Syntax) -> Option<(Self, &'a str)> {
        let name = class::LABEL | class::DOT;
        let octets = match text.as_bytes() {
            [b'[', inside @ ..] => class::span(inside, class::LITERAL) + 2,
            octets => class::span(octets, syntax.choose(name, name | class::UNDERSCORE)),
        };
        let (text, rest) = text.split_at_checked(octets)?;
        let domain = match text.strip_prefix('[') {
            Some(inside) => literal(inside.strip_suffix(']')?)?,
            None => is_name(text, syntax).then_some(Self::Name(text))?,
        };
        (octets <= DOMAIN_OCTETS_MAX).then_some((domain, rest))
    }
}

/// Whether the labels of `text` are what their class of octets doesn't say yet.
fn is_name(text: &str, syntax: Syntax) -> bool {
    let relative = if syntax.strict { text } else { text.strip_suffix('.').unwrap_or(text) };
    let mut labels = relative.as_bytes().split(|&octet| octet == b'.');
    !labels.any(|label| matches!(label, [] | [b'-', ..] | [.., b'-'] if syntax.strict || label.is_empty()))
}

/// What stands within the brackets of an address literal.
fn literal(inside: &str) -> Option<Domain<'_>> {
    let Some((tag, content)) = inside.split_once(':') else { return ipv4(inside).map(Domain::Ipv4Literal) };
    if tag.eq_ignore_ascii_case("IPv6") {
        return content.parse().ok().map(Domain::Ipv6Literal);
    }
    let is_tag = !tag.is_empty() && !tag.ends_with('-') && class::all(tag.as_bytes(), class::KEYWORD);
    (is_tag && !content.is_empty()).then_some(Domain::GeneralLiteral(inside))
}

/// `IPv4-address-literal`; other than in std, its numbers may have leading zeros.
fn ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut numbers = text.split('.');
    for octet in &mut octets {
        *octet = numbers.next().filter(|number| number.len() <= 3 && !number.starts_with('+'))?.parse().ok()?;
    }
    numbers.next().is_none().then(|| octets.into())
}

/// `Path`, or none for `<>`, and what follows it.
fn path(text: &str, syntax: Syntax) -> Option<(Option<Mailbox<'_>>, &str)> {
    let mailbox = |text| Mailbox::read(after_route(text, syntax)?, syntax).map(|(mailbox, rest)| (Some(mailbox), rest));
    let (mailbox, rest) = match text.strip_prefix('<').map(|inside| syntax.skip_blanks(inside)) {
        None if syntax.strict => return None,
        None => mailbox(text)?,
        Some(inside) => {
            let (mailbox, rest) = if inside.starts_with('>') { (None, inside) } else { mailbox(inside)? };
            (mailbox, syntax.skip_blanks(rest).strip_prefix('>')?)
        }
    };
    let octets_max = syntax.choose(PATH_OCTETS_MAX, PATH_OCTETS_MAX_LENIENT);
    let ended = rest.bytes().next().is_none_or(|octet| syntax.is_blank(octet));
    (ended && text.len() - rest.len() <= octets_max).then_some((mailbox, rest))
}

/// What stands behind the source route `@one.example,@two.example:`, if `text` begins with one; it is ASCII.
fn after_route(text: &str, syntax: Syntax) -> Option<&str> {
    let Some(mut hops) = text.strip_prefix('@') else { return Some(text) };
    loop {
        let (domain, rest) = Domain::read(hops, syntax)?;
        if !matches!(domain, Domain::Name(name) if name.is_ascii()) {
            return None;
        }
        match rest.strip_prefix(':') {
            Some(mailbox) => return Some(mailbox),
            None => hops = rest.strip_prefix(",@")?,
        }
    }
}

/// Octets of the `Local-part` at the start of `text`, a `Dot-string` or a `Quoted-string`.
fn local_part_octets(text: &[u8], syntax: Syntax) -> Option<usize> {
    let octets = if text.starts_with(b"\"") {
        quoted_octets(text)?
    } else {
        let octets = class::span(text, class::ATOM | class::DOT);
        let mut atoms = text.get(..octets)?.split(|&octet| octet == b'.');
        (octets > 0 && (!syntax.strict || atoms.all(|atom| !atom.is_empty()))).then_some(octets)?
    };
    (octets <= syntax.choose(LOCAL_PART_OCTETS_MAX, LOCAL_PART_OCTETS_MAX_LENIENT)).then_some(octets)
}

/// Octets of the `Quoted-string` at the start of `text`, quotes included.
fn quoted_octets(text: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        at += class::span(text.get(at..)?, class::QUOTED);
        match text.get(at..)? {
            [b'"', ..] => return Some(at + 1),
            [b'\\', b' '..=b'~', ..] => at += 2,
            _ => return None,
        }
    }
}
