//! Whom mail is accepted for, and which mailboxes each recipient has: domains, a table, mailboxes below a directory.
//!
//! A destination is the path of a Maildir: `/srv/mail/alice`, where symbolic links are followed, since an administrator
//! wrote it; `/srv/mail/alice//.tag`, where none is behind the two slashes; `//example.org/alice`, below the directory of
//! mailboxes, where none is either; or nothing, the main Maildir.
//!
//! # Names of mailboxes
//!
//! Local parts and domains are folded to lower case (ASCII only) and then written octet by octet: `a` to `z`, digits and
//! `_ + = ~ -` as they are, a dot too unless it comes first, all others as `%` and two hexadecimal digits. So no name
//! leaves its directory, no two meet, and each can be read back. One longer than 255 octets has no mailbox.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use crate::config::Config;
use crate::delivery::MAIN;
use crate::smtp::address::Path;
use crate::smtp::command::Syntax;
use crate::smtp::reply::Reply;

/// Octets of the longest name of a file.
const NAME_OCTETS_MAX: usize = 255;

/// Octets of the longest reply that a table can give.
const REPLY_LINE_OCTETS_MAX: usize = 500;

/// Aliases that lead from one to the next, at most.
const ALIASES_MAX: u32 = 16;

/// What the table says of an address.
#[derive(Debug)]
enum Rule {
    /// Its mail goes there, or nowhere.
    Targets(Vec<Target>),
    Reject,
    /// It is answered with this line, so many times more; then as if the rule were not there.
    Reply(String, Cell<u32>),
}

#[derive(Debug)]
enum Target {
    Destination(String),
    /// Another address of this server, as it is looked up.
    Address(String),
}

/// A line and a column of the table, and what is wrong there.
type Wrong = (usize, usize, String);

/// Whether a Maildir is there: asked with a destination, and whether it may be made.
pub type Exists<'a> = &'a mut dyn FnMut(&str, bool) -> Result<(), Reply>;

/// All that is known of recipients. Looking one up allocates nothing, and takes as long in a large table as in a small one.
#[derive(Debug, Default)]
pub struct Recipients {
    table: Table,
    /// Memory for looking up: the address, it without its tag, a destination.
    buffers: [String; 3],
}

#[derive(Debug, Default)]
struct Table {
    /// Those served, in lower case; none for all.
    domains: HashSet<String>,
    /// `.example.org` for all domains below it.
    suffixes: Vec<String>,
    /// Whose a recipient without a domain is.
    own_domain: String,
    rules: HashMap<String, Rule>,
    /// Who has neither a rule nor a Maildir has no mailbox.
    closed: bool,
    /// Mailboxes are below a directory; in one directory for each domain unless there is only one.
    mailboxes: bool,
    one_domain: bool,
    create: bool,
    delimiter: Option<char>,
}

impl Recipients {
    /// Reads what `config` says, and the table that it names.
    ///
    /// # Errors
    /// What is wrong in the table, as `file:line:column: what`, or that it can't be read.
    pub fn load(config: &Config) -> Result<Self, String> {
        let named = || config.domains.iter().map(|domain| domain.trim_end_matches('.').to_ascii_lowercase());
        let suffixes: Vec<_> = named().filter_map(|domain| domain.strip_prefix('*').map(str::to_owned)).collect();
        let domains: Vec<_> = named().filter(|domain| !domain.starts_with('*')).collect();
        let mut table = Table {
            own_domain: domains.first().unwrap_or(&config.protocol.hostname).to_ascii_lowercase(),
            one_domain: domains.len() == 1 && suffixes.is_empty(),
            domains: domains.into_iter().collect(),
            suffixes,
            closed: config.recipients.is_some() || config.mailboxes.is_some(),
            mailboxes: config.mailboxes.is_some(),
            create: config.create_mailboxes,
            delimiter: config.subaddress_delimiter,
            ..Table::default()
        };
        if let Some(file) = &config.recipients {
            let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
            let wrong = |(line, column, what): Wrong| format!("{}:{line}:{column}: {what}", file.display());
            table.read(&text).map_err(wrong)?;
        }
        Ok(Self { table, ..Self::default() })
    }

