//! Clients, each with its own behaviour and its own random numbers, so that what one does depends on no other.

use super::book::{Book, USERS, Verdict};
use super::model::hand::Random;
use super::socket::{Leaving, Pipe};
use super::text::{Manner, Text};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

/// How many commands are sent before their replies are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Groups {
    One,
    /// As RFC 2920 has it: MAIL to DATA, then the text.
    Transaction,
    /// Everything that needs no reply first: whole messages in chunks, one behind the other, and QUIT.
    All,
}

/// How octets arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    Burst,
    Pieces(usize),
    Single,
}

/// How replies are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    All,
    Few(usize),
    Never,
}

/// How it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Quits,
    /// Sends QUIT and goes without waiting for the answer.
    QuitsAndCloses,
    /// Closes its side behind QUIT and reads on.
    QuitsAndHalves,
    /// Goes when so many octets are sent, in the middle of whatever that is.
    LeavesAt(u64, Leaving),
    /// Goes so many octets after the beginning of the last three of a message's end.
    LeavesAtEnd(u64, Leaving),
    /// After so many octets says nothing any more, and stays.
    SilentAt(u64),
}

#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    pub lmtp: bool,
    /// Lines end in LF: a session without a CR.
    pub line_feeds: bool,
    pub groups: Groups,
    pub pace: Pace,
    pub reads: Reads,
    pub fate: Fate,
    /// Sends what no client sends, and minds no reply.
    pub garbage: bool,
    /// Takes longer than the server has patience.
    pub too_slow: bool,
    /// Milliseconds between replies and the next commands, at most, and between octets or pieces.
    pub thinks: u64,
    pub rests: u64,
    pub messages: usize,
    /// Messages have up to so many octets.
    pub octets_max: usize,
}

impl Behaviour {
    /// Whether the server owes it everything.
    pub fn is_good(&self) -> bool {
        let stays = matches!(self.fate, Fate::Quits | Fate::QuitsAndHalves);
        stays && !self.garbage && !self.too_slow && self.reads != Reads::Never
    }

    pub fn draw(random: &mut Random, good: bool, timeout: Duration) -> Self {
        let one_of = |random: &mut Random, count| random.below(count) == 0;
        let pace = match random.below(8) {
            0 => Pace::Single,
            1..4 => Pace::Pieces(1 + random.below_one_of(&[3, 100, 5000])),
            _ => Pace::Burst,
        };
        let groups = random.choose(&[Groups::One, Groups::Transaction, Groups::All]);
        let small = pace == Pace::Single || matches!(pace, Pace::Pieces(most) if most < 50);
        let mut it = Self {
            lmtp: one_of(random, 4),
            line_feeds: one_of(random, 8),
            groups,
            pace,
            reads: if one_of(random, 6) { Reads::Few(20 + random.below(100)) } else { Reads::All },
            fate: if one_of(random, 4) { Fate::QuitsAndHalves } else { Fate::Quits },
            garbage: false,
            too_slow: false,
            thinks: random.choose(&[0, 0, 1, 1, 30, 30, 30, timeout.as_millis() as u64 * 7 / 10]),
            rests: random.choose(&[0, 1, 3]),
            messages: 1 + random.below(4),
            octets_max: if small { 400 } else { random.choose(&[0, 300, 5000, 70_000, 300_000]) },
        };
        if good {
            return it;
        }
        let leaving = random.choose(&[Leaving::Halves, Leaving::Closes, Leaving::Resets, Leaving::Resets]);
        let at = random.below_one_of(&[60, 400, 3000, 200_000]) as u64;
        match random.below(12) {
            0 => it.fate = Fate::QuitsAndCloses,
            1..4 => it.fate = Fate::LeavesAt(at, leaving),
            4..7 => it.fate = Fate::LeavesAtEnd(random.below(5) as u64, leaving),
            7 => it.fate = Fate::SilentAt(at),
            8 => {
                // One that neither speaks nor reads, or speaks without reading.
                it.reads = Reads::Never;
                it.groups = Groups::All;
                it.garbage = one_of(random, 2);
            }
            9 => it.garbage = true,
            // An octet now and then, for longer than anybody may take for a line.
            10 => {
                (it.pace, it.octets_max, it.too_slow) = (Pace::Single, 40, true);
                it.rests = timeout.as_millis() as u64 * (1 + random.below(15) as u64) / 10;
            }
            // Nobody is thinking for so long.
            _ => (it.thinks, it.too_slow) = (timeout.as_millis() as u64 * 2, true),
        }
        it
    }
}

