//! Whom mail is accepted for: domains, the table, mailboxes below a directory and their names.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use common::Place;
use common::random::Random;
use mailchute::Config;
use mailchute::recipients::Recipients;
use mailchute::smtp::address::Path;
use mailchute::smtp::command::LENIENT;
use mailchute::smtp::reply::Reply;

/// The settings, and the Maildirs that there are.
struct Case {
    recipients: Recipients,
    there: BTreeSet<String>,
}

impl Case {
    fn new(config: &Config) -> Self {
        Self { recipients: Recipients::load(config).unwrap(), there: BTreeSet::new() }
    }

    /// With a table, and the Maildirs that it names.
    fn table(table: &str) -> Self {
        let there = table.split([' ', ',', '\n']).filter(|word| word.starts_with('/'));
        let there = there.map(|path| path.trim_end_matches('/').to_owned()).collect();
        Self { recipients: load(Config::default(), table).unwrap(), there }
    }

    fn with(mut self, there: &[&str]) -> Self {
        self.there.extend(there.iter().map(|&path| path.to_owned()));
        self
    }

    /// The destinations of a recipient, or the reply.
    fn ask(&mut self, recipient: &str) -> Result<Vec<String>, String> {
        let (path, rest) = Path::forward(&format!("<{recipient}>").leak()[..], LENIENT).unwrap();
        assert_eq!(rest, "");
        let mut destinations = Vec::new();
        let mut exists = |destination: &str, create: bool| {
            let there = destination.is_empty() || create || self.there.contains(destination);
            if there { Ok(()) } else { Err(Reply::NO_SUCH_MAILBOX) }
        };
        let found = self.recipients.resolve(&path, &mut exists, &mut |it| {
            if !destinations.iter().any(|known| known == it) {
                destinations.push(it.to_owned());
            }
        });
        found.map(|()| destinations).map_err(str::to_owned)
    }

    #[track_caller]
    fn goes(&mut self, recipient: &str, destinations: &[&str]) {
        assert_eq!(self.ask(recipient).unwrap(), destinations, "{recipient}");
    }

    #[track_caller]
    fn refused(&mut self, recipient: &str, start: &str) {
        let reply = self.ask(recipient).unwrap_err();
        assert!(reply.starts_with(start), "{recipient}: {reply}");
    }
}

fn load(config: Config, table: &str) -> Result<Recipients, String> {
    let place = Place::new();
    let file = place.path().join("table");
    std::fs::write(&file, table).unwrap();
    let read = Recipients::load(&Config { recipients: Some(file.clone()), ..config });
    read.map_err(|problem| problem.strip_prefix(file.to_str().unwrap()).unwrap_or(&problem).to_owned())
}

fn domains(domains: &[&str]) -> Config {
    Config { domains: domains.iter().map(|&domain| domain.to_owned()).collect(), ..Config::default() }
}

fn mailboxes(config: Config) -> Config {
    Config { mailboxes: Some(PathBuf::from("/srv")), ..config }
}

#[test]
fn without_settings_everybody_is_in_the_one_maildir() {
    let mut case = Case::new(&Config::default());
    for recipient in ["a@b.example", "root", "Postmaster", "a%b@c", "\"a@b\"@c", "a+b@[192.0.2.1]", "ø@ø.example"] {
        case.goes(recipient, &[""]);
    }
}