    /// Finds the destinations of a recipient and gives them to `take`, none for mail that is dropped, and some perhaps
    /// twice.
    ///
    /// # Errors
    /// 550 5.7.1 where its domain is not served, 550 5.1.1 where it has no mailbox, what the table says, or what `exists`
    /// says of its mailbox.
    pub fn resolve(&mut self, path: &Path<'_>, exists: Exists<'_>, take: &mut dyn FnMut(&str)) -> Result<(), &str> {
        let Self { table, buffers: [address, untagged, destination] } = self;
        normalize(path, &table.own_domain, address);
        let (local_part, domain) = split(address);
        let all = table.domains.is_empty() && table.suffixes.is_empty();
        // Ways of old to have mail sent on: in such a local part stands the true address.
        let routed = local_part.contains(['@', '%', '!']) && !table.rules.contains_key(address.as_str());
        if !all && (routed || path.domain().is_some() && !table.serves(&domain[1..])) {
            return Err(Reply::RELAYING_DENIED.into());
        }
        // `user+tag` is `user` where it is not known by its whole name.
        let tagged = table.delimiter.and_then(|delimiter| local_part.split_once(delimiter));
        let tagged = tagged.filter(|(user, _)| !user.is_empty());
        let (user, tag) = tagged.map_or((local_part, None), |(user, tag)| (user, Some(tag)));
        untagged.clear();
        untagged.extend([user, domain]);
        let names = [(&**address, None), (untagged, tag), (local_part, None), (user, tag), (domain, None)];
        if !table.look_up(&names, ALIASES_MAX, destination, exists, take)? {
            // Somebody always answers for this server (RFC 5321 4.5.1).
            if table.closed && user != "postmaster" {
                return Err(Reply::NO_SUCH_MAILBOX.into());
            }
            take(MAIN);
        }
        Ok(())
    }
}

impl Table {
    fn serves(&self, domain: &str) -> bool {
        self.domains.contains(domain) || self.suffixes.iter().any(|suffix| domain.ends_with(suffix.as_str()))
    }

    /// Finds what the first of `names` has that has something: rules of each, then Maildirs of the first two. Those with
    /// a tag beside them may have a folder for it. False where none has anything.
    fn look_up(
        &self,
        names: &[(&str, Option<&str>)],
        aliases_left: u32,
        buffer: &mut String,
        exists: Exists<'_>,
        take: &mut dyn FnMut(&str),
    ) -> Result<bool, &str> {
        let mut known = false;
        for &(name, tag) in names {
            match self.rules.get(name) {
                None => {}
                Some(Rule::Reject) => return Err(Reply::NO_SUCH_MAILBOX.into()),
                Some(Rule::Reply(_, left)) if left.get() == 0 => known = true,
                Some(Rule::Reply(line, left)) => {
                    left.set(left.get() - u32::from(left.get() != u32::MAX));
                    return Err(line);
                }
                Some(Rule::Targets(targets)) => {
                    for target in targets {
                        match target {
                            Target::Destination(destination) => {
                                buffer.clear();
                                buffer.push_str(destination);
                                let tag = tag.filter(|_| targets.len() == 1);
                                take_with_folder(buffer, tag, self.create, exists, take)?;
                            }
                            Target::Address(address) => {
                                let (user, domain) = split(address);
                                let names = [(&**address, None), (user, None), (domain, None)];
                                let more = aliases_left.checked_sub(1).ok_or(Reply::ALIAS_LOOP)?;
                                if !self.look_up(&names, more, buffer, exists, take)? {
                                    return Err(Reply::NO_SUCH_MAILBOX.into());
                                }
                            }
                        }
                    }
                    return Ok(true);
                }
            }
        }
        for &(name, tag) in names.iter().take(2).filter(|_| self.mailboxes) {
            let (user, domain) = split(name);
            buffer.clear();
            buffer.push_str("//");
            let parent = self.one_domain || encode(domain.get(1..).unwrap_or(&self.own_domain), buffer);
            buffer.push_str(if self.one_domain { "" } else { "/" });
            // The whole name, which may hold a tag, comes first, and nothing is made for it.
            let create = self.create && (tag.is_some() || names[0].0 == names[1].0);
            if parent && encode(user, buffer) {
                match take_with_folder(buffer, tag, create, exists, take) {
                    Err(Reply::NO_SUCH_MAILBOX) => {}
                    taken => return Ok(taken.map(|()| true)?),
                }
            }
        }
        if known {
            take(MAIN);
        }
        Ok(known)
    }

