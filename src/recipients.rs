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

/// What the table says of an address.
#[derive(Debug)]
enum Rule {
    /// It has these destinations, none for mail that is dropped.
    Destinations(Vec<String>),
    Reject,
    /// It is answered with this line, so many times more; then as if the rule were not there.
    Reply(String, Cell<u32>),
}

/// All that is known of recipients. Looking one up allocates nothing, and takes as long in a large table as in a small one.
#[derive(Debug, Default)]
pub struct Recipients {
    /// Those served, in lower case; none for all.
    domains: HashSet<String>,
    /// `.example.org` for all domains below it.
    suffixes: Vec<String>,
    /// Whose a recipient without a domain is.
    own_domain: String,
    rules: HashMap<String, Rule>,
    /// There is a table, so who is not in it has no mailbox.
    listed: bool,
    /// Mailboxes are below a directory; in one directory for each domain unless there is only one.
    mailboxes: bool,
    one_domain: bool,
    create: bool,
    delimiter: Option<char>,
    /// Memory for looking up: the address, it without its tag, a destination, its folder for the tag.
    address: String,
    untagged: String,
    destination: String,
    folder: String,
}

/// Whether a Maildir is there: asked with a destination, and whether it may be made.
pub type Exists<'a> = &'a mut dyn FnMut(&str, bool) -> Result<(), Reply>;

impl Recipients {
    /// Reads what `config` says, and the table that it names.
    ///
    /// # Errors
    /// What is wrong in the table, as `file:line:column: what`, or that it can't be read.
    pub fn load(config: &Config) -> Result<Self, String> {
        let mut recipients = Self {
            own_domain: config.protocol.hostname.to_ascii_lowercase(),
            listed: config.recipients.is_some(),
            mailboxes: config.mailboxes.is_some(),
            create: config.create_mailboxes,
            delimiter: config.subaddress_delimiter,
            ..Self::default()
        };
        for domain in config.domains.iter().map(|domain| domain.trim_end_matches('.').to_ascii_lowercase()) {
            match domain.strip_prefix('*') {
                Some(suffix) => recipients.suffixes.push(suffix.to_owned()),
                None => drop(recipients.domains.insert(domain)),
            }
        }
        if let Some(domain) = config.domains.first().filter(|domain| !domain.starts_with('*')) {
            recipients.own_domain = domain.trim_end_matches('.').to_ascii_lowercase();
            recipients.one_domain = config.domains.len() == 1;
        }
        if let Some(file) = &config.recipients {
            let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
            let wrong = |(line, column, what): Wrong| format!("{}:{line}:{column}: {what}", file.display());
            recipients.read_table(&text).map_err(wrong)?;
        }
        Ok(recipients)
    }