/// What a reply is the answer to.
#[derive(Clone, Copy, Debug)]
enum Question {
    Greeting,
    Hello,
    Mail,
    Recipient(usize),
    Data,
    Chunk,
    End,
    Other,
    Quit,
}

/// How far the dialogue is: what comes next when all is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Greeting,
    /// Between two messages.
    Next,
    Recipients(usize),
    /// DATA was sent.
    Text,
    Chunks(usize),
    /// A message is sent, or given up.
    Verdict,
    Over,
}

/// A message that is still to be sent.
struct Letter {
    text: Text,
    users: Vec<&'static str>,
    /// Octets of each chunk; by DATA where there are none.
    chunks: Vec<usize>,
    tries: usize,
    /// Octets of another message that is begun before it and taken back.
    taken_back: Option<usize>,
    /// The reply to it, where nothing goes wrong.
    expected: &'static str,
}

/// What messages in a world are like.
pub struct Letters {
    /// Some have a lone CR or LF, and whether such are refused.
    pub dirty: bool,
    pub reject: bool,
    pub timeout: Duration,
    /// Octets of the largest that is taken.
    pub octets_max: usize,
}

pub struct Client {
    pub number: usize,
    pub behaviour: Behaviour,
    pub pipe: Rc<RefCell<Pipe>>,
    /// What it says depends on the first alone, and when on the second.
    random: Random,
    pacing: Random,
    stage: Stage,
    letters: VecDeque<Letter>,
    attempt: usize,
    questions: VecDeque<(Question, usize, u64)>,
    /// Replies that the end of the message under way has still to get, under LMTP.
    ends_answered: usize,
    mail_taken: bool,
    data_taken: bool,
    /// A reply that has not all come.
    heard: String,
    queued: u64,
    arrived: u64,
    /// What it was told, but for ids and dates.
    pub transcript: Vec<String>,
    pub wake: Option<Duration>,
    /// It is gone, or the server closed.
    pub is_over: bool,
    pub has_left: bool,
    /// When it has thought enough, and how much longer it waits before it tries again.
    next_at: Duration,
    pause: Duration,
    tries_again: Duration,
    /// Octets of garbage.
    babbles: u64,
    /// When it began what is not all sent yet, and how many commands that is.
    begun: (Duration, u32),
    /// No transaction is open.
    is_clean: bool,
    /// Why it may have been closed on: the last reply was 421.
    pub dismissed: Option<String>,
    pub quit_answered: bool,
    pub violations: Vec<String>,
    leaves_at: Option<(u64, Option<Leaving>)>,
}