    /// Reads the text of the table, one rule a line.
    fn read(&mut self, text: &str) -> Result<(), Wrong> {
        // Addresses that others stand for, and where that is said.
        let mut aliases = Vec::new();
        for (line, content) in (1..).zip(text.lines()) {
            let column = |part: &str| content[..part.as_ptr() as usize - content.as_ptr() as usize].chars().count() + 1;
            let comment =
                content.split_once('#').filter(|(before, _)| before.is_empty() || before.ends_with([' ', '\t']));
            let rule = comment.map_or(content, |(rule, _)| rule).trim();
            if rule.is_empty() {
                continue;
            }
            let wrong = |part: &str, what: &str| (line, column(part), format!("\"{part}\" {what}"));
            let (name, value) = rule.split_at(rule.find([' ', '\t']).unwrap_or(rule.len()));
            let value = value.trim_start();
            let (word, rest) = value.split_at(value.find([' ', '\t']).unwrap_or(value.len()));
            let rule = match (word, rest.trim_start()) {
                ("reject", "") => Rule::Reject,
                ("discard", "") => Rule::Targets(Vec::new()),
                ("reply", reply) => reply_rule(reply).ok_or_else(|| {
                    wrong(reply, "is no reply such as `452 4.2.2 Mailbox full`, perhaps with `for 3`")
                })?,
                _ => {
                    let target = |target: &str| {
                        let text = target.trim();
                        if text.starts_with(['/', '.']) {
                            return Ok(Target::Destination(text.trim_end_matches('/').to_owned()));
                        }
                        let key = self.key(text).ok_or_else(|| wrong(text, "is neither an address nor a path"))?;
                        aliases.push((key.clone(), wrong(text, "")));
                        Ok(Target::Address(key))
                    };
                    Rule::Targets(value.split(',').map(target).collect::<Result<_, _>>()?)
                }
            };
            let key = self.key(name.trim_end_matches(':')).ok_or_else(|| wrong(name, "is no address"))?;
            if let Some(domain) = split(&key).1.get(1..) {
                self.domains.insert(domain.to_owned());
            }
            if self.rules.insert(key, rule).is_some() {
                return Err(wrong(name, "has a rule already"));
            }
        }
        for (address, (line, column, text)) in aliases {
            let (user, domain) = split(&address);
            let names = [(&*address, None), (user, None), (domain, None)];
            let found = self.look_up(&names, ALIASES_MAX, &mut String::new(), &mut |_, _| Ok(()), &mut |_| {});
            let what = match found {
                Ok(true) if domain.is_empty() || self.serves(&domain[1..]) => continue,
                Err(line) if line == Reply::ALIAS_LOOP.0 => "leads back to itself",
                Err(_) => "is refused",
                Ok(_) => "has no mailbox here, and this server sends nothing on",
            };
            return Err((line, column, text + what));
        }
        Ok(())
    }

    /// An address of the table, as it is looked up: with a domain, without one for any, or a domain alone.
    fn key(&self, text: &str) -> Option<String> {
        let of_all = text.starts_with('@');
        let whole = if of_all { format!("all{text}") } else { text.to_owned() };
        let path = Path::mailbox(&whole, Syntax { strict: false })?;
        let mut key = String::new();
        normalize(&path, &self.own_domain, &mut key);
        let (local_part, domain) = split(&key);
        Some(if of_all { domain } else { path.domain().map_or(local_part, |_| &key) }.to_owned())
    }
}

/// The parts of an address before its last `@` and from there on.
fn split(address: &str) -> (&str, &str) {
    address.split_at(address.rfind('@').unwrap_or(address.len()))
}

/// Writes an address as it is looked up: no quotes, lower case, no dot at its end.
fn normalize(path: &Path<'_>, own_domain: &str, address: &mut String) {
    address.clear();
    address.extend(path.unquoted());
    address.push('@');
    address.push_str(path.domain().unwrap_or(own_domain).trim_end_matches('.'));
    address.make_ascii_lowercase();
}

/// `452 4.2.2 Mailbox full`, perhaps with `for 3`: a code of class 4 or 5, perhaps an enhanced one of the same, a text.
fn reply_rule(text: &str) -> Option<Rule> {
    let counted = text.rsplit_once(" for ").and_then(|(line, times)| Some((line.trim_end(), times.parse().ok()?)));
    let (line, times) = counted.unwrap_or((text, u32::MAX));
    let (code, rest) = line.split_once(' ')?;
    let enhanced = rest.split(' ').next().filter(|word| word.split('.').count() == 3);
    let good = matches!(code.as_bytes(), [b'4' | b'5', b'0'..=b'5', b'0'..=b'9'])
        && enhanced.is_none_or(|enhanced| enhanced.as_bytes().first() == code.as_bytes().first())
        && line.len() <= REPLY_LINE_OCTETS_MAX
        && line.bytes().all(|octet| matches!(octet, b' '..=b'~'));
    good.then(|| Rule::Reply(line.to_owned(), Cell::new(times)))
}

/// Gives a destination to `take`, or its folder for the tag where it has one (Maildir++: `.tag`).
fn take_with_folder(
    destination: &mut String,
    tag: Option<&str>,
    create: bool,
    exists: Exists<'_>,
    take: &mut dyn FnMut(&str),
) -> Result<(), Reply> {
    let octets = destination.len();
    if let Some(tag) = tag {
        destination.push_str(if destination.contains("//") { "/." } else { "//." });
        if encode(tag, destination) && exists(destination, false).is_ok() {
            take(destination);
            return Ok(());
        }
        destination.truncate(octets);
    }
    exists(destination, create)?;
    take(destination);
    Ok(())
}

/// Writes what may be any text as the name of a file; false where it is empty, or too long for one.
fn encode(text: &str, name: &mut String) -> bool {
    let before = name.len();
    for octet in text.bytes() {
        match octet {
            b'a'..=b'z' | b'0'..=b'9' | b'_' | b'+' | b'=' | b'~' | b'-' => name.push(char::from(octet)),
            b'.' if name.len() > before => name.push('.'),
            _ => drop(write!(name, "%{octet:02X}")),
        }
    }
    (1..=NAME_OCTETS_MAX).contains(&(name.len() - before))
}
