//! Addresses of the envelope: paths, mailboxes and domains as RFC 5321 4.1.2 and 4.1.3 write them, borrowed from the
//! command line. No syntax has control characters, those beyond ASCII included.

use std::net::Ipv6Addr;

use super::command::Syntax;
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
    pub fn reverse(text: &'a str, syntax: Syntax) -> Result<(Self, &'a str), Reply> {
        Self::read(text, "", syntax).ok_or(Reply::BAD_REVERSE_PATH)
    }

    /// Reads the argument of RCPT, as [`reverse`](Self::reverse) does that of MAIL, but no null path; or 501 5.1.3.
    /// `<Postmaster>` in any case is who answers for this server (RFC 5321 4.1.1.3, 4.5.1).
    pub fn forward(text: &'a str, syntax: Syntax) -> Result<(Self, &'a str), Reply> {
        Self::read(text, "Postmaster", syntax).ok_or(Reply::BAD_FORWARD_PATH)
    }

    /// Reads all of `text` as a `Mailbox`. Lenient syntax has dots anywhere in a local part (HPE iLO), no domain
    /// (`root`), underscores in one, hyphens at either end of its labels, and a dot at its end.
    pub fn mailbox(text: &'a str, syntax: Syntax) -> Option<Self> {
        let (path, rest) = Self::read_mailbox(text, syntax)?;
        (rest.is_empty() && path.is_mailbox(syntax)).then_some(path)
    }

    /// Reads a path of a `Mailbox`, or of `other`, which has no domain.
    fn read(text: &'a str, other: &'static str, syntax: Syntax) -> Option<(Self, &'a str)> {
        let inside = text.strip_prefix('<').map(|inside| syntax.skip_blanks(inside));
        let (path, rest) = match inside {
            None if syntax.strict => return None,
            Some(inside) if inside.starts_with('>') => (Self { text: "", local_part_octets: 0 }, inside),
            _ => Self::read_mailbox(after_route(inside.unwrap_or(text), syntax)?, syntax)?,
        };
        let rest = if inside.is_some() { syntax.skip_blanks(rest).strip_prefix('>')? } else { rest };
        let ended = rest.is_empty() || rest.starts_with(|character| syntax.is_blank(character));
        // All of the path counts (RFC 5321 4.5.3.1.3); in lenient syntax it may be half of the longest command line.
        let fits = text.len() - rest.len() <= if syntax.strict { 256 } else { 1024 };
        let is_other = path.text.eq_ignore_ascii_case(other);
        let path = if is_other { Self { text: other, ..path } } else { path };
        (ended && fits && (is_other || path.is_mailbox(syntax))).then_some((path, rest))
    }

    fn read_mailbox(text: &'a str, syntax: Syntax) -> Option<(Self, &'a str)> {
        let behind = after_local_part(text, syntax)?;
        let rest = behind.strip_prefix('@').map_or(Some(behind), |domain| after_domain(domain, syntax))?;
        let local_part_octets = text.len() - behind.len();
        Some((Self { text: text.strip_suffix(rest)?, local_part_octets }, rest))
    }

    /// Whether there is all that a `Mailbox` has; lenient syntax does without the domain.
    fn is_mailbox(&self, syntax: Syntax) -> bool {
        self.domain().is_some() || (!syntax.strict && !self.text.is_empty())
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
fn after_route(text: &str, syntax: Syntax) -> Option<&str> {
    let Some(route) = text.strip_prefix('@') else { return Some(text) };
    let (hops, mailbox) = route.split_once(':')?;
    let is_hop = |hop: &str| hop.is_ascii() && !hop.starts_with('[') && after_domain(hop, syntax) == Some("");
    hops.split(",@").all(is_hop).then_some(mailbox)
}

/// What stands behind the `Local-part`, a `Dot-string` or a `Quoted-string`, at the start of `text`.
fn after_local_part(text: &str, syntax: Syntax) -> Option<&str> {
    let quoted = text.strip_prefix('"');
    let rest = match quoted {
        Some(quoted) => after_quoted(quoted)?,
        None => text.trim_start_matches(|character| is_atext(character) || character == '.'),
    };
    let local_part = text.strip_suffix(rest)?;
    let bad_dots = syntax.strict && quoted.is_none() && local_part.split('.').any(str::is_empty);
    // With its quotes (RFC 5321 4.5.3.1.1); the tags of mailing lists outgrow 64.
    let octets_max = if syntax.strict { 64 } else { 255 };
    (!bad_dots && (1..=octets_max).contains(&local_part.len())).then_some(rest)
}

/// What stands behind the `Quoted-string` whose first quote was read.
fn after_quoted(text: &str) -> Option<&str> {
    let mut characters = text.chars();
    loop {
        match characters.next()? {
            '"' => return Some(characters.as_str()),
            '\\' if !matches!(characters.next()?, ' '..='~') => return None,
            character if !matches!(character, ' '..='~') && !is_utf8_non_ascii(character) => return None,
            _ => {}
        }
    }
}

/// What stands behind the `Domain` or `address-literal` at the start of `text`, of at most [`DOMAIN_OCTETS_MAX`].
pub(super) fn after_domain(text: &str, syntax: Syntax) -> Option<&str> {
    let (good, rest) = if let Some(inside) = text.strip_prefix('[') {
        let (content, rest) = inside.split_once(']')?;
        (is_literal(content), rest)
    } else {
        let is_part = |character| is_ldh(character) || character == '.' || (character == '_' && !syntax.strict);
        let rest = text.trim_start_matches(|character| is_part(character) || is_utf8_non_ascii(character));
        let name = text.strip_suffix(rest)?;
        let relative = if syntax.strict { name } else { name.strip_suffix('.').unwrap_or(name) };
        let hyphens = |label: &str| syntax.strict && (label.starts_with('-') || label.ends_with('-'));
        (!relative.split('.').any(|label| label.is_empty() || hyphens(label)), rest)
    };
    (good && text.len() - rest.len() <= DOMAIN_OCTETS_MAX).then_some(rest)
}

/// Whether `inside` may stand within the brackets of an `address-literal`. Of the tags of `General-address-literal`
/// none is registered so far.
fn is_literal(inside: &str) -> bool {
    // An `Snum` may have leading zeros, other than in std, but not the sign that std takes.
    let is_snum = |text: &str| text.len() <= 3 && !text.starts_with('+') && text.parse::<u8>().is_ok();
    match inside.split_once(':') {
        None => inside.split('.').count() == 4 && inside.split('.').all(is_snum),
        Some((tag, content)) if tag.eq_ignore_ascii_case("IPv6") => content.parse::<Ipv6Addr>().is_ok(),
        Some((tag, content)) => {
            let is_tag = !tag.is_empty() && !tag.ends_with('-') && tag.chars().all(is_ldh);
            let is_dcontent = |character| matches!(character, '!'..='Z' | '^'..='~');
            is_tag && !content.is_empty() && content.chars().all(is_dcontent)
        }
    }
}

/// `atext` of RFC 5322 3.2.3 and RFC 6531 3.3.
fn is_atext(character: char) -> bool {
    character.is_ascii_alphanumeric()
        || matches!(character, '!' | '#'..='\'' | '*' | '+' | '-' | '/' | '=' | '?' | '^'..='`' | '{'..='~')
        || is_utf8_non_ascii(character)
}

/// `UTF8-non-ascii` of RFC 6531 3.3 without the control characters among it, and those that end a line or turn its
/// direction for who reads it.
fn is_utf8_non_ascii(character: char) -> bool {
    let misleads = matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !character.is_ascii() && !character.is_control() && !misleads
}

/// ASCII letter, digit or hyphen: in domains, keywords of parameters, tags of address literals.
pub(super) fn is_ldh(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '-'
}