    /// Finds the destinations of a recipient and gives them to `take`, none for mail that is dropped.
    ///
    /// # Errors
    /// 550 5.7.1 where its domain is not served, 550 5.1.1 where it has no mailbox, what the table says, or what `exists`
    /// says of its mailbox.
    pub fn resolve(&mut self, path: &Path<'_>, exists: Exists<'_>, take: &mut dyn FnMut(&str)) -> Result<(), &str> {
        let serves_all = self.serves_all();
        let Self { address, untagged, destination, folder, rules, .. } = self;
        normalize(path, &self.own_domain, address);
        let (local_part, domain) = address.split_at(address.rfind('@').unwrap_or(0));
        // Ways of old to have mail sent on, in which the local part is the true address.
        let routed = local_part.contains(['@', '%', '!']) && !rules.contains_key(address.as_str());
        let served = path.domain().is_none() || serves(&self.domains, &self.suffixes, &domain[1..]);
        if !serves_all && (routed || !served) {
            return Err(Reply::RELAYING_DENIED.into());
        }
        // `user+tag` is `user` where it is not known by its whole name.
        let split = self.delimiter.and_then(|delimiter| local_part.split_once(delimiter));
        let (user, tag) = match split.filter(|(user, _)| !user.is_empty()) {
            Some((user, tag)) => (user, Some(tag)),
            None => (local_part, None),
        };
        untagged.clear();
        untagged.extend([user, domain]);
        let names: [(&str, Option<&str>); 5] =
            [(address, None), (untagged, tag), (local_part, None), (user, tag), (domain, None)];
        let mut unlisted = !self.listed && !self.mailboxes;
        for (name, tag) in names {
            match rules.get(name) {
                None => {}
                Some(Rule::Reject) => return Err(Reply::NO_SUCH_MAILBOX.into()),
                Some(Rule::Reply(_, left)) if left.get() == 0 => unlisted = true,
                Some(Rule::Reply(line, left)) => {
                    left.set(left.get() - u32::from(left.get() != u32::MAX));
                    return Err(line);
                }
                Some(Rule::Destinations(destinations)) => {
                    let tag = tag.filter(|_| destinations.len() == 1);
                    for destination in destinations {
                        take_with_folder(destination, tag, self.create, folder, exists, take)?;
                    }
                    return Ok(());
                }
            }
        }
        if self.mailboxes {
            let parent = if self.one_domain { "" } else { &domain[1..] };
            if tag.is_some() && mailbox(parent, local_part, destination) && exists(destination, false).is_ok() {
                take(destination);
                return Ok(());
            }
            if mailbox(parent, user, destination) {
                match take_with_folder(destination, tag, self.create, folder, exists, take) {
                    Err(Reply::NO_SUCH_MAILBOX) => {}
                    taken => return Ok(taken?),
                }
            }
        }
        // Somebody always answers for this server (RFC 5321 4.5.1).
        if !unlisted && user != "postmaster" {
            return Err(Reply::NO_SUCH_MAILBOX.into());
        }
        take(MAIN);
        Ok(())
    }

    fn serves_all(&self) -> bool {
        self.domains.is_empty() && self.suffixes.is_empty()
    }

    /// Reads the table, one rule a line.
    fn read_table(&mut self, text: &str) -> Result<(), Wrong> {
        // Addresses that stand for others, with what each stands for and where that is said.
        let mut aliases: HashMap<String, Vec<Target>> = HashMap::new();
        for (line, content) in (1..).zip(text.lines()) {
            let column = |part: &str| content[..part.as_ptr() as usize - content.as_ptr() as usize].chars().count() + 1;
            let rule = content.split_once('#').filter(|(before, _)| before.ends_with([' ', '\t']) || before.is_empty());
            let rule = rule.map_or(content, |(rule, _)| rule).trim();
            if rule.is_empty() {
                continue;
            }
            let (name, value) =
                rule.split_once([' ', '\t']).ok_or((line, column(rule), "an address alone".to_owned()))?;
            let value = value.trim_start();
            let key = key(name.trim_end_matches(':'), &self.own_domain);
            let key = key.ok_or_else(|| (line, column(name), format!("\"{name}\" is no address")))?;
            if self.rules.contains_key(&key) || aliases.contains_key(&key) {
                return Err((line, column(name), format!("{name} has a rule already")));
            }
            if let Some((_, domain)) = key.rsplit_once('@') {
                self.domains.insert(domain.to_owned());
            }
            let (word, rest) = value.split_at(value.find([' ', '\t']).unwrap_or(value.len()));
            match (word, rest.trim_start()) {
                ("reject", "") => drop(self.rules.insert(key, Rule::Reject)),
                ("discard", "") => drop(self.rules.insert(key, Rule::Destinations(Vec::new()))),
                ("reply", reply) => {
                    let rule = reply_rule(reply).ok_or_else(|| {
                        (line, column(reply), "a reply is as `452 4.2.2 Mailbox full`, perhaps with `for 3`".to_owned())
                    })?;
                    self.rules.insert(key, rule);
                }
                _ => {
                    let targets = value.split(',').map(|target| {
                        let text = target.trim();
                        (text.to_owned(), line, column(text))
                    });
                    aliases.insert(key, targets.collect());
                }
            }
        }
        for name in aliases.keys() {
            let mut destinations = Vec::new();
            self.flatten(name, &aliases, &mut Vec::new(), &mut destinations)?;
            self.rules.insert(name.clone(), Rule::Destinations(destinations));
        }
        Ok(())
    }

