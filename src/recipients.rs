//! Whom mail is accepted for, and which mailboxes each recipient has: domains, a table, mailboxes below a directory.
//!
//! A destination is the path of a Maildir: `/srv/mail/alice`, where symbolic links are followed, since an administrator
//! wrote it; `/srv/mail/alice//.tag`, where none is behind the two slashes; `//example.org/alice`, below the directory of
//! mailboxes, where none is either; or nothing, the main Maildir.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use crate::config::{Config, number};
use crate::delivery::MAIN;
use crate::smtp::address::Path;
use crate::smtp::reply::Reply;

/// Addresses that are looked up for one, as aliases lead from it to the next.
const LOOK_UPS_MAX: u32 = 17;

/// What is known of an address.
#[derive(Debug)]
enum Rule {
    /// Its mail goes to these destinations and to those of these addresses, or nowhere.
    Targets(Vec<String>),
    /// It is answered with this line, so many times more; then as if the rule were not there.
    Reply(String, Cell<u32>),
}

/// Whether a Maildir is there: asked with a destination, and whether it may be made.
pub type Exists<'a> = &'a mut dyn FnMut(&str, bool) -> Result<(), Reply>;

/// What is done with a destination: asked with the tag that it may have a folder for, and whether it may be made.
type Found<'a> = &'a mut dyn FnMut(&mut String, Option<&str>, bool) -> Result<(), &'static str>;

/// All that is known of recipients. Looking one up allocates nothing, and takes as long in a large table as in a small one.
#[derive(Debug, Default)]
pub struct Recipients {
    table: Table,
    /// Memory for looking up.
    address: String,
    destination: String,
}

#[derive(Debug, Default)]
struct Table {
    /// Those that are served, `.domain` for all below one; none for any.
    domains: HashSet<String>,
    /// By `domain@local-part`: an address with its tag or without, `domain@` for all of a domain, `@local-part` at any.
    rules: HashMap<String, Rule>,
    /// Whose a recipient without a domain is.
    own_domain: String,
    /// Who has neither a rule nor a Maildir has no mailbox.
    closed: bool,
    /// Mailboxes are below a directory; in one directory for each domain unless there is only one.
    mailboxes: bool,
    one_domain: bool,
    create: bool,
    delimiter: Option<char>,
}

impl Recipients {
    /// Reads what `config` says, and its table. An error is why that can't be read, or `file:line:column: what is wrong`.
    pub fn load(config: &Config) -> Result<Self, String> {
        let mut table = Table {
            own_domain: config.protocol.hostname.to_ascii_lowercase(),
            closed: config.recipients.is_some() || config.mailboxes.is_some(),
            mailboxes: config.mailboxes.is_some(),
            create: config.create_mailboxes,
            // Tags are looked for in lower case.
            delimiter: config.subaddress_delimiter.map(|delimiter| delimiter.to_ascii_lowercase()),
            ..Table::default()
        };
        for domain in config.domains.iter().rev().map(|domain| domain.trim_end_matches('.').to_ascii_lowercase()) {
            table.domains.insert(domain.trim_start_matches('*').to_owned());
            if !domain.starts_with('*') {
                table.own_domain = domain;
            }
        }
        table.one_domain = table.domains.len() == 1 && table.domains.contains(&table.own_domain);
        if let Some(file) = &config.recipients {
            let octets = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
            let read = table.read(&octets, config.protocol.destinations_max);
            read.map_err(|problem| format!("{}:{problem}", file.display()))?;
        }
        Ok(Self { table, ..Self::default() })
    }

    /// Whether mail is accepted for any domain.
    pub fn serve_any_domain(&self) -> bool {
        self.table.domains.is_empty()
    }

    /// The Maildirs that the table names.
    pub fn maildirs(&self) -> impl Iterator<Item = &str> {
        let rules = self.table.rules.values();
        let targets = rules.flat_map(|rule| if let Rule::Targets(targets) = rule { &targets[..] } else { &[] });
        targets.map(String::as_str).filter(|target| is_path(target))
    }