impl Client {
    pub fn new(
        number: usize, behaviour: Behaviour, mut random: Random, world: &Letters, pipe: Rc<RefCell<Pipe>>,
    ) -> Self {
        let mut letters = VecDeque::new();
        for _ in 0..if behaviour.garbage { 0 } else { behaviour.messages } {
            letters.push_back(Letter::draw(&mut random, &behaviour, world));
        }
        let leaves_at = match behaviour.fate {
            Fate::LeavesAt(octets, leaving) => Some((octets, Some(leaving))),
            Fate::SilentAt(octets) => Some((octets, None)),
            _ => None,
        };
        Self {
            number,
            behaviour,
            pipe,
            pacing: Random::new(random.below(1 << 30) as u64),
            random,
            stage: Stage::Greeting,
            letters,
            attempt: usize::MAX,
            questions: [(Question::Greeting, usize::MAX, 0)].into(),
            ends_answered: 0,
            mail_taken: false,
            data_taken: false,
            heard: String::new(),
            queued: 0,
            arrived: 0,
            transcript: Vec::new(),
            wake: Some(Duration::ZERO),
            is_over: false,
            has_left: false,
            next_at: Duration::ZERO,
            pause: Duration::ZERO,
            tries_again: world.timeout / 5,
            babbles: if behaviour.pace == Pace::Burst { 400_000 } else { 0 },
            is_clean: true,
            begun: (Duration::ZERO, 1),
            dismissed: None,
            quit_answered: false,
            violations: Vec::new(),
            leaves_at,
        }
    }

    /// The octets that the server must have read to owe an answer now.
    pub fn owed_at(&self) -> Option<u64> {
        self.questions.front().map(|(.., octets)| *octets)
    }

    /// Whether the end of a message was sent that is not answered.
    pub fn awaits_end(&self) -> bool {
        self.questions.iter().any(|(question, ..)| matches!(question, Question::End))
    }

    /// Whether a line or a text that it has not ended takes longer than each of its commands may, and each octet adds to that;
    /// not before `held_up`, when it was the server that took its time.
    pub fn is_slow(&self, now: Duration, held_up: Duration, patience: Duration, octet: Duration) -> bool {
        let (begun, commands) = self.begun;
        let until = begun.max(held_up) + patience * commands + octet * self.arrived as u32;
        let alone = self.behaviour.groups == Groups::One && !self.behaviour.garbage;
        alone && self.pipe.borrow().in_flight() > 0 && now > until
    }

    pub fn told(&self) -> String {
        format!("client {} at {:?}, {} of {} octets sent", self.number, self.stage, self.arrived, self.queued)
    }

    /// Does what is due, and notes when it wants to be asked again.
    pub fn act(&mut self, now: Duration, book: &mut Book) {
        self.wake = None;
        self.pipe.borrow_mut().news = false;
        self.read(book);
        if !self.has_left && !self.is_over && self.dismissed.is_none() {
            if self.behaviour.garbage {
                self.babble();
            } else if self.may_go_on() {
                if self.next_at <= now {
                    let queued = self.queued;
                    while self.queued == queued && self.pause.is_zero() && self.stage != Stage::Over {
                        self.go_on(book);
                    }
                    self.begun = (now, self.questions.len().max(1) as u32);
                    // Whoever tries again has thought already.
                    let thinks = match self.pause {
                        Duration::ZERO => self.pacing.below(self.behaviour.thinks as usize + 1) as u64,
                        _ => 0,
                    };
                    self.next_at = now + Duration::from_millis(thinks) + std::mem::take(&mut self.pause);
                }
                self.wake = self.may_go_on().then_some(self.next_at.max(now + Duration::from_micros(1)));
            }
            self.arrive();
        }
        let pipe = self.pipe.borrow();
        // Where the server's socket takes no more, the rest comes as soon as it does.
        let stays = !self.has_left && !self.is_over && self.dismissed.is_none();
        let babbles = self.behaviour.garbage && self.queued < self.babbles && pipe.in_flight() == 0;
        let sends = stays && (babbles || pipe.in_flight() > 0 && !pipe.is_choked());
        let reads = pipe.has_replies() && self.behaviour.reads != Reads::Never && !self.is_over;
        if sends || reads {
            let rest = self.pacing.below(self.behaviour.rests as usize * 1000 + 20) as u64;
            let again = now + Duration::from_micros(rest + 1);
            self.wake = Some(self.wake.map_or(again, |wake| wake.min(again)));
        }
    }