    /// Gathers the destinations of an alias, also by way of others.
    fn flatten<'a>(
        &self,
        name: &'a str,
        aliases: &'a HashMap<String, Vec<Target>>,
        way: &mut Vec<&'a str>,
        destinations: &mut Vec<String>,
    ) -> Result<(), Wrong> {
        way.push(name);
        for (text, line, column) in aliases.get(name).into_iter().flatten() {
            let wrong = |what: &str| Err((*line, *column, format!("\"{text}\" {what}")));
            let mut found = Vec::new();
            if text.starts_with(['/', '.']) {
                found.push(text.trim_end_matches('/').to_owned());
            } else {
                let Some(key) = key(text, &self.own_domain) else { return wrong("is neither an address nor a path") };
                let (user, domain) = key.rfind('@').map_or((&key[..], ""), |at| key.split_at(at));
                let known = |name: &&str| aliases.contains_key(*name) || self.rules.contains_key(*name);
                let name = [&key, user, domain].into_iter().find(known).unwrap_or_default();
                match (aliases.get_key_value(name), self.rules.get(name)) {
                    (Some((alias, _)), _) if way.contains(&alias.as_str()) => return wrong("leads back to itself"),
                    (Some((alias, _)), _) => self.flatten(alias, aliases, way, &mut found)?,
                    (None, Some(Rule::Destinations(more))) => found.extend_from_slice(more),
                    (None, Some(_)) => return wrong("is refused"),
                    (None, None) => {
                        let parent = domain.get(1..).unwrap_or(&self.own_domain);
                        let mut destination = String::new();
                        let parent = if self.one_domain { "" } else { parent };
                        let served = domain.is_empty() || serves(&self.domains, &self.suffixes, &domain[1..]);
                        if !served || !self.mailboxes || !mailbox(parent, user, &mut destination) {
                            return wrong("has no mailbox here, and this server sends nothing on");
                        }
                        found.push(destination);
                    }
                }
            }
            found.retain(|destination| !destinations.contains(destination));
            destinations.append(&mut found);
        }
        way.pop();
        Ok(())
    }
}

/// A line and a column of the table, and what is wrong there.
type Wrong = (usize, usize, String);

/// What an alias stands for, and the line and column that say so.
type Target = (String, usize, usize);

fn serves(domains: &HashSet<String>, suffixes: &[String], domain: &str) -> bool {
    domains.contains(domain) || suffixes.iter().any(|suffix| domain.ends_with(suffix.as_str()))
}

/// Writes an address as it is looked up: no quotes, lower case, no dot at its end.
fn normalize(path: &Path<'_>, own_domain: &str, address: &mut String) {
    address.clear();
    address.extend(path.unquoted());
    address.push('@');
    address.push_str(path.domain().unwrap_or(own_domain).trim_end_matches('.'));
    address.make_ascii_lowercase();
}

/// An address of the table, as it is looked up: with a domain, without one for any, or a domain alone.
fn key(text: &str, own_domain: &str) -> Option<String> {
    let mut key = String::new();
    if text.starts_with('@') {
        let path = format!("any{text}");
        normalize(&Path::mailbox(&path, Syntax { strict: false })?, own_domain, &mut key);
        return key.strip_prefix("any").map(str::to_owned);
    }
    let path = Path::mailbox(text, Syntax { strict: false })?;
    normalize(&path, own_domain, &mut key);
    if path.domain().is_none() {
        key.truncate(key.rfind('@')?);
    }
    Some(key)
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
    destination: &str,
    tag: Option<&str>,
    create: bool,
    folder: &mut String,
    exists: Exists<'_>,
    take: &mut dyn FnMut(&str),
) -> Result<(), Reply> {
    if let Some(tag) = tag {
        folder.clear();
        folder.extend([destination, if destination.contains("//") { "/." } else { "//." }]);
        if encode(tag, folder) && exists(folder, false).is_ok() {
            take(folder);
            return Ok(());
        }
    }
    exists(destination, create)?;
    take(destination);
    Ok(())
}

/// Writes the destination of a mailbox below the directory of mailboxes; false where it can have none.
fn mailbox(domain: &str, user: &str, destination: &mut String) -> bool {
    destination.clear();
    destination.push_str("//");
    let separator = if domain.is_empty() { "" } else { "/" };
    let parent = domain.is_empty() || encode(domain, destination);
    destination.push_str(separator);
    parent && encode(user, destination)
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