#[test]
fn a_foreign_domain_is_refused_in_every_form() {
    let mut case = Case::new(&domains(&["example.org", "*.sub.example", "[192.0.2.1]"]));
    for served in [
        "a@example.org",
        "a@EXAMPLE.Org",
        "a@example.org.",
        "@other.example:a@example.org",
        "@one.example,@two.example:a@example.org",
        "postmaster@example.org",
        "Postmaster",
        "root",
        "\"a b\"@example.org",
        "a+b@example.org",
        "a@one.sub.example",
        "a@two.one.sub.example",
        "a@[192.0.2.1]",
    ] {
        case.goes(served, &[""]);
    }
    let mut catch_all = Case::table("@example.org /srv/a\n@one.sub.example /srv/b\n@[192.0.2.1] /srv/c\nroot /srv/d\n");
    catch_all.goes("a+b@[192.0.2.1]", &["/srv/c"]);
    let served = domains(&["example.org", "*.sub.example", "[192.0.2.1]"]);
    let mut makes_all = Case::new(&Config { create_mailboxes: true, ..mailboxes(served) });
    makes_all.goes("a+b@[192.0.2.1]", &["//%5B192.0.2.1%5D/a"]);
    let mut refused = 0;
    for foreign in [
        "a@other.example",
        "a@OTHER.example",
        "postmaster@other.example",
        "\"postmaster\"@other.example",
        "a@example.org.other.example",
        "a@notexample.org",
        "a@org",
        "a@.example.org".trim_start_matches('x'),
        "a@sub.example",
        "a@xsub.example",
        "a@[192.0.2.2]",
        "a@[IPv6:2001:db8::1]",
        "a%other.example@example.org",
        "a%other.example%third.example@example.org",
        "\"a%other.example\"@example.org",
        "a%other.example",
        "other.example!a@example.org",
        "other.example!a",
        "\"other.example!a\"@example.org",
        "\"a@other.example\"@example.org",
        "\"a@other.example\"",
        "\"a\\@other.example\"@example.org",
        "\"a@example.org\"@other.example",
        "a%example.org@other.example",
        "@example.org:a@other.example",
        "@example.org,@example.org:a@other.example",
        "@example.org:a%other.example@example.org",
        "@other.example:other.example!a@example.org",
        "a@exämple.org",
        "a@ＥＸＡＭＰＬＥ.org",
        "a@xn--exmple-cua.org",
        "a@example。org",
        "a@example.org-",
        "a@_example.org",
        "\"\"@other.example",
        "a@localhost",
        "a@127.0.0.1",
    ] {
        if Path::forward(&format!("<{foreign}>"), LENIENT).is_ok() {
            case.refused(foreign, "550 5.7.1");
            // Nor do those who take all of a domain, or make mailboxes, take it.
            catch_all.refused(foreign, "550 5.7.1");
            makes_all.refused(foreign, "550 5.7.1");
            refused += 1;
        }
    }
    assert!(refused >= 30, "{refused} forms only; the others are no addresses");
}

#[test]
fn mailboxes_are_below_their_domain() {
    let mut case = Case::new(&mailboxes(Config::default())).with(&["//example.org/alice", "//b.example/alice"]);
    case.goes("alice@example.org", &["//example.org/alice"]);
    case.goes("ALICE@Example.ORG", &["//example.org/alice"]);
    case.goes("\"al\\ice\"@b.example", &["//b.example/alice"]);
    case.refused("bob@example.org", "550 5.1.1");
    case.refused("alice@c.example", "550 5.1.1");
    // Somebody always answers for the server.
    case.goes("postmaster@example.org", &[""]);
    case.goes("Postmaster", &[""]);
}

#[test]
fn one_domain_needs_no_directory_of_its_own() {
    for domains in [domains(&["example.org"]), domains(&["example.org", "Example.ORG."])] {
        let mut case = Case::new(&mailboxes(domains)).with(&["//alice"]);
        case.goes("alice@example.org", &["//alice"]);
        case.goes("alice", &["//alice"]);
        case.refused("alice@other.example", "550 5.7.1");
    }
    let mut case = Case::new(&mailboxes(domains(&["example.org", "b.example"]))).with(&["//example.org/alice"]);
    case.goes("alice", &["//example.org/alice"]);
    case.refused("alice@b.example", "550 5.1.1");
}