    fn may_go_on(&self) -> bool {
        let heard_all = self.questions.is_empty() || self.is_deaf();
        heard_all && self.pipe.borrow().in_flight() == 0 && self.stage != Stage::Over && !self.has_left
    }

    /// Goes on without having heard anything.
    fn is_deaf(&self) -> bool {
        self.behaviour.reads == Reads::Never
    }

    fn arrive(&mut self) {
        let most = match self.behaviour.pace {
            Pace::Burst => usize::MAX,
            Pace::Pieces(most) => 1 + self.pacing.below(most),
            Pace::Single => 1,
        };
        let mut pipe = self.pipe.borrow_mut();
        self.arrived = self.queued - pipe.in_flight() as u64;
        let until = self.leaves_at.map_or(u64::MAX, |(octets, _)| octets);
        let most = most.min(until.saturating_sub(self.arrived).try_into().unwrap_or(usize::MAX));
        // In a turn of the server's nobody is asked how far it may go.
        pipe.burst = self.behaviour.pace == Pace::Burst && self.leaves_at.is_none();
        pipe.arrive(most);
        self.arrived = self.queued - pipe.in_flight() as u64;
        if self.arrived >= until {
            self.has_left = true;
            if let Some((_, Some(leaving))) = self.leaves_at {
                pipe.leave(leaving);
                self.is_over |= leaving != Leaving::Halves;
            }
        } else if self.stage == Stage::Over && pipe.in_flight() == 0 {
            match self.behaviour.fate {
                Fate::QuitsAndCloses => {
                    pipe.leave(Leaving::Closes);
                    (self.has_left, self.is_over) = (true, true);
                }
                Fate::QuitsAndHalves => {
                    pipe.leave(Leaving::Halves);
                    self.has_left = true;
                }
                _ => {}
            }
        }
    }

    fn say(&mut self, octets: &[u8], question: Option<Question>) {
        self.queued += octets.len() as u64;
        self.pipe.borrow_mut().send(octets);
        self.questions.extend(question.map(|question| (question, self.attempt, self.queued)));
    }

    fn command(&mut self, command: &str, question: Question) {
        let end = if self.behaviour.line_feeds { "\n" } else { "\r\n" };
        self.say(format!("{command}{end}").as_bytes(), Some(question));
    }