    /// Gives the destinations of a recipient to `take`: none for mail that is dropped, and some perhaps twice. The error is
    /// 550 5.7.1 where its domain is not served, 550 5.1.1 where it has no mailbox, or what the table or `exists` says.
    pub fn resolve(&mut self, path: &Path<'_>, exists: Exists<'_>, take: &mut dyn FnMut(&str)) -> Result<(), &str> {
        let Self { table, address, destination } = self;
        if table.domains.is_empty() && !table.closed {
            take(MAIN);
            return Ok(());
        }
        normalize(path, &table.own_domain, address);
        let (domain, local_part) = address.split_once('@').unwrap_or_default();
        // Ways of old to have mail sent on: in such a local part stands the true address.
        let routed = local_part.contains(['@', '%', '!']) && !table.rules.contains_key(address.as_str());
        if routed && !table.domains.is_empty() || path.domain().is_some() && !table.serves(domain) {
            return Err(Reply::RELAYING_DENIED.0);
        }
        // Somebody always answers for this server (RFC 5321 4.5.1), whatever the table says.
        let postmaster = table.split_tag(local_part).0 == "postmaster";
        let mut found = |destination: &mut String, tag: Option<&str>, create: bool| {
            let octets = destination.len();
            if let Some(tag) = tag {
                // A folder of Maildir++.
                destination.push_str(if destination.starts_with("//") { "/." } else { "//." });
                if !encode(tag, destination) || exists(destination, false).is_err() {
                    destination.truncate(octets);
                }
            }
            exists(destination, create).map(|()| take(destination)).map_err(|reply| reply.0)
        };
        match table.look_up(address, LOOK_UPS_MAX, destination, &mut found) {
            Ok(true) => {}
            Ok(false) if table.closed && !postmaster => return Err(Reply::NO_SUCH_MAILBOX.0),
            Err(line) if line.starts_with('4') || !postmaster => return Err(line),
            _ => take(MAIN),
        }
        Ok(())
    }
}

impl Table {
    /// Whether a domain is served, or all below one that it is below.
    fn serves(&self, domain: &str) -> bool {
        let name = domain.trim_start_matches('.');
        let below = || name.find('.').is_some_and(|dot| self.serves(&name[dot..]));
        self.domains.is_empty() || self.domains.contains(domain) || below()
    }

