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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
pub(super) mod tests {
    use super::*;

    const STRICT: Syntax = Syntax { strict: true };
    const LENIENT: Syntax = Syntax { strict: false };

    /// Marsaglia's xorshift: the same numbers in every run.
    pub struct Random(u64);

    impl Random {
        pub fn new(seed: u64) -> Self {
            Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
        }

        pub fn below(&mut self, limit: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 >> 33).unwrap() % limit
        }

        pub fn choose<T: Copy>(&mut self, choices: &[T]) -> T {
            choices[self.below(choices.len())]
        }

        /// Pieces of grammar in no order: more often an address than random octets are.
        fn pieces(&mut self, most: usize) -> String {
            (0..=self.below(most)).map(|_| self.choose(&PIECES)).collect()
        }
    }

    const PIECES: [&str; 36] = [
        "<",
        ">",
        "@",
        "@",
        "@",
        ".",
        ",",
        ":",
        "\"",
        "\"",
        "\\",
        "[",
        "]",
        "a",
        "b",
        "Z9",
        "-",
        "_",
        "+",
        "=",
        " ",
        "\t",
        "é",
        "\u{85}",
        "\0",
        "\x7f",
        "IPv6:",
        "::1",
        "192.0.2.1",
        "1.2.3",
        "tag:x",
        "postmaster",
        "example.com",
        "(",
        ";",
        "~",
    ];

    fn mailboxes(syntax: Syntax, good: &[&str], bad: &[&str]) {
        for text in good {
            let mailbox = Mailbox::parse(text, syntax).unwrap_or_else(|| panic!("{text} refused"));
            assert_eq!(mailbox.as_str(), *text);
        }
        for text in bad {
            assert_eq!(Mailbox::parse(text, syntax), None, "{text:?} accepted");
        }
    }

    #[test]
    fn mailboxes_of_the_grammar() {
        let good = [
            "a@b",
            "A.b-c+d@example.com",
            "!#$%&'*+-/=?^_`{|}~@x1",
            "1@2.3",
            "\"\"@x",
            "\"a b\"@x",
            "\"<@>,:;\"@x",
            r#""\"\\\ "@x"#,
            "\"a.@b..\"@x",
            "a@xn--bcher-kva.example",
            "a@internet--tips.net",
            "a@[192.0.2.1]",
            "a@[010.000.2.255]",
            "a@[IPv6:2001:db8::1]",
            "a@[ipv6:::ffff:1.2.3.4]",
            "a@[tag:x]",
            "a@[x-1:!@<>]",
            "é@x",
            "a@bücher.example",
            "\"é\"@é",
        ];
        mailboxes(STRICT, &good, &[]);
        mailboxes(LENIENT, &good, &[]);
    }

    #[test]
    fn mailboxes_of_no_grammar() {
        let bad = [
            "",
            "@",
            "a@",
            "@b",
            "a@b@c",
            "a b@c",
            "a@b c",
            "a@b..c",
            "a@.b",
            "a@.",
            "a@[",
            "a@[]",
            "a@]",
            "a@[1.2.3]",
            "a@[1.2.3.4",
            "a@[1.2.3.4]x",
            "a@[1.2.3.256]",
            "a@[1.2.3.+4]",
            "a@[1.2.3.0004]",
            "a@[1.2.3.4.5]",
            "a@[IPv6:1.2.3.4]",
            "a@[IPv6:]",
            "a@[IPv6:::1%eth0]",
            "a@[-:x]",
            "a@[:x]",
            "a@[tag:]",
            "a@[t_g:x]",
            "a@[tag:a b]",
            "a@[tag:[]",
            "a@[tag:é]",
            "\"",
            "\"a@b",
            "\"a\"b@c",
            "a\"b\"@c",
            "\"a\\\"@b",
            "\"a\\é\"@b",
            "a\\b@c",
            "(a)@b",
            "a,b@c",
            "a:b@c",
            "a;b@c",
            "<a@b>",
            "a@b>",
            "a\0@b",
            "\"a\0\"@b",
            "\"a\tb\"@c",
            "\"\\\t\"@c",
            "a\x1b@b",
            "a@b\x7f",
            "a\x7f@b",
            "a@b\r",
            "a@b\n",
            "a\u{85}@b",
            "\"\u{9b}\"@b",
            "a@\u{80}b",
        ];
        mailboxes(STRICT, &[], &bad);
        mailboxes(LENIENT, &[], &bad);
    }

    #[test]
    fn devices_miss_the_grammar() {
        let devices = [
            ("HPE iLO ends the local part in a dot", "ilo-server.@example.com"),
            ("HPE iLO without a serial number doubles the dot", "ilo..rack@example.com"),
            ("a script begins with a dot", ".profile@example.com"),
            ("cron has no domain", "root"),
            ("a camera has an underscore in its name", "cam@front_door.lan"),
            ("a printer has hyphens at the ends of its name", "printer@-npi-.lan"),
            ("a resolver leaves the dot of the root", "a@example.com."),
        ];
        for (device, text) in devices {
            assert!(Mailbox::parse(text, LENIENT).is_some(), "{device}: {text}");
            assert_eq!(Mailbox::parse(text, STRICT), None, "{device}: {text}");
        }
    }

    #[test]
    fn parts_of_a_mailbox() {
        let mailbox = Mailbox::parse(r#""a\b\" c"@[IPv6:::1]"#, STRICT).unwrap();
        assert_eq!(mailbox.local_part(), r#""a\b\" c""#);
        assert_eq!(mailbox.unquoted().collect::<String>(), r#"ab" c"#);
        assert_eq!(mailbox.domain(), Some(Domain::Ipv6Literal(Ipv6Addr::LOCALHOST)));
        assert!(mailbox.is_ascii());
        let mailbox = Mailbox::parse("é.b@Example.com", STRICT).unwrap();
        assert_eq!((mailbox.local_part(), mailbox.domain()), ("é.b", Some(Domain::Name("Example.com"))));
        assert_eq!(mailbox.unquoted().collect::<String>(), "é.b");
        assert!(!mailbox.is_ascii());
        assert_eq!(Mailbox::parse("root", LENIENT).unwrap().domain(), None);
        assert_eq!(Domain::parse("[010.0.0.1]", STRICT), Some(Domain::Ipv4Literal(Ipv4Addr::new(10, 0, 0, 1))));
        assert_eq!(Domain::parse("[tag:x]", STRICT), Some(Domain::GeneralLiteral("tag:x")));
    }

    #[test]
    fn reverse_paths() {
        let both = [
            ("<>", "", ""),
            ("<a@b>", "a@b", ""),
            ("<a@b> SIZE=1", "a@b", " SIZE=1"),
            ("<@one.example,@two.example:a@b>", "a@b", ""),
            ("<\"> <\"@b>", "\"> <\"@b", ""),
        ];
        let lenient_only = [
            ("test@testingsmtp.com", "test@testingsmtp.com", ""), // LSI MegaRAID
            ("richlowe@internet--tips.net SIZE=1", "richlowe@internet--tips.net", " SIZE=1"),
            ("@one:a@b", "a@b", ""),
            ("< a@b\t>", "a@b", ""),
            ("< >", "", ""),
            ("<root>", "root", ""),
            ("postmaster\tX", "postmaster", "\tX"),
            ("<a@b>\tX", "a@b", "\tX"),
        ];
        let neither = [
            "",
            " ",
            ">",
            "<",
            "<a@b",
            "a@b>",
            "<<a@b>>",
            "<a@b>>",
            "<a@b>x",
            "<a@b><c@d>",
            "< <a@b> >",
            "<a@b,c@d>",
            "<@one>",
            "<@one:>",
            "<@one,two:a@b>",
            "<@one,:a@b>",
            "<@one,@two,a@b>",
            "<@[1.2.3.4]:a@b>",
            "<@é:a@b>",
            "<a b@c>",
            "\"a@b",
            "<a@b\0>",
            "\0<a@b>",
            "<\t\r>",
        ];
        for (text, address, rest) in both {
            for syntax in [STRICT, LENIENT] {
                let (path, remains) = ReversePath::parse(text, syntax).expect(text);
                assert_eq!((path.as_str(), remains), (address, rest), "{text}");
            }
        }
        for (text, address, rest) in lenient_only {
            let (path, remains) = ReversePath::parse(text, LENIENT).expect(text);
            assert_eq!((path.as_str(), remains), (address, rest), "{text}");
            assert_eq!(ReversePath::parse(text, STRICT), Err(Reply::BAD_REVERSE_PATH), "{text}");
        }
        for text in neither {
            assert_eq!(ReversePath::parse(text, LENIENT), Err(Reply::BAD_REVERSE_PATH), "{text}");
            assert_eq!(ReversePath::parse(text, STRICT), Err(Reply::BAD_REVERSE_PATH), "{text}");
        }
    }

    #[test]
    fn forward_paths() {
        for syntax in [STRICT, LENIENT] {
            assert_eq!(ForwardPath::parse("<pOSTMASTER>", syntax), Ok((ForwardPath::Postmaster, "")));
            let (path, _) = ForwardPath::parse("<postmaster@b>", syntax).unwrap();
            assert!(matches!(path, ForwardPath::Mailbox(_)) && path.is_ascii());
            assert_eq!(ForwardPath::parse("<>", syntax), Err(Reply::BAD_FORWARD_PATH));
            assert_eq!(ForwardPath::parse("< >", syntax), Err(Reply::BAD_FORWARD_PATH));
        }
        assert_eq!(ForwardPath::parse("postmaster", LENIENT), Ok((ForwardPath::Postmaster, "")));
        assert_eq!(ForwardPath::parse("<root>", STRICT), Err(Reply::BAD_FORWARD_PATH));
    }

    #[test]
    fn limits() {
        let address = |local: usize, domain: usize| format!("{}@{}", "l".repeat(local), "d".repeat(domain));
        let path = |hops: usize, octets: usize| {
            let route = format!("@{}:", vec!["h"; hops].join(",@"));
            let rest = octets - route.len() - 5;
            format!("<{route}a@{}>", "d".repeat(rest))
        };
        for (syntax, local, octets) in [(STRICT, 64, 256), (LENIENT, 255, 1024)] {
            assert!(Mailbox::parse(&address(local, 255), syntax).is_some());
            assert!(Mailbox::parse(&address(local + 1, 1), syntax).is_none());
            assert!(Mailbox::parse(&address(1, 256), syntax).is_none());
            assert!(Mailbox::parse(&format!("\"{}\"@b", "q".repeat(local - 2)), syntax).is_some());
            assert!(Mailbox::parse(&format!("\"{}\"@b", "q".repeat(local - 1)), syntax).is_none());
            let hops = (octets - 100) / 3;
            assert_eq!(path(hops, octets).len(), octets - 1);
            assert!(ReversePath::parse(&path(hops, octets + 1), syntax).is_ok());
            assert!(ReversePath::parse(&path(hops, octets + 2), syntax).is_err());
        }
    }

    #[test]
    fn what_it_prints_parses_back() {
        let mut random = Random::new(1);
        let mut parsed = [0; 2];
        for _ in 0..200_000 {
            let text = match random.below(2) {
                0 => random.pieces(12),
                _ => format!("<{}@{}>", random.pieces(3), random.pieces(3)),
            };
            for (syntax, parsed) in [LENIENT, STRICT].into_iter().zip(&mut parsed) {
                if let Ok((path, _)) = ReversePath::parse(&text, syntax) {
                    *parsed += 1;
                    let printed = format!("<{}>", path.as_str());
                    assert_eq!(ReversePath::parse(&printed, syntax), Ok((path, "")), "{text:?}");
                    assert!(!printed.chars().any(char::is_control), "{text:?}");
                }
                if let Ok((path, _)) = ForwardPath::parse(&text, syntax) {
                    let printed = format!("<{}>", path.as_str());
                    assert_eq!(ForwardPath::parse(&printed, syntax), Ok((path, "")), "{text:?}");
                }
                if let Some(mailbox) = Mailbox::parse(&text, syntax) {
                    assert_eq!(Mailbox::parse(mailbox.as_str(), syntax), Some(mailbox));
                    let requoted: String = mailbox.unquoted().flat_map(|character| ['\\', character]).collect();
                    let requoted = format!("\"{requoted}\"");
                    if let Some(again) = Mailbox::parse(&requoted, LENIENT) {
                        assert!(again.unquoted().eq(mailbox.unquoted()), "{text:?}");
                    }
                }
            }
            if let Ok(strict) = ReversePath::parse(&text, STRICT) {
                assert_eq!(ReversePath::parse(&text, LENIENT), Ok(strict), "{text:?}");
            }
        }
        assert!(parsed.into_iter().all(|count| count > 500), "too few addresses among the pieces: {parsed:?}");
    }
}