#[test]
fn a_tag_is_a_folder_where_there_is_one() {
    let there = ["//example.org/alice", "//example.org/alice/.work", "//example.org/bob+b"];
    let mut case = Case::new(&mailboxes(Config::default())).with(&there);
    case.goes("alice+lists@example.org", &["//example.org/alice"]);
    case.goes("alice+Work@example.org", &["//example.org/alice/.work"]);
    case.goes("bob+b@example.org", &["//example.org/bob+b"]);
    case.refused("bob@example.org", "550 5.1.1");
    case.refused("+work@example.org", "550 5.1.1");
    let config = Config { subaddress_delimiter: Some('-'), ..mailboxes(Config::default()) };
    let mut case = Case::new(&config).with(&there);
    case.goes("alice-work@example.org", &["//example.org/alice/.work"]);
    case.refused("alice+work@example.org", "550 5.1.1");
    let mut case = Case::table("alice@example.org /srv/alice/\nboth@example.org /srv/a, /srv/b\n")
        .with(&["/srv/alice//.work", "/srv/a//.work"]);
    case.goes("alice+work@example.org", &["/srv/alice//.work"]);
    case.goes("alice+x@example.org", &["/srv/alice"]);
    case.goes("both+work@example.org", &["/srv/a", "/srv/b"]);
}

#[test]
fn the_table() {
    let mut case = Case::table(
        "# Who is who.\n\
         alice@example.org    /srv/mail/alice/\n\
         bob@example.org:     /srv/mail/bob     # as in aliases\n\
         \n\
         @example.org         /srv/mail/catchall/\n\
         sales@example.org    alice@example.org, bob@example.org,alice@example.org\n\
         all@example.org      sales@example.org, carol@example.org\n\
         spam@example.org     reject\n\
         noreply@example.org  discard\n\
         full@example.org     reply 452 4.2.2 Mailbox full\n\
         twice@example.org    reply 451 4.7.1 Try again for 2\n\
         root                 alice@example.org\n",
    );
    case.goes("alice@example.org", &["/srv/mail/alice"]);
    case.goes("Bob@example.ORG", &["/srv/mail/bob"]);
    case.goes("bob+tag@example.org", &["/srv/mail/bob"]);
    case.goes("somebody@example.org", &["/srv/mail/catchall"]);
    case.goes("sales@example.org", &["/srv/mail/alice", "/srv/mail/bob"]);
    case.goes("all@example.org", &["/srv/mail/alice", "/srv/mail/bob", "/srv/mail/catchall"]);
    case.goes("noreply@example.org", &[]);
    case.goes("root", &["/srv/mail/alice"]);
    case.goes("root@example.org", &["/srv/mail/alice"]);
    case.refused("spam@example.org", "550 5.1.1");
    case.refused("spam+tag@example.org", "550 5.1.1");
    case.refused("a@other.example", "550 5.7.1");
    for _ in 0..3 {
        assert_eq!(case.ask("full@example.org").unwrap_err(), "452 4.2.2 Mailbox full");
    }
    // The first two tries, then as if the rule were not there.
    for _ in 0..2 {
        assert_eq!(case.ask("twice@example.org").unwrap_err(), "451 4.7.1 Try again");
    }
    case.goes("twice@example.org", &["/srv/mail/catchall"]);
    let mut case = Case::table("twice@example.org reply 451 Later for 1\n");
    case.refused("twice@example.org", "451 Later");
    case.goes("twice@example.org", &[""]);
    case.refused("other@example.org", "550 5.1.1");
    case.goes("postmaster@example.org", &[""]);
}

#[test]
fn postmaster_is_accepted_whatever_the_table_says() {
    for table in [
        "",
        "@example.org reject\n",
        "@example.org reply 550 5.7.1 Go away\n",
        "postmaster@example.org reject\n",
        "postmaster reject\na@example.org discard\n",
    ] {
        let mut case = Case::table(table);
        case.goes("postmaster@example.org", &[""]);
        case.goes("PostMaster+tag@example.org", &[""]);
        case.goes("Postmaster", &[""]);
        assert!(case.ask("postmasters@example.org").is_err(), "{table}");
    }
    // Mail of his own goes there, and a Maildir that is missing keeps none of it out.
    let mut case = Case::table("@example.org /srv/all\n");
    case.goes("postmaster@example.org", &["/srv/all"]);
    case.there.clear();
    case.goes("postmaster@example.org", &[""]);
    case.refused("other@example.org", "550 5.1.1");
    // A client that is told to come again will.
    Case::table("@example.org reply 451 4.3.2 Later\n").refused("postmaster@example.org", "451 4.3.2");
}

