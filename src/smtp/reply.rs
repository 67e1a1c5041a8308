//! The whole vocabulary of the server: every reply it can give, in one list.

/// A reply with a fixed text: the three digits of RFC 5321 4.2.1, the enhanced code of RFC 3463, such as `5.5.1`, and what
/// a person reads. Replies of the class 3yz and those to HELO, EHLO and LHLO bear no enhanced code (RFC 2034 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply(pub &'static str);

/// The enhanced codes are those of RFC 3463, RFC 5248 and RFC 6531 4.3. Those that a session alone says are private.
impl Reply {
    // Syntax of commands.
    pub const UNRECOGNIZED: Self = Self("500 5.5.1 Command unrecognized");
    /// A known verb, but something behind it that no command has: `FROM:` misspelled, control characters, 8 bits.
    pub const SYNTAX_ERROR: Self = Self("501 5.5.2 Syntax error in parameters or arguments");
    pub const BAD_ARGUMENT: Self = Self("501 5.5.4 Argument missing, malformed or not allowed");
    pub const BAD_NAME: Self = Self("501 Host name missing or malformed");
    pub const BAD_CHUNK: Self = Self("501 5.5.4 BDAT takes a number of octets and perhaps LAST");

    // Syntax of addresses and parameters.
    pub const BAD_REVERSE_PATH: Self = Self("501 5.1.7 Sender address malformed or too long");
    pub const BAD_FORWARD_PATH: Self = Self("501 5.1.3 Recipient address malformed or too long");
    pub const UTF8_NOT_ANNOUNCED: Self = Self("553 5.6.7 Addresses beyond ASCII need SMTPUTF8 with MAIL");
    /// A parameter of an extension that isn't served, or a value that can't be (RFC 5321 4.1.1.11).
    pub const PARAMETER_UNKNOWN: Self = Self("555 5.5.4 Parameter or its value not recognized");
    pub const PARAMETER_MALFORMED: Self = Self("501 5.5.4 Parameter malformed or given twice");

    // The order of commands, and a transaction (RFC 5321 4.1.4).
    pub(super) const OK: Self = Self("250 2.0.0 OK");
    pub(super) const START_MAIL_INPUT: Self = Self("354 Enter mail, end with \".\" on a line by itself");
    pub(super) const BAD_SEQUENCE: Self = Self("503 5.5.1 Bad sequence of commands");
    pub(super) const NO_RECIPIENTS: Self = Self("503 5.5.1 No recipients: RCPT comes first");
    pub(super) const NO_VALID_RECIPIENTS: Self = Self("554 5.5.1 No valid recipients");
    pub const NO_SUCH_MAILBOX: Self = Self("550 5.1.1 No such mailbox here");
    pub const ALIAS_LOOP: Self = Self("554 5.4.6 Aliases lead back to themselves");
    /// The domain is another's; or the address names a way to one.
    pub const RELAYING_DENIED: Self = Self("550 5.7.1 Relaying denied");
    /// A mailbox failed while others of the same message did not: the next try reaches those without it.
    pub const MAILBOX_FAILED: Self = Self("452 4.2.0 Mailbox unavailable for a minute");
    /// More recipients than a transaction takes (RFC 5321 4.5.3.1.10): the others are served.
    pub(super) const TOO_MANY_RECIPIENTS: Self = Self("452 4.5.3 Too many recipients");
    pub(super) const TOO_MANY_TRANSACTIONS: Self = Self("452 4.5.3 Too many messages on this connection");
    /// VRFY, which tells nobody who has a mailbox (RFC 5321 3.5.3).
    pub(super) const CANNOT_VERIFY: Self = Self("252 2.5.0 Cannot verify; send some mail, it may be taken");
    pub(super) const NOT_IMPLEMENTED: Self = Self("502 5.5.1 Command not implemented");
    pub(super) const LINE_TOO_LONG: Self = Self("500 5.5.2 Line too long");
    /// A command line that ends in LF alone, which only `--strict` minds (RFC 5321 2.3.8).
    pub(super) const BARE_LINE_FEED: Self = Self("500 5.5.2 Lines end in CRLF");
    pub(super) const HELP: Self = Self(
        "214-2.0.0 HELO EHLO LHLO MAIL RCPT DATA BDAT RSET NOOP QUIT VRFY HELP\r\n\
         214-2.0.0 This server stores mail and relays none.\r\n\
         214 2.0.0 End of HELP",
    );

