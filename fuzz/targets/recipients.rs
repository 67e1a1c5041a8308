//! The table of recipients: whoever it is asked for, it says what a slow reading of the same table says, and no
//! destination lies elsewhere than below the directory of mailboxes or in a Maildir that the table names.
//!
//! Lines that begin with `>` are recipients to be asked for; the others are the table. Options: `d` the domain example.org
//! is served, `w` all below sub.example, `m` there is a directory of mailboxes, `c` they are made, `h` tags begin with a
//! hyphen and `n` there are none, `x` there is no table. All of them choose which Maildirs there are.

#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::io::{Seek, Write};
use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;
use mailchute::Config;
use mailchute::recipients::Recipients;
use mailchute::smtp::address::Path;
use mailchute::smtp::command::LENIENT;
use mailchute::smtp::reply::Reply;
use mailchute_fuzz::Input;

const HOSTNAME: &str = "Host.Example";
const DESTINATIONS_MAX: usize = 4;

fuzz_target!(|input: &[u8]| {
    let input = Input::new(input);
    let lines = || input.octets.split(|&octet| octet == b'\n');
    let table: Vec<_> = lines().filter(|line| !line.starts_with(b">")).collect();
    let table = table.join(&b'\n');
    let given = |letter| input.has(letter);
    let mut config = Config { create_mailboxes: given(b'c'), ..Config::default() };
    config.protocol.hostname = HOSTNAME.to_owned();
    config.protocol.destinations_max = DESTINATIONS_MAX;
    config.domains.extend(given(b'd').then(|| "Example.org.".to_owned()));
    config.domains.extend(given(b'w').then(|| "*.sub.example".to_owned()));
    config.mailboxes = given(b'm').then(|| PathBuf::from("/srv"));
    config.recipients = (!given(b'x')).then(|| written(&table));
    config.subaddress_delimiter = match () {
        () if given(b'n') => None,
        () if given(b'h') => Some('-'),
        () => Some('+'),
    };
    let loaded = Recipients::load(&config);
    let Some(model) = Model::new(&config, &table) else {
        let problem = loaded.expect_err("a table that is wrong is taken");
        assert!(!problem.contains('\n'), "{problem}");
        return;
    };
    // What leads back to itself is not looked for when the model is read.
    let Ok(mut recipients) = loaded else { return };

    let seed = input.options.iter().fold(7, |seed: u32, &octet| seed.wrapping_mul(31) ^ u32::from(octet));
    let exists = |destination: &str, create: bool| {
        let hash = destination.bytes().fold(seed, |hash, octet| (hash ^ u32::from(octet)).wrapping_mul(0x0100_0193));
        match hash >> 28 {
            0 => Err(Reply::MAILBOX_FAILED),
            1..6 if !create && !destination.is_empty() => Err(Reply::NO_SUCH_MAILBOX),
            _ => Ok(()),
        }
    };
    for line in lines().filter_map(|line| line.strip_prefix(b">")) {
        let Ok(text) = std::str::from_utf8(line) else { continue };
        let Ok((path, "")) = Path::forward(text, LENIENT) else { continue };
        // Address literals of families that nobody knows may have this, and are split there.
        if path.domain().is_some_and(|domain| domain.contains('@')) {
            continue;
        }
        let mut found = Vec::new();
        let asked = RefCell::new(Vec::new());
        let mut exists_here = |destination: &str, create: bool| {
            asked.borrow_mut().push(destination.to_owned());
            exists(destination, create)
        };
        let is = recipients.resolve(&path, &mut exists_here, &mut |it| found.push(it.to_owned()));
        let is = is.map(|()| found).map_err(str::to_owned);
        let expected = model.resolve(&path, &exists);
        assert_eq!(is, expected, "{text:?}");
        for destination in asked.into_inner().iter().chain(is.iter().flatten()) {
            model.check(destination);
        }
    }
});

/// The path of a file with this text, which has no name and is gone with the process.
fn written(table: &[u8]) -> PathBuf {
    thread_local! {
        static FILE: RefCell<File> = RefCell::new({
            let path = std::env::temp_dir().join(format!("mailchute-fuzz-{}", std::process::id()));
            let file = File::options().read(true).write(true).create_new(true).open(&path).expect("a temporary file");
            std::fs::remove_file(path).expect("it is ours");
            file
        });
    }
    FILE.with_borrow_mut(|file| {
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(table)).expect("room for a table");
        PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file)))
    })
}