#[test]
fn domains_of_the_table_have_no_mailboxes_among_those_of_the_one_domain() {
    let config = Config { create_mailboxes: true, ..mailboxes(domains(&["Example.ORG."])) };
    let recipients = load(config, "alice@b.example /srv/alice\nroot bob@example.org\n").unwrap();
    let mut case = Case { recipients, there: BTreeSet::new() };
    case.goes("bob@example.org", &["//bob"]);
    case.goes("bob", &["//bob"]);
    case.goes("root@b.example", &["//bob"]);
    case.goes("alice@b.example", &["/srv/alice"]);
    case.refused("bob@b.example", "550 5.1.1");
}

#[test]
fn no_domain_meets_the_main_maildir() {
    let config = Config { create_mailboxes: true, ..mailboxes(Config::default()) };
    let mut case = Case::new(&config);
    case.goes("new@postmaster.example", &["//postmaster.example/new"]);
    case.refused("new@postmaster", "550 5.1.1");
    case.refused("new@PostMaster.", "550 5.1.1");
}

#[test]
fn tags_and_users_may_be_missing() {
    let mut case = Case::table("alice@example.org /srv/alice\n+work@example.org /srv/plus\n").with(&["/srv/alice//."]);
    case.goes("alice+@example.org", &["/srv/alice"]);
    case.goes("alice++@example.org", &["/srv/alice"]);
    case.goes("+work@example.org", &["/srv/plus"]);
    case.refused("+@example.org", "550 5.1.1");
    case.refused("+alice@example.org", "550 5.1.1");
    // Local parts are looked up in lower case.
    let config = Config { subaddress_delimiter: Some('X'), ..mailboxes(Config::default()) };
    let mut case = Case::new(&config).with(&["//example.org/bob", "//example.org/bob/.a"]);
    case.goes("bobXa@example.org", &["//example.org/bob/.a"]);
    case.goes("bobxb@example.org", &["//example.org/bob"]);
}

#[test]
fn aliases_lead_to_tags_and_through_each_other() {
    let mut table = "alice@example.org /srv/alice\nlist@example.org alice+lists@example.org, alice@example.org\n\
                     any@example.org ALICE@Example.org., /srv/any\na0 alice@example.org\n"
        .to_owned();
    for number in 1..16 {
        table += &format!("a{number} a{}\n", number - 1);
    }
    let mut case = Case::table(&table).with(&["/srv/alice//.lists", "/srv/any"]);
    case.goes("list@example.org", &["/srv/alice//.lists", "/srv/alice"]);
    case.goes("any+lists@example.org", &["/srv/alice", "/srv/any"]);
    case.goes("a15@example.org", &["/srv/alice"]);
    case.refused("a15@b.example", "550 5.7.1");
    table += "a16 a15\n";
    let problem = load(Config::default(), &table).unwrap_err();
    assert!(problem.contains(":20:1: \"a16\" leads back"), "{problem}");
    table += "a17 a16\n";
    assert!(load(Config::default(), &table).unwrap_err().contains("leads back"));
    // Nor may one stand for more mailboxes than a message goes to: it could never be reached.
    for (mailboxes, good) in [(128, true), (129, false)] {
        let paths: Vec<_> = (0..mailboxes).map(|number| format!("/srv/{number}")).collect();
        let loaded = load(Config::default(), &format!("all@example.org {}, /srv/1\n", paths.join(",")));
        let named = loaded.err().map(|problem| problem.contains(":1:1: \"all@example.org\" stands for more"));
        assert_eq!(named, if good { None } else { Some(true) }, "{mailboxes}");
    }
}