    /// Has its first message be for these users.
    pub fn write_to(&mut self, users: &[&'static str]) {
        self.letters[0].users = users.to_vec();
    }

    /// The last message that it began.
    pub fn last_attempt(&self) -> usize {
        self.attempt
    }

    /// All is answered: sends what comes next.
    fn go_on(&mut self, book: &mut Book) {
        match self.stage {
            Stage::Greeting => {
                let hello = match (self.behaviour.lmtp, self.random.below(4)) {
                    (true, _) => "LHLO",
                    (false, 0) => "HELO",
                    (false, _) => "EHLO",
                };
                self.command(&format!("{hello} c{}.example", self.number), Question::Hello);
                self.stage = Stage::Next;
            }
            Stage::Next if self.behaviour.groups == Groups::All => {
                while !self.letters.is_empty() {
                    self.begin(book);
                    (0..self.letters[0].users.len()).for_each(|index| self.recipient(index, book));
                    (0..self.letters[0].chunks.len()).for_each(|index| self.chunk(index, book));
                    self.letters.pop_front();
                }
                self.quit();
            }
            Stage::Next if self.letters.is_empty() => self.quit(),
            Stage::Next => {
                self.begin(book);
                if self.behaviour.groups == Groups::One {
                    self.stage = Stage::Recipients(0);
                    return;
                }
                (0..self.letters[0].users.len()).for_each(|index| self.recipient(index, book));
                if self.letters[0].chunks.is_empty() {
                    self.command("DATA", Question::Data);
                    self.stage = Stage::Text;
                } else {
                    (0..self.letters[0].chunks.len()).for_each(|index| self.chunk(index, book));
                    self.stage = Stage::Verdict;
                }
            }
            Stage::Recipients(_) if !self.mail_taken => self.give_up(),
            Stage::Recipients(count) if count < self.letters[0].users.len() => {
                self.recipient(count, book);
                self.stage = Stage::Recipients(count + 1);
            }
            Stage::Recipients(_) if book.taken(self.attempt) == 0 => self.give_up(),
            Stage::Recipients(_) if self.letters[0].chunks.is_empty() => {
                self.command("DATA", Question::Data);
                self.stage = Stage::Text;
            }
            Stage::Recipients(_) => {
                self.stage = Stage::Chunks(0);
                self.go_on(book);
            }
            Stage::Chunks(index) => {
                self.chunk(index, book);
                let more = index + 1 < self.letters[0].chunks.len();
                self.stage = if more { Stage::Chunks(index + 1) } else { Stage::Verdict };
            }
            Stage::Text if !self.data_taken => self.give_up(),
            Stage::Text => {
                let mut octets = self.letters[0].text.wire.clone();
                octets.extend(if self.behaviour.line_feeds { &b".\n"[..] } else { b".\r\n" });
                self.say(&octets, Some(Question::End));
                self.note_end(book);
                self.stage = Stage::Verdict;
            }
            Stage::Verdict => {
                let failed = !self.mail_taken
                    || book.attempts[self.attempt].recipients.iter().any(|it| it.verdict == Some(Verdict::Failed));
                if failed && self.letters[0].tries < 3 {
                    self.letters[0].tries += 1;
                    self.pause = self.tries_again;
                } else {
                    self.letters.pop_front();
                }
                self.stage = Stage::Next;
            }
            Stage::Over => {}
        }
    }

    fn quit(&mut self) {
        self.command("QUIT", Question::Quit);
        self.stage = Stage::Over;
    }

    /// Takes a transaction back of which nothing can come.
    fn give_up(&mut self) {
        self.command("RSET", Question::Other);
        self.is_clean = true;
        self.stage = Stage::Verdict;
    }

    /// A new transaction for the first letter, up to MAIL, perhaps behind others that come to nothing.
    fn begin(&mut self, book: &mut Book) {
        if !self.is_clean || self.random.below(6) == 0 {
            self.command("RSET", Question::Other);
        }
        if self.random.below(6) == 0 {
            let idle = ["NOOP", "VRFY a", "HELP", "BOGUS", "RCPT TO:<a@example>", "MAIL FRM:<a@example>"];
            let idle = self.random.choose(&idle);
            self.command(idle, Question::Other);
        }
        if let Some(octets) = self.letters[0].taken_back.take() {
            self.attempt = book.begin(self.behaviour.lmtp, b"taken back".to_vec(), "250", &self.letters[0].users);
            self.command(&format!("MAIL FROM:<{}>", Book::sender(self.attempt)), Question::Mail);
            (0..self.letters[0].users.len()).for_each(|index| self.recipient(index, book));
            if octets > 0 {
                let end = if self.behaviour.line_feeds { "\n" } else { "\r\n" };
                let line = format!("taken back{end}");
                let text = line.repeat(octets / line.len() + 1);
                self.say(format!("BDAT {}{end}{text}", text.len()).as_bytes(), Some(Question::Chunk));
            }
            self.command("RSET", Question::Other);
        }
        let letter = &self.letters[0];
        self.attempt = book.begin(self.behaviour.lmtp, letter.text.stored.clone(), letter.expected, &letter.users);
        let size = if self.random.below(3) == 0 { format!(" SIZE={}", letter.text.size) } else { String::new() };
        let size = if letter.expected == "552" { "" } else { &size };
        self.command(&format!("MAIL FROM:<{}>{size}", Book::sender(self.attempt)), Question::Mail);
        (self.is_clean, self.ends_answered) = (false, 0);
    }

    fn recipient(&mut self, index: usize, book: &mut Book) {
        let user = self.letters[0].users[index];
        book.attempts[self.attempt].recipients[index].tables[book.table] = true;
        self.command(&format!("RCPT TO:<{user}@example>"), Question::Recipient(index));
    }

    fn chunk(&mut self, index: usize, book: &mut Book) {
        let letter = &self.letters[0];
        let start: usize = letter.chunks[..index].iter().sum();
        let last = index + 1 == letter.chunks.len();
        let text = &letter.text.wire[start..start + letter.chunks[index]];
        let end = if self.behaviour.line_feeds { "\n" } else { "\r\n" };
        let mut octets = format!("BDAT {}{}{end}", text.len(), if last { " LAST" } else { "" }).into_bytes();
        octets.extend(text);
        self.say(&octets, Some(if last { Question::End } else { Question::Chunk }));
        if last {
            self.note_end(book);
        }
    }

    fn note_end(&mut self, book: &mut Book) {
        book.attempts[self.attempt].end = Some((Rc::clone(&self.pipe), self.queued));
        if let (Fate::LeavesAtEnd(behind, leaving), true) = (self.behaviour.fate, self.leaves_at.is_none()) {
            if self.letters.len() == 1 || self.random.below(2) == 0 {
                self.leaves_at = Some(((self.queued + behind).saturating_sub(3), Some(leaving)));
            }
        }
    }

    /// What makes no sense, and no message.
    fn babble(&mut self) {
        if self.pipe.borrow().in_flight() > 0 || self.queued > self.babbles || self.random.below(12) == 0 {
            return;
        }
        let octets: Vec<u8> =
            match self.random.below(9) {
                0 => b"EHLO garbage.example\r\nMAIL FROM:<>\r\n".to_vec(),
                1 => (0..self.random.below(3000)).map(|_| self.random.below(256) as u8).collect(),
                2 => vec![b'x'; self.random.below(100_000)],
                3 => b"DATA\r\nSubject: no\r\n\r\n.\r\n".to_vec(),
                4 => format!("BDAT {}\r\n{}", self.random.below(90_000), "y".repeat(self.random.below(90_000)))
                    .into_bytes(),
                5 => [&b"\x16\x03\x01"[..], b"GET / HTTP/1.1\r\n", b"\r\n\r\n", b"BDAT x\r\n"][self.random.below(4)]
                    .to_vec(),
                6 => b"BOGUS\r\n".repeat(1 + self.random.below(40)),
                7 => b"HELP\r\n".repeat(1 + self.random.below_one_of(&[200, 20_000])),
                _ => format!("MAIL FROM:<{}@x>\r\n", "z".repeat(self.random.below(3000))).into_bytes(),
            };
        self.say(&octets, None);
        self.questions.clear();
    }

    fn read(&mut self, book: &mut Book) {
        let most = match self.behaviour.reads {
            Reads::All => usize::MAX,
            Reads::Few(most) => most,
            Reads::Never => return self.look_for_end(),
        };
        if self.is_over {
            return;
        }
        let octets = self.pipe.borrow_mut().receive(most);
        let Some(octets) = octets else { return self.is_over = true };
        self.heard.push_str(&String::from_utf8_lossy(&octets));
        while let Some(end) = self.heard.find("\r\n") {
            let line: String = self.heard.drain(..end + 2).collect();
            if line.as_bytes().get(3) == Some(&b' ') {
                self.answered(line.trim_end(), book);
            }
        }
    }

    /// Who reads nothing finds out that the connection has ended when it writes.
    fn look_for_end(&mut self) {
        self.is_over |= self.pipe.borrow().dropped;
    }

    fn answered(&mut self, line: &str, book: &mut Book) {
        if self.behaviour.garbage {
            return;
        }
        self.transcript.push(mask(line));
        let code = &line[..3];
        if let Some(before) = &self.dismissed {
            return self.violations.push(format!("heard {line:?} behind {before:?}"));
        }
        if code == "421" {
            self.dismissed = Some(line.to_owned());
            return self.questions.clear();
        }
        let Some((question, attempt, _)) = self.questions.pop_front() else {
            return self.violations.push(format!("heard {line:?}, and had asked nothing"));
        };
        let good = match question {
            Question::Greeting => code == "220",
            Question::Hello => code == "250",
            Question::Other => matches!(code.as_bytes()[0], b'2' | b'5'),
            Question::Quit => {
                self.quit_answered = true;
                code == "221"
            }
            Question::Mail => {
                self.mail_taken = code == "250";
                code == "250" || book.faulty && matches!(code, "451" | "452")
            }
            Question::Data => {
                self.data_taken = code == "354";
                let to_nobody = book.taken(attempt) == 0;
                code == "354" || to_nobody && matches!(code, "503" | "554")
            }
            Question::Chunk => {
                let it = &book.attempts[attempt];
                code == "250" || code == it.expected || book.taken(attempt) == 0 && matches!(code, "503" | "554")
            }
            Question::Recipient(index) => book.note_recipient(attempt, index, code),
            Question::End => {
                let taken = book.taken(attempt);
                self.is_clean = code != "503";
                let good = match taken {
                    0 => matches!(code, "503" | "554"),
                    _ => book.note_end(attempt, self.ends_answered, line),
                };
                self.ends_answered += 1;
                if self.behaviour.lmtp && self.ends_answered < taken {
                    self.questions.push_front((question, attempt, 0));
                } else {
                    self.ends_answered = 0;
                }
                good
            }
        };
        if !good {
            self.violations.push(format!("heard {line:?} as the answer to {question:?} of message {attempt}"));
        }
    }
}

impl Letter {
    fn draw(random: &mut Random, behaviour: &Behaviour, world: &Letters) -> Self {
        let count = 1 + if random.below(3) == 0 { random.below(4) } else { 0 };
        let mut users = Vec::new();
        for _ in 0..count {
            let user = USERS[random.below(USERS.len())];
            if !users.contains(&user) {
                users.push(user);
            }
        }
        let stuffed = behaviour.groups != Groups::All && random.below(3) > 0;
        let octets = match random.below(5) {
            0 => 0,
            // About the ends of blocks.
            1 if behaviour.octets_max > 70_000 => random.choose(&[4096, 65_536, 131_072]) - 300 + random.below(400),
            _ => random.below(behaviour.octets_max + 1),
        };
        // Of two reasons to refuse a message the first counts that comes.
        let dirty = world.dirty && random.below(3) == 0 && !(world.reject && octets * 2 > world.octets_max);
        let manner = Manner { stuffed, line_feeds: behaviour.line_feeds, dirty };
        let text = Text::draw(random, octets, manner);
        let mut chunks = Vec::new();
        let mut left = text.wire.len();
        while !stuffed && left > 0 && chunks.len() < 4 && random.below(3) > 0 {
            let chunk = random.below(left + 1);
            chunks.push(chunk);
            left -= chunk;
        }
        if !stuffed {
            chunks.push(left);
        }
        let expected = match (text.size > world.octets_max, text.dirty && world.reject) {
            (true, _) => "552",
            (_, true) => "550",
            _ => "250",
        };
        let taken_back =
            (random.below(5) == 0).then(|| random.below_one_of(&[1, 300, 90_000]).min(behaviour.octets_max));
        Self { text, users, chunks, tries: 0, taken_back, expected }
    }
}

/// A reply without what differs from run to run: ids and dates.
fn mask(line: &str) -> String {
    match line.split_once("ready; ") {
        Some((greeting, _)) => greeting.to_owned(),
        None => match line.strip_prefix("250 2.0.0 M").and_then(|rest| rest.split_once(' ')) {
            Some((_, rest)) => format!("250 2.0.0 ID {rest}"),
            None if line.contains("sender.example") => line[..9].to_owned(),
            None => line.to_owned(),
        },
    }
}