/// A domain, empty for any, and a local part, empty for all of the domain.
type Name = (String, String);

enum Target {
    Maildir(String),
    Alias(Name),
}

enum Rule {
    Targets(Vec<Target>),
    /// The reply, and how often it is given.
    Reply(String, RefCell<u64>),
}

/// The table as the documentation has it, searched from its start to its end.
struct Model {
    rules: Vec<(Name, Rule)>,
    /// Domains that are served.
    served: Vec<String>,
    /// All below these are, too.
    served_below: Vec<String>,
    own_domain: String,
    closed: bool,
    mailboxes: bool,
    one_domain: bool,
    create: bool,
    delimiter: Option<char>,
}

impl Model {
    /// Reads a table; none where a line of it is surely wrong.
    fn new(config: &Config, table: &[u8]) -> Option<Self> {
        let first = config.domains.iter().find(|domain| !domain.starts_with('*'));
        let own_domain = first.map_or(HOSTNAME, |domain| domain.trim_end_matches('.')).to_ascii_lowercase();
        let mut model = Self {
            rules: Vec::new(),
            served: first.map(|_| own_domain.clone()).into_iter().collect(),
            served_below: config.domains.iter().filter_map(|it| Some(it.strip_prefix("*")?.to_owned())).collect(),
            own_domain,
            closed: config.mailboxes.is_some() || config.recipients.is_some(),
            mailboxes: config.mailboxes.is_some(),
            one_domain: config.domains.len() == 1 && first.is_some(),
            create: config.create_mailboxes,
            delimiter: config.subaddress_delimiter,
        };
        if config.recipients.is_some() {
            let table = std::str::from_utf8(table).ok()?;
            for line in table.strip_prefix('\u{feff}').unwrap_or(table).lines() {
                model.read(line)?;
            }
        }
        Some(model)
    }

    fn read(&mut self, line: &str) -> Option<()> {
        let mut comment = line.len();
        for at in (0..line.len()).filter(|&at| line.as_bytes()[at] == b'#').rev() {
            if at == 0 || matches!(line.as_bytes()[at - 1], b' ' | b'\t') {
                comment = at;
            }
        }
        let line = line[..comment].trim();
        if line.is_empty() {
            return Some(());
        }
        let (name, value) = line.split_once([' ', '\t'])?;
        let (name, value) = (name.trim_end_matches(':'), value.trim_start());
        let name = match name.strip_prefix('@') {
            Some(domain) => (address(&format!("x@{domain}"))?.0, String::new()),
            None => address(name)?,
        };
        let rule = match value.split([' ', '\t']).next() {
            Some("reject") if value == "reject" => {
                Rule::Reply("550 5.1.1 No such mailbox here".into(), u64::MAX.into())
            }
            Some("discard") if value == "discard" => Rule::Targets(Vec::new()),
            Some("reply") => {
                let reply = value["reply".len()..].trim_start();
                let number = |text: &str| text.parse::<u32>().ok().map(u64::from);
                let limited =
                    reply.rsplit_once(" for ").and_then(|(line, times)| Some((line.trim_end(), number(times)?)));
                let (line, times) = limited.unwrap_or((reply, u64::MAX));
                let times = if times == u64::from(u32::MAX) { u64::MAX } else { times };
                let printable = line.bytes().all(|octet| matches!(octet, b' '..=b'~')) && line.len() <= 500;
                if !printable || !line.starts_with(['4', '5']) || line.as_bytes().get(3) != Some(&b' ') {
                    return None;
                }
                Rule::Reply(line.to_owned(), times.into())
            }
            _ => Rule::Targets(value.split(',').map(|text| target(text.trim())).collect::<Option<_>>()?),
        };
        if self.rules.iter().any(|(known, _)| *known == name) {
            return None;
        }
        self.served.extend((!name.0.is_empty()).then(|| name.0.clone()));
        self.rules.push((name, rule));
        Some(())
    }

    fn serves_any(&self) -> bool {
        self.served.is_empty() && self.served_below.is_empty()
    }

    fn serves(&self, domain: &str) -> bool {
        let below = |parent: &String| domain.strip_suffix(parent.as_str()).is_some_and(|child| !child.is_empty());
        self.serves_any() || self.served.iter().any(|it| it == domain) || self.served_below.iter().any(below)
    }