#[test]
fn replies_are_counted_and_then_the_recipient_is_accepted() {
    let mut case = Case::table(
        "a@example.org reply 450 4.2.1 Busy for 2 \nb@example.org reply 451 wait for 2 minutes\n\
         c@example.org reply 450 x for 0\n",
    );
    // A tag makes no other recipient of it.
    case.refused("a@example.org", "450 4.2.1 Busy");
    case.refused("A+tag@example.org", "450 4.2.1 Busy");
    case.goes("a@example.org", &[""]);
    case.goes("a+tag@example.org", &[""]);
    for _ in 0..4 {
        assert_eq!(case.ask("b@example.org").unwrap_err(), "451 wait for 2 minutes");
    }
    case.goes("c@example.org", &[""]);
}

#[test]
fn the_table_may_come_from_any_editor() {
    for table in [
        "\u{feff}alice@example.org /srv/alice/\r\nb#b@example.org\t/srv/b # a note\r\n",
        "  alice@example.org:\t \t/srv//alice///  \n\n\t# note\n   b#b@example.org /srv/./b\t#note",
        "# only\r\n#\r\n\r\n\"alice\"@EXAMPLE.org. /srv/alice\r\n\"b#b\"@example.org /srv/b",
    ] {
        let mut case = Case::table(table).with(&["/srv/alice", "/srv/b"]);
        case.goes("alice@example.org", &["/srv/alice"]);
        case.goes("b#b@example.org", &["/srv/b"]);
        case.refused("b@example.org", "550 5.1.1");
    }
    for empty in ["", "\u{feff}", "\n", "\r\n", "# nothing"] {
        let mut case = Case::table(empty);
        case.refused("alice@example.org", "550 5.1.1");
        case.goes("postmaster", &[""]);
    }
    // Two slashes mean something in a destination, but nothing in a path.
    let mut case = Case::table("a@example.org //srv/a\nb@example.org ./boxes//b/\n").with(&["/srv/a", "./boxes/b"]);
    case.goes("a@example.org", &["/srv/a"]);
    case.goes("b@example.org", &["./boxes/b"]);
}

#[test]
fn a_mistake_in_the_table_is_named_with_its_place() {
    for (table, problem) in [
        ("alice@example.org\n", ":1:18: \"\" is neither an address nor a path"),
        ("# x\n\n  al ice@example.org\n", ":3:6: \"ice@example.org\" has no mailbox here"),
        ("a@b@c /srv/a\n", ":1:1: \"a@b@c\" is no address"),
        ("a@b.example /srv/a\nA@B.example /srv/b\n", ":2:1: \"A@B.example\" has a rule already"),
        ("a@b.example  b@b.example\n", ":1:14: \"b@b.example\" has no mailbox here"),
        ("a@b.example  b@other.example\n", ":1:14: \"b@other.example\" has no mailbox here"),
        ("a@b.example b@b.example\nb@b.example /srv/b, a@b.example\n", "leads back to itself"),
        ("a@b.example a@b.example\n", ":1:13: \"a@b.example\" leads back to itself"),
        ("a@b.example c@b.example\nc@b.example reject\n", ":1:13: \"c@b.example\" is refused"),
        ("ä@b.example /srv/a, ,/srv/b\n", ":1:20: \"\" is neither an address nor a path"),
        ("a@b.example reply 250 fine\n", ":1:19: \""),
        ("a@b.example reply 452 5.2.2 Mailbox full\n", ":1:19: \""),
        ("a@b.example reply 452 \u{1b}[2J\n", ":1:19: \""),
        ("a@b.example reply\n", ":1:18: \"\" is no reply such as"),
        ("a@b.example reject now\n", ":1:13: \"reject now\" is neither an address nor a path"),
        ("a@b.example /srv/a\nc@b.example b@b.example,\n", ":2:25: \"\" is neither"),
        ("a@b.example /srv/a\r\n\"a\"@b.example. /srv/b\r\n", ":2:1: \"\\\"a\\\"@b.example.\" has a rule already"),
        ("\u{feff}a@@b /srv/a\n", ":1:1: \"a@@b\" is no address"),
        ("@ /srv/a\n", ":1:1: \"@\" is no address"),
        ("@*.b.example /srv/a\n", ":1:1: \"@*.b.example\" is no address"),
    ] {
        let found = load(Config::default(), table).map(|_| ()).unwrap_err();
        assert!(found.contains(problem), "{table:?}: {found}");
        assert_eq!(found.lines().count(), 1);
    }
    let place = Place::new();
    let file = place.path().join("table");
    std::fs::write(&file, b"a@b.example /srv/a\n\xc3\xa4@b.example\t/srv/\xe4\n").unwrap();
    let problem = Recipients::load(&Config { recipients: Some(file), ..Config::default() }).unwrap_err();
    assert!(problem.contains("table:2:18: ") && problem.contains("UTF-8"), "{problem}");
    let missing = Config { recipients: Some("/nonexistent/table".into()), ..Config::default() };
    assert!(Recipients::load(&missing).unwrap_err().starts_with("/nonexistent/table: "));
}

