//! Addresses of the envelope: paths, mailboxes and domains as RFC 5321 4.1.2 and 4.1.3 write them, borrowed from the
//! command line. No syntax has control characters, those beyond ASCII included.

use std::net::Ipv6Addr;

use super::command::{is_blank, skip_blanks};
use super::reply::Reply;

/// Octets in a domain (RFC 5321 4.5.3.1.2), in lenient syntax too: the DNS has no longer ones.
pub(super) const DOMAIN_OCTETS_MAX: usize = 255;

/// `Reverse-path` or `Forward-path` of RFC 5321 4.1.2, without its brackets and its source route: a `Mailbox`, the
/// null path, or `Postmaster` alone. Equal when spelled equally.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path<'a> {
    text: &'a str,
    local_part_octets: usize,
}

impl<'a> Path<'a> {
    /// Reads the argument of MAIL at the start of `text`; returns it and what follows, nothing or a blank and more; or
    /// 501 5.1.7. `<>` is the sender of notifications, which nobody may answer (RFC 5321 4.5.5). A source route is read
    /// and dropped (RFC 5321 appendix C). Lenient syntax does without the brackets, has blanks just inside them, and
    /// mailboxes as [`mailbox`](Self::mailbox) has them.
    pub fn reverse(text: &'a str, strict: bool) -> Result<(Self, &'a str), Reply> {
        Self::read(text, "", strict).ok_or(Reply::BAD_REVERSE_PATH)
    }

    /// Reads the argument of RCPT, as [`reverse`](Self::reverse) does that of MAIL, but no null path; or 501 5.1.3.
    /// `<Postmaster>` in any case is who answers for this server (RFC 5321 4.1.1.3, 4.5.1).
    pub fn forward(text: &'a str, strict: bool) -> Result<(Self, &'a str), Reply> {
        Self::read(text, "Postmaster", strict).ok_or(Reply::BAD_FORWARD_PATH)
    }

    /// Reads all of `text` as a `Mailbox`. Lenient syntax has dots anywhere in a local part (HPE iLO), no domain
    /// (`root`), underscores in one, hyphens at either end of its labels, and a dot at its end.
    pub fn mailbox(text: &'a str, strict: bool) -> Option<Self> {
        let (path, rest) = Self::read_mailbox(text, "", strict)?;
        rest.is_empty().then_some(path)
    }

    /// Reads a path of a `Mailbox`, or of `other`, which has no domain.
    fn read(text: &'a str, other: &'static str, strict: bool) -> Option<(Self, &'a str)> {
        let inside = text.strip_prefix('<').map(|inside| skip_blanks(inside, strict));
        let (path, rest) = match inside {
            None if strict => return None,
            Some(rest) if other.is_empty() && rest.starts_with('>') => (Self { text: "", local_part_octets: 0 }, rest),
            _ => Self::read_mailbox(after_route(inside.unwrap_or(text), strict)?, other, strict)?,
        };
        let rest = if inside.is_some() { skip_blanks(rest, strict).strip_prefix('>')? } else { rest };
        let ended = rest.is_empty() || rest.starts_with(|character| is_blank(character, strict));
        // All of the path counts (RFC 5321 4.5.3.1.3); in lenient syntax it may be half of the longest command line.
        let fits = text.len() - rest.len() <= if strict { 256 } else { 1024 };
        (ended && fits).then_some((path, rest))
    }

    /// Reads a `Mailbox`, or `other`, at the start of `text`.
    fn read_mailbox(text: &'a str, other: &'static str, strict: bool) -> Option<(Self, &'a str)> {
        let local_part_octets = local_part_octets(text, strict)?;
        let domain = text.get(local_part_octets..)?.strip_prefix('@');
        let domain_octets = domain.map_or(Some(0), |domain| Some(1 + domain_octets(domain, strict)?))?;
        let (text, rest) = text.split_at_checked(local_part_octets + domain_octets)?;
        let is_other = text.eq_ignore_ascii_case(other);
        let good = is_harmless(text) && (domain.is_some() || is_other || !strict);
        good.then_some((Self { text: if is_other { other } else { text }, local_part_octets }, rest))
    }

    /// As it was sent, but `Postmaster` always in this spelling; empty for the null path.
    pub fn as_str(&self) -> &'a str {
        self.text
    }

    /// What stands before the `@`, quotes and backslashes included.
    pub fn local_part(&self) -> &'a str {
        self.text.get(..self.local_part_octets).unwrap_or_default()
    }

    /// What stands behind the `@`, an `address-literal` with its brackets; none for `root` and `Postmaster`.
    pub fn domain(&self) -> Option<&'a str> {
        self.text.get(self.local_part_octets + 1..)
    }

    /// What the local part means, without its quotes and backslashes: `"a\b"`, `"ab"` and `ab` name one mailbox
    /// (RFC 5321 4.1.2). The result may hold anything printable, `/` and blanks too.
    pub fn unquoted(&self) -> impl Iterator<Item = char> + Clone + use<'a> {
        let mut characters = self.local_part().chars();
        std::iter::from_fn(move || match characters.find(|&character| character != '"') {
            Some('\\') => characters.next(),
            character => character,
        })
    }
}