    fn resolve(&self, path: &Path<'_>, exists: &Exists<'_>) -> Result<Vec<String>, String> {
        if self.rules.is_empty() && self.serves_any() && !self.closed {
            return Ok(vec![String::new()]);
        }
        let local_part = path.unquoted().collect::<String>().to_ascii_lowercase();
        let domain = path.domain().map(|domain| domain.trim_end_matches('.').to_ascii_lowercase());
        let name = (domain.clone().unwrap_or(self.own_domain.clone()), local_part.clone());
        let known = self.rules.iter().any(|(known, _)| *known == name);
        if domain.is_some_and(|domain| !self.serves(&domain))
            || local_part.contains(['%', '!', '@']) && !known && !self.serves_any()
        {
            return Err("550 5.7.1 Relaying denied".to_owned());
        }
        let mut found = Vec::new();
        let is = self.look_up(&name, 17, exists, &mut found);
        let postmaster = self.split(&local_part).0 == "postmaster";
        match is {
            Ok(false) if self.closed && !postmaster => Err("550 5.1.1 No such mailbox here".to_owned()),
            Err(line) if !postmaster || line.starts_with('4') => Err(line),
            Ok(true) => Ok(found),
            _ => {
                found.push(String::new());
                Ok(found)
            }
        }
    }

    /// The user, and the tag.
    fn split<'a>(&self, local_part: &'a str) -> (&'a str, Option<&'a str>) {
        let delimiter = self.delimiter.filter(|delimiter| !local_part.starts_with(*delimiter));
        match delimiter.and_then(|delimiter| local_part.split_once(delimiter)) {
            Some((user, tag)) => (user, Some(tag)),
            None => (local_part, None),
        }
    }

    /// Whether anything is known of a name.
    fn look_up(&self, name: &Name, left: u32, exists: &Exists<'_>, found: &mut Vec<String>) -> Result<bool, String> {
        if left == 0 {
            return Err("554 5.4.6 Aliases lead back to themselves".to_owned());
        }
        let (domain, local_part) = (name.0.as_str(), name.1.as_str());
        let (user, tag) = self.split(local_part);
        let mut spent = false;
        for (domain, local_part, tag) in [
            (domain, local_part, None),
            (domain, user, tag),
            ("", local_part, None),
            ("", user, tag),
            (domain, "", None),
        ] {
            let rule = self.rules.iter().find(|((of, local), _)| of == domain && local == local_part);
            match rule.map(|(_, rule)| rule) {
                None => {}
                Some(Rule::Reply(_, times)) if *times.borrow() == 0 => spent = true,
                Some(Rule::Reply(line, times)) => {
                    let before = *times.borrow();
                    *times.borrow_mut() -= u64::from(before != u64::MAX);
                    return Err(line.clone());
                }
                Some(Rule::Targets(targets)) => {
                    let tag = tag.filter(|_| targets.len() == 1);
                    for target in targets {
                        match target {
                            Target::Maildir(path) => deliver(path, tag, self.create, exists, found)?,
                            Target::Alias(name) if self.look_up(name, left - 1, exists, found)? => {}
                            Target::Alias(_) => return Err("550 5.1.1 No such mailbox here".to_owned()),
                        }
                    }
                    return Ok(true);
                }
            }
        }
        if self.mailboxes {
            let domain = if domain.is_empty() { &self.own_domain } else { domain };
            // Nothing is made for a name with its tag.
            let tries = match tag {
                None => vec![(local_part, None, self.create)],
                Some(_) => vec![(local_part, None, false), (user, tag, self.create)],
            };
            for (user, tag, create) in tries {
                let Some(mailbox) = self.mailbox(domain, user) else { continue };
                match deliver(&mailbox, tag, create, exists, found) {
                    Err(line) if line == Reply::NO_SUCH_MAILBOX.0 => {}
                    delivered => return delivered.map(|()| true),
                }
            }
        }
        if spent {
            deliver("", None, false, exists, found)?;
        }
        Ok(spent)
    }

    /// Where a mailbox is below the directory.
    fn mailbox(&self, domain: &str, user: &str) -> Option<String> {
        if self.one_domain {
            return (domain == self.own_domain).then(|| Some(format!("//{}", file_name(user)?)))?;
        }
        (domain != "postmaster").then(|| Some(format!("//{}/{}", file_name(domain)?, file_name(user)?)))?
    }

    /// Whether a destination is where it may be: the main Maildir; below the directory of mailboxes; in a Maildir that
    /// the table names, or a folder of it.
    fn check(&self, destination: &str) {
        let good = |name: &str| !matches!(name, "" | "." | "..") && !name.contains(['/', '\0']) && name.len() <= 256;
        let targets = self.rules.iter().filter_map(|(_, rule)| match rule {
            Rule::Targets(targets) => Some(targets),
            Rule::Reply(..) => None,
        });
        let named =
            |path: &str| targets.flatten().any(|target| matches!(target, Target::Maildir(known) if known == path));
        if destination.starts_with("///") {
            // A folder of the root of the file system, where that is named as a Maildir.
            assert!(named("/"), "{destination:?}");
        } else if let Some(below) = destination.strip_prefix("//") {
            let names: Vec<_> = below.split('/').collect();
            let most = if self.one_domain { 2 } else { 3 };
            assert!(self.mailboxes && (most - 1..=most).contains(&names.len()), "{destination:?}");
            assert!(names.iter().all(|name| good(name)), "{destination:?}");
            // Only a folder begins with a dot, and no mailbox is in the Maildir that a directory called so may be.
            assert!(names[..most - 1].iter().all(|name| !name.starts_with('.')), "{destination:?}");
            assert!(names.len() < most || names[most - 1].starts_with('.'), "{destination:?}");
            assert!(self.one_domain || names[0] != "postmaster", "{destination:?}");
        } else if !destination.is_empty() {
            let (path, folder) = destination.split_once("//").unwrap_or((destination, ".folder"));
            assert!(good(folder) && folder.starts_with('.'), "{destination:?}");
            assert!(named(path), "{destination:?} is named nowhere");
        }
    }
}