    fn split_tag<'a>(&self, local_part: &'a str) -> (&'a str, Option<&'a str>) {
        let parts = self.delimiter.and_then(|delimiter| local_part.split_once(delimiter));
        parts.filter(|(user, _)| !user.is_empty()).map_or((local_part, None), |(user, tag)| (user, Some(tag)))
    }

    /// Finds what is known of an address, with its tag before without: its own rule, that of its local part at any domain,
    /// that of its domain, its Maildir. False where nothing is.
    fn look_up(&self, address: &str, left: u32, buffer: &mut String, found: Found<'_>) -> Result<bool, &str> {
        let left = left.checked_sub(1).ok_or(Reply::ALIAS_LOOP.0)?;
        let (domain, local_part) = address.split_once('@').unwrap_or_default();
        let (user, tag) = self.split_tag(local_part);
        let at = domain.len();
        let untagged = &address[..=at + user.len()];
        let (anywhere, untagged_anywhere, all) = (&address[at..], &untagged[at..], &address[..=at]);
        let mut known = false;
        for (name, tag) in [(address, None), (untagged, tag), (anywhere, None), (untagged_anywhere, tag), (all, None)] {
            match self.rules.get(name) {
                None => {}
                Some(Rule::Reply(_, times)) if times.get() == 0 => known = true,
                Some(Rule::Reply(line, times)) => {
                    times.set(times.get() - u32::from(times.get() != u32::MAX));
                    return Err(line);
                }
                Some(Rule::Targets(targets)) => {
                    let tag = tag.filter(|_| targets.len() == 1);
                    for target in targets {
                        if is_path(target) {
                            buffer.clone_from(target);
                            found(buffer, tag, self.create)?;
                        } else if !self.look_up(target, left, buffer, found)? {
                            return Err(Reply::NO_SUCH_MAILBOX.0);
                        }
                    }
                    return Ok(true);
                }
            }
        }
        // Nothing is made for the name with its tag.
        for (user, tag, create) in [(local_part, None, tag.is_none()), (user, tag, true)] {
            if self.mailboxes && self.write_destination(domain, user, buffer) {
                match found(buffer, tag, create && self.create) {
                    Err(line) if line == Reply::NO_SUCH_MAILBOX.0 => {}
                    taken => return taken.map(|()| true),
                }
            }
        }
        if known {
            MAIN.clone_into(buffer);
            found(buffer, None, false)?;
        }
        Ok(known)
    }

    /// Writes where a mailbox is below the directory of mailboxes; false where it can't be there.
    fn write_destination(&self, domain: &str, user: &str, destination: &mut String) -> bool {
        let domain = if domain.is_empty() { &self.own_domain } else { domain };
        "//".clone_into(destination);
        if self.one_domain {
            // Others are served, too, where the table has them.
            return domain == self.own_domain && encode(user, destination);
        }
        // The main Maildir may have this name, and no domain has.
        let parent = domain != "postmaster" && encode(domain, destination);
        destination.push('/');
        parent && encode(user, destination)
    }

    /// Reads the table, one rule a line. An error says what is wrong in it, as `line:column: what`.
    fn read(&mut self, octets: &[u8], destinations_max: usize) -> Result<(), String> {
        let octets = octets.strip_prefix("\u{feff}".as_bytes()).unwrap_or(octets);
        let text = octets.utf8_chunks().next().map_or("", |chunk| chunk.valid());
        let wrong = |part: &str, what: &str| {
            let before = &text[..part.as_ptr() as usize - text.as_ptr() as usize];
            let column = before.chars().rev().take_while(|&character| character != '\n').count() + 1;
            format!("{}:{column}: {part:?} {what}", before.split('\n').count())
        };
        if text.len() < octets.len() {
            return Err(wrong(&text[text.len()..], "is followed by what is not UTF-8"));
        }
        // Addresses that a rule leads to, and then its own: a mistake is named where it is made.
        let mut linked = Vec::new();
        for line in text.lines() {
            let is_comment = |&(at, _): &(usize, &str)| at == 0 || line[..at].ends_with([' ', '\t']);
            let rule = line.match_indices('#').find(is_comment).map_or(line, |(at, _)| &line[..at]).trim();
            if rule.is_empty() {
                continue;
            }
            let (name, value) = first_word(rule);
            let rule = match first_word(value) {
                ("reject", "") => Rule::Reply(Reply::NO_SUCH_MAILBOX.0.to_owned(), Cell::new(u32::MAX)),
                ("discard", "") => Rule::Targets(Vec::new()),
                ("reply", reply) => reply_rule(reply).ok_or_else(|| {
                    wrong(reply, "is no reply such as `452 4.2.2 Mailbox full`, perhaps with `for 3`")
                })?,
                _ => {
                    let mut targets = Vec::with_capacity(1);
                    for text in value.split(',').map(str::trim) {
                        let target = target(text).ok_or_else(|| wrong(text, "is neither an address nor a path"))?;
                        linked.extend((!is_path(&target)).then(|| (text, target.clone())));
                        targets.push(target);
                    }
                    Rule::Targets(targets)
                }
            };
            let address = key(name.trim_end_matches(':')).ok_or_else(|| wrong(name, "is no address"))?;
            linked.extend(matches!(rule, Rule::Targets(_)).then(|| (name, address.clone())));
            self.domains.extend(address.split('@').next().filter(|domain| !domain.is_empty()).map(str::to_owned));
            if self.rules.insert(address, rule).is_some() {
                return Err(wrong(name, "has a rule already"));
            }
        }
        for (text, address) in linked {
            let (domain, _) = address.split_once('@').unwrap_or_default();
            let mut found = HashSet::new();
            let mut count = |destination: &mut String, _: Option<&str>, _| {
                found.insert(destination.clone());
                Ok(())
            };
            let what = match self.look_up(&address, LOOK_UPS_MAX, &mut String::new(), &mut count) {
                Ok(true) if found.len() > destinations_max => "stands for more mailboxes than one message may go to",
                Ok(true) if domain.is_empty() || self.serves(domain) => continue,
                Err(line) if line == Reply::ALIAS_LOOP.0 => "leads back to itself, or through more than 16 others",
                Err(_) => "is refused",
                Ok(_) => "has no mailbox here, and this server sends nothing on",
            };
            return Err(wrong(text, what));
        }
        Ok(())
    }
}