    // The message.
    pub(super) const MESSAGE_TOO_LARGE: Self = Self("552 5.3.4 Message exceeds the maximum size");
    pub(super) const MAIL_LOOP: Self = Self("554 5.4.6 Too many Received lines: a mail loop");
    /// It has a lone CR or LF, where that is refused (RFC 6531 names no code; 5.6.11 is registered for it).
    pub(super) const BARE_NEWLINE: Self = Self("550 5.6.11 Lone CR or LF in the message; lines end in CRLF");
    pub const STORAGE_FULL: Self = Self("452 4.3.1 Insufficient system storage");
    pub const STORAGE_FAILED: Self = Self("451 4.3.0 Local storage failed; try again later");

    // The end of a session.
    pub const SHUTTING_DOWN: Self = Self("421 4.3.2 Server is shutting down");
    pub const NOT_SERVED: Self = Self("554 5.7.1 Your address is not served here");
    pub(super) const TOO_MANY_ERRORS: Self = Self("421 4.7.0 Too many errors: closing connection");
    pub const TOO_MANY_CONNECTIONS: Self = Self("421 4.3.2 Too many connections; try again later");
    pub const TIMED_OUT: Self = Self("421 4.4.2 Timeout: closing connection");
    /// Octets that may be a message's text came behind a refused DATA: they must not run as commands.
    pub(super) const TEXT_NOT_COMMANDS: Self = Self("421 4.5.0 Message text is no command: closing connection");
    /// The peer did not wait where it has to; only `--strict` minds.
    pub const EARLY_TALK: Self = Self("554 5.5.0 You talked before your turn");
    pub(super) const NOT_HTTP: Self = Self("554 5.5.0 This is a mail server");
    pub(super) const NO_PROXY_HEADER: Self = Self("554 5.5.0 No proxy header expected here");
    pub(super) const NOT_TLS: Self = Self("554 5.5.0 No TLS here");

    // Logins (RFC 4954). The challenges, `Username:` and `Password:`, are compared octet by octet by some devices.
    pub(super) const CHALLENGE_EMPTY: Self = Self("334 ");
    pub(super) const CHALLENGE_USER_NAME: Self = Self("334 VXNlcm5hbWU6");
    pub(super) const CHALLENGE_PASSWORD: Self = Self("334 UGFzc3dvcmQ6");
    pub(super) const LOGIN_ACCEPTED: Self = Self("235 2.7.0 Authentication successful");
    pub(super) const LOGIN_CANCELLED: Self = Self("501 5.7.0 Authentication cancelled");
    pub(super) const LOGIN_MALFORMED: Self = Self("501 5.5.2 Response is not base64");
    pub(super) const MECHANISM_UNKNOWN: Self = Self("504 5.5.4 Authentication mechanism not offered");

    /// Appends the reply with its CRLF.
    pub fn write(self, replies: &mut Vec<u8>) {
        append(replies, &[self.0, "\r\n"]);
    }
}

pub(super) fn refuse_if(condition: bool, reply: Reply) -> Result<(), Reply> {
    if condition { Err(reply) } else { Ok(()) }
}

/// Appends texts one behind the other, at a fraction of the cost of `write!`: each message has dozens.
#[inline(never)]
pub(super) fn append(octets: &mut Vec<u8>, texts: &[&str]) {
    texts.iter().for_each(|text| octets.extend_from_slice(text.as_bytes()));
}