type Exists<'a> = dyn Fn(&str, bool) -> Result<(), Reply> + 'a;

/// Adds a Maildir, or its folder for the tag where there is one.
fn deliver(
    path: &str, tag: Option<&str>, create: bool, exists: &Exists<'_>, found: &mut Vec<String>,
) -> Result<(), String> {
    let between = if path.starts_with("//") { "/" } else { "//" };
    let folder = tag.and_then(file_name).map(|tag| format!("{path}{between}.{tag}"));
    match folder.filter(|folder| exists(folder, false).is_ok()) {
        // It is asked for twice.
        Some(folder) => exists(&folder, create).map(|()| found.push(folder)),
        None => exists(path, create).map(|()| found.push(path.to_owned())),
    }
    .map_err(|reply| reply.0.to_owned())
}

/// An address as it is looked up.
fn address(text: &str) -> Option<Name> {
    let path = Path::mailbox(text, LENIENT)?;
    let domain = path.domain().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
    Some((domain, path.unquoted().collect::<String>().to_ascii_lowercase()))
}

fn target(text: &str) -> Option<Target> {
    if let Some(domain) = text.strip_prefix('@') {
        // Whoever has the mail of all others there.
        return address(&format!("x@{domain}")).map(|(domain, _)| Target::Alias((domain, String::new())));
    }
    if !text.starts_with(['/', '.']) {
        return address(text).map(Target::Alias);
    }
    let names: Vec<_> = text.split('/').filter(|name| !name.is_empty()).collect();
    let start = if text.starts_with('/') { "/" } else { "" };
    let first = usize::from(start.is_empty());
    let kept = names.iter().enumerate().filter(|(at, name)| *at < first || **name != ".").map(|(_, name)| *name);
    Some(Target::Maildir(format!("{start}{}", kept.collect::<Vec<_>>().join("/"))))
}

/// A text as the name of a file, octet by octet.
fn file_name(text: &str) -> Option<String> {
    let mut name = String::new();
    for octet in text.bytes() {
        let plain = octet.is_ascii_lowercase() || octet.is_ascii_digit() || b"_+=~-".contains(&octet);
        if plain || octet == b'.' && !name.is_empty() {
            name.push(octet.into());
        } else {
            name += &format!("%{octet:02X}");
        }
    }
    (1..=255).contains(&name.len()).then_some(name)
}