/// Writes an address as it is looked up: domain first, no quotes, lower case, no dot at the domain's end.
fn normalize(path: &Path<'_>, own_domain: &str, address: &mut String) {
    path.domain().unwrap_or(own_domain).trim_end_matches('.').clone_into(address);
    address.push('@');
    address.extend(path.unquoted());
    address.make_ascii_lowercase();
}

/// An address of the table, as it is looked up: with a domain, without one for any, or a domain alone.
fn key(text: &str) -> Option<String> {
    let all = if text.starts_with('@') { "all" } else { "" };
    let address = [all, text].concat();
    let mut key = String::new();
    normalize(&Path::mailbox(&address, crate::smtp::command::LENIENT)?, "", &mut key);
    key.truncate(key.len() - all.len());
    Some(key)
}

/// A path without empty names, or an address as it is looked up.
fn target(text: &str) -> Option<String> {
    if !is_path(text) {
        return key(text);
    }
    let path: std::path::PathBuf = std::path::Path::new(text).components().collect();
    path.into_os_string().into_string().ok()
}

/// Whether a target is the path of a Maildir. No domain begins so, and hence no address as it is looked up.
fn is_path(target: &str) -> bool {
    target.starts_with(['/', '.'])
}

/// What stands before the first blank of a text, and what behind: both of them parts of it.
fn first_word(text: &str) -> (&str, &str) {
    let (word, rest) = text.split_at(text.find([' ', '\t']).unwrap_or(text.len()));
    (word, rest.trim_start())
}

/// `452 4.2.2 Mailbox full`, perhaps with `for 3`: a code of class 4 or 5, perhaps an enhanced one of the same, a text.
fn reply_rule(text: &str) -> Option<Rule> {
    let limited = text.rsplit_once(" for ").and_then(|(line, times)| Some((line.trim_end(), number(times)?)));
    let (line, times) = limited.unwrap_or((text, u32::MAX));
    let (code, rest) = line.split_once(' ')?;
    let enhanced = rest.split(' ').next().filter(|word| word.split('.').count() == 3);
    let good = matches!(code.as_bytes(), [b'4' | b'5', b'0'..=b'5', b'0'..=b'9'])
        && enhanced.is_none_or(|enhanced| enhanced.as_bytes().first() == code.as_bytes().first())
        && line.len() <= 500 // A reply line has 512 with its CRLF (RFC 5321 4.5.3.1.5).
        && line.bytes().all(|octet| matches!(octet, b' '..=b'~'));
    good.then(|| Rule::Reply(line.to_owned(), Cell::new(times)))
}

/// Writes what may be any text as the name of a file; false where it is empty, or longer than the 255 octets of a name.
fn encode(text: &str, name: &mut String) -> bool {
    let before = name.len();
    for octet in text.bytes() {
        match octet {
            b'a'..=b'z' | b'0'..=b'9' | b'_' | b'+' | b'=' | b'~' | b'-' => name.push(char::from(octet)),
            b'.' if name.len() > before => name.push('.'),
            _ => drop(write!(name, "%{octet:02X}")),
        }
    }
    (1..=255).contains(&(name.len() - before))
}