/// What stands behind the source route `@one.example,@two.example:`, if `text` begins with one; it is ASCII.
fn after_route(text: &str, strict: bool) -> Option<&str> {
    let Some(route) = text.strip_prefix('@') else { return Some(text) };
    let (hops, mailbox) = route.split_once(':')?;
    let is_name = |hop: &str| !hop.starts_with('[') && domain_octets(hop, strict) == Some(hop.len());
    (hops.is_ascii() && hops.split(",@").all(is_name)).then_some(mailbox)
}

/// Octets of the `Local-part`, a `Dot-string` or a `Quoted-string`, at the start of `text`.
fn local_part_octets(text: &str, strict: bool) -> Option<usize> {
    // All that is printable is `atext` but `specials` (RFC 5322 3.2.3), of which a `Dot-string` has the dot.
    let is_special = |octet| matches!(octet, b'"' | b'(' | b')' | b',' | b':'..=b'<' | b'>' | b'@' | b'['..=b']');
    let is_part = |&octet: &u8| !octet.is_ascii_control() && octet != b' ' && !is_special(octet);
    let octets = quoted_string_octets(text.as_bytes()).unwrap_or_else(|| text.bytes().take_while(is_part).count());
    let bad_dots = strict && !text.starts_with('"') && text.get(..octets)?.split('.').any(str::is_empty);
    // With its quotes (RFC 5321 4.5.3.1.1); the tags of mailing lists outgrow 64.
    let octets_max = if strict { 64 } else { 255 };
    (!bad_dots && (1..=octets_max).contains(&octets)).then_some(octets)
}

fn quoted_string_octets(text: &[u8]) -> Option<usize> {
    let mut rest = text.strip_prefix(b"\"")?;
    while let [b'\\', b' '..=b'~', more @ ..] | [b' ' | b'!' | b'#'..=b'[' | b']'..=b'~' | 0x80.., more @ ..] = rest {
        rest = more;
    }
    Some(text.len() - rest.strip_prefix(b"\"")?.len())
}

/// Octets of the `Domain` or `address-literal` at the start of `text`, at most [`DOMAIN_OCTETS_MAX`].
pub(super) fn domain_octets(text: &str, strict: bool) -> Option<usize> {
    let (good, octets) = if let Some(inside) = text.strip_prefix('[') {
        let (content, _) = inside.split_once(']')?;
        (is_literal(content), content.len() + "[]".len())
    } else {
        let is_part = |octet| is_ldh(octet) || octet == b'.' || (octet == b'_' && !strict) || octet >= 0x80;
        let octets = text.bytes().take_while(|&octet| is_part(octet)).count();
        let name = text.as_bytes().get(..octets)?;
        let relative = if strict { name } else { name.strip_suffix(b".").unwrap_or(name) };
        let hyphens = |label: &[u8]| strict && (label.starts_with(b"-") || label.ends_with(b"-"));
        (!relative.split(|&octet| octet == b'.').any(|label| label.is_empty() || hyphens(label)), octets)
    };
    (good && octets <= DOMAIN_OCTETS_MAX).then_some(octets)
}

/// Whether `inside` may stand in the brackets of an `address-literal`; no tag of a general one is registered so far.
fn is_literal(inside: &str) -> bool {
    // An `Snum` may have leading zeros, other than in std, but not the sign that std takes.
    let is_snum = |text: &str| text.len() <= 3 && !text.starts_with('+') && text.parse::<u8>().is_ok();
    match inside.split_once(':') {
        None => inside.split('.').count() == 4 && inside.split('.').all(is_snum),
        Some((tag, content)) if tag.eq_ignore_ascii_case("IPv6") => content.parse::<Ipv6Addr>().is_ok(),
        Some((tag, content)) => {
            let is_tag = !tag.is_empty() && !tag.ends_with('-') && tag.bytes().all(is_ldh);
            is_tag && !content.is_empty() && content.bytes().all(|octet| matches!(octet, b'!'..=b'Z' | b'^'..=b'~'))
        }
    }
}

/// Whether nothing beyond ASCII in `text` controls, ends a line, or turns its direction for who reads it.
fn is_harmless(text: &str) -> bool {
    let misleads = |it| matches!(it, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.is_ascii() || !text.contains(|character: char| character.is_control() || misleads(character))
}

/// ASCII letter, digit or hyphen: in domains, keywords of parameters, tags of address literals.
pub(super) fn is_ldh(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || octet == b'-'
}
