//! Addresses: what the grammar of RFC 5321 allows, and what is forgiven beyond it.

use mailchute::smtp::address::*;
use mailchute::smtp::command::LENIENT;
use mailchute::smtp::reply::Reply;

use crate::random::Random;

const STRICT: bool = true;

/// Pieces of grammar in no order: more often an address than random octets are.
fn pieces(random: &mut Random, most: usize) -> String {
    (0..=random.below(most)).map(|_| random.choose(&PIECES)).collect()
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

fn mailboxes(strict: bool, good: &[&str], bad: &[&str]) {
    for text in good {
        let mailbox = Path::mailbox(text, strict).unwrap_or_else(|| panic!("{text} refused"));
        assert_eq!(mailbox.as_str(), *text);
    }
    for text in bad {
        assert_eq!(Path::mailbox(text, strict), None, "{text:?} accepted");
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
        assert!(Path::mailbox(text, LENIENT).is_some(), "{device}: {text}");
        assert_eq!(Path::mailbox(text, STRICT), None, "{device}: {text}");
    }
}

#[test]
fn parts_of_a_mailbox() {
    let mailbox = Path::mailbox(r#""a\b\" c"@[IPv6:::1]"#, STRICT).unwrap();
    assert_eq!(mailbox.local_part(), r#""a\b\" c""#);
    assert_eq!(mailbox.unquoted().collect::<String>(), r#"ab" c"#);
    assert_eq!(mailbox.domain(), Some("[IPv6:::1]"));
    assert!(mailbox.as_str().is_ascii());
    let mailbox = Path::mailbox("é.b@Example.com", STRICT).unwrap();
    assert_eq!((mailbox.local_part(), mailbox.domain()), ("é.b", Some("Example.com")));
    assert_eq!(mailbox.unquoted().collect::<String>(), "é.b");
    assert!(!mailbox.as_str().is_ascii());
    assert_eq!(Path::mailbox("root", LENIENT).unwrap().domain(), None);
    assert_eq!(Path::mailbox("a@[010.0.0.1]", STRICT).unwrap().domain(), Some("[010.0.0.1]"));
    assert_eq!(Path::mailbox("a@[tag:x]", STRICT).unwrap().domain(), Some("[tag:x]"));
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
        for strict in [STRICT, LENIENT] {
            let (path, remains) = Path::reverse(text, strict).expect(text);
            assert_eq!((path.as_str(), remains), (address, rest), "{text}");
        }
    }
    for (text, address, rest) in lenient_only {
        let (path, remains) = Path::reverse(text, LENIENT).expect(text);
        assert_eq!((path.as_str(), remains), (address, rest), "{text}");
        assert_eq!(Path::reverse(text, STRICT), Err(Reply::BAD_REVERSE_PATH), "{text}");
    }
    for text in neither {
        assert_eq!(Path::reverse(text, LENIENT), Err(Reply::BAD_REVERSE_PATH), "{text}");
        assert_eq!(Path::reverse(text, STRICT), Err(Reply::BAD_REVERSE_PATH), "{text}");
    }
}

#[test]
fn forward_paths() {
    for strict in [STRICT, LENIENT] {
        let (path, rest) = Path::forward("<pOSTMASTER>", strict).unwrap();
        assert_eq!((path.as_str(), path.domain(), rest), ("Postmaster", None, ""));
        let (path, _) = Path::forward("<postmaster@b>", strict).unwrap();
        assert_eq!((path.as_str(), path.domain()), ("postmaster@b", Some("b")));
        assert_eq!(Path::forward("<>", strict), Err(Reply::BAD_FORWARD_PATH));
        assert_eq!(Path::forward("< >", strict), Err(Reply::BAD_FORWARD_PATH));
    }
    assert_eq!(Path::forward("postmaster", LENIENT), Path::forward("<Postmaster>", STRICT));
    assert_eq!(Path::forward("<root>", STRICT), Err(Reply::BAD_FORWARD_PATH));
}

#[test]
fn limits() {
    let address = |local: usize, domain: usize| format!("{}@{}", "l".repeat(local), "d".repeat(domain));
    let path = |hops: usize, octets: usize| {
        let route = format!("@{}:", vec!["h"; hops].join(",@"));
        let rest = octets - route.len() - 5;
        format!("<{route}a@{}>", "d".repeat(rest))
    };
    for (strict, local, octets) in [(STRICT, 64, 256), (LENIENT, 255, 1024)] {
        assert!(Path::mailbox(&address(local, 255), strict).is_some());
        assert!(Path::mailbox(&address(local + 1, 1), strict).is_none());
        assert!(Path::mailbox(&address(1, 256), strict).is_none());
        assert!(Path::mailbox(&format!("\"{}\"@b", "q".repeat(local - 2)), strict).is_some());
        assert!(Path::mailbox(&format!("\"{}\"@b", "q".repeat(local - 1)), strict).is_none());
        let hops = (octets - 100) / 3;
        assert_eq!(path(hops, octets).len(), octets - 1);
        assert!(Path::reverse(&path(hops, octets + 1), strict).is_ok());
        assert!(Path::reverse(&path(hops, octets + 2), strict).is_err());
    }
}

#[test]
fn what_it_prints_parses_back() {
    let mut random = Random::new(1);
    let mut parsed = [0; 2];
    for _ in 0..200_000 {
        let text = match random.below(2) {
            0 => pieces(&mut random, 12),
            _ => format!("<{}@{}>", pieces(&mut random, 3), pieces(&mut random, 3)),
        };
        for (strict, parsed) in [LENIENT, STRICT].into_iter().zip(&mut parsed) {
            if let Ok((path, _)) = Path::reverse(&text, strict) {
                *parsed += 1;
                let printed = format!("<{}>", path.as_str());
                assert_eq!(Path::reverse(&printed, strict), Ok((path, "")), "{text:?}");
                assert!(!printed.chars().any(char::is_control), "{text:?}");
            }
            if let Ok((path, _)) = Path::forward(&text, strict) {
                let printed = format!("<{}>", path.as_str());
                assert_eq!(Path::forward(&printed, strict), Ok((path, "")), "{text:?}");
            }
            if let Some(mailbox) = Path::mailbox(&text, strict) {
                assert_eq!(Path::mailbox(mailbox.as_str(), strict), Some(mailbox));
                let requoted: String = mailbox.unquoted().flat_map(|character| ['\\', character]).collect();
                let requoted = format!("\"{requoted}\"");
                if let Some(again) = Path::mailbox(&requoted, LENIENT) {
                    assert!(again.unquoted().eq(mailbox.unquoted()), "{text:?}");
                }
            }
        }
        if let Ok(strict) = Path::reverse(&text, STRICT) {
            assert_eq!(Path::reverse(&text, LENIENT), Ok(strict), "{text:?}");
        }
    }
    assert!(parsed.into_iter().all(|count| count > 500), "too few addresses among the pieces: {parsed:?}");
}