/// What the documentation says of names, from the back.
fn decode(name: &str) -> String {
    let mut octets = Vec::new();
    let mut rest = name.bytes();
    while let Some(octet) = rest.next() {
        octets.push(match octet {
            b'%' => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            octet => octet,
        });
    }
    String::from_utf8(octets).unwrap()
}

#[test]
fn no_local_part_leaves_its_directory_or_meets_another() {
    let config = Config { create_mailboxes: true, subaddress_delimiter: None, ..mailboxes(Config::default()) };
    let mut case = Case::new(&config);
    let mut random = Random::new(5);
    let mut names: HashMap<String, String> = HashMap::new();
    let special =
        ["..", ".", "...", ".hidden", "a/b", "/etc/passwd", "../../x", "a\\b", "new", "tmp", "cur", "a:2,S", "%2e"];
    let alphabet: Vec<char> = "aAbB./%\\ :+-_~=@!*\u{e9}e\u{301}ﬁ🦀\"".chars().collect();
    let drawn = (0..20_000).map(|_| {
        let length = 1 + random.below(12);
        (0..length).map(|_| alphabet[random.below(alphabet.len())]).collect::<String>()
    });
    for local_part in special.iter().map(|&text| text.to_owned()).chain(drawn.collect::<Vec<_>>()) {
        let quoted: String =
            local_part.chars().flat_map(|c| if matches!(c, '"' | '\\') { vec!['\\', c] } else { vec![c] }).collect();
        let found = case.ask(&format!("\"{quoted}\"@Example.org")).unwrap();
        let [destination] = &found[..] else { panic!("{found:?}") };
        if destination.is_empty() {
            assert_eq!(local_part.to_ascii_lowercase(), "postmaster");
            continue;
        }
        let name = destination.strip_prefix("//example.org/").unwrap();
        assert!(!name.starts_with('.') && !name.is_empty() && name.len() <= 255, "{name}");
        assert!(
            name.bytes().all(|octet| matches!(octet, b'a'..=b'z' | b'A'..=b'F' | b'0'..=b'9' | b'.' | b'%')
                || b"_+=~-".contains(&octet)),
            "{name}"
        );
        let meant = local_part.to_ascii_lowercase();
        assert_eq!(decode(name), meant);
        assert_eq!(names.entry(name.to_owned()).or_insert_with(|| meant.clone()), &meant);
    }
    // Not even on a file system that knows no case.
    let folded: BTreeSet<String> = names.keys().map(|name| name.to_ascii_lowercase()).collect();
    assert_eq!(folded.len(), names.len());
    case.refused(&format!("\"{}\"@example.org", "/".repeat(100)), "550 5.1.1");
}
