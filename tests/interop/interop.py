#!/usr/bin/env python3
"""Real mail clients against the real server, and real readers for what it stored.

    tests/interop/interop.py target/release/mailchute [--require-all] [--list] [CASE ...]

Every case starts its own server on a free port with an empty Maildir or with mailboxes, lets a client deliver, and
compares what lies there with what was sent, octet by octet. A client that is not installed is a line
`skipped: ...`, or a failure with --require-all or when the environment says CI=true. Python's standard library
is enough.
"""

import argparse
import contextlib
import email.message
import email.policy
import email.utils
import grp
import imaplib
import mailbox
import os
import pathlib
import pty
import pwd
import re
import select
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
import time
import traceback

HOSTNAME = "mx.example"
DOMAIN = "example.org"  # that of mailboxes
PATIENCE_SECONDS = 60  # for one step of a conversation; a whole client run gets five times that
MIB = 1024 * 1024


class Failed(Exception):
    """The server did not do what the case expects."""


class NotInstalled(Exception):
    """The case needs a program that this machine lacks."""


def expect(truth, what):
    if not truth:
        raise Failed(what)


def expect_same(got, wanted, what):
    """Compares two texts and shows the first place where they differ."""
    if got == wanted:
        return
    at = next((i for i, (a, b) in enumerate(zip(got, wanted)) if a != b), min(len(got), len(wanted)))
    near = slice(max(0, at - 20), at + 60)
    raise Failed(
        f"{what}: differs at octet {at} ({len(got)} octets, {len(wanted)} wanted): {got[near]!r}, wanted {wanted[near]!r}"
    )


def ordinary_user():
    """Who we are; where that is root, somebody who is not."""
    return pwd.getpwuid(os.geteuid()).pw_name if os.geteuid() != 0 else "nobody"


def as_user(name):
    """What makes subprocess start a program as a user; nothing where we are that one."""
    if name is None or name == pwd.getpwuid(os.geteuid()).pw_name:
        return {}
    return {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": []}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def show_end(what, log):
    print(f"    the end of {what}:")
    for line in log.splitlines()[-15:]:
        print("    |", line[:300])


def wait_until(truth, seconds, what):
    deadline = time.monotonic() + seconds
    while not truth():
        expect(time.monotonic() < deadline, f"{what}: not within {seconds} s")
        time.sleep(0.05)


# ---------------------------------------------------------------------------------------------------- the server


def host_and_port(address):
    host, port = address.rsplit(":", 1)
    return host, int(port)


class Server:
    """One running server in a temporary directory, with a Maildir there, or with mailboxes for a domain.

    It runs as the user of that name, if one is given.
    """

    binary = None  # set from the command line

    def __init__(self, *options, with_mailboxes=False, user=None):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="interop-"))
        self.directory.chmod(0o755)  # another user's mail server must reach a Unix socket in it
        self.log_path = self.directory / "log"
        self.mailboxes = self.directory / "mailboxes"
        if with_mailboxes:
            self.maildir = self.mailboxes / "postmaster"  # as the README says
            place = ["--mailboxes", str(self.mailboxes), "--domain", DOMAIN]
        else:
            self.maildir = self.directory / "Maildir"
            place = ["--maildir", str(self.maildir)]
        self.command = [self.binary, *place, "--hostname", HOSTNAME, "--listen", "127.0.0.1:0", *options]
        self.identity = as_user(user)
        if self.identity:
            shutil.chown(self.directory, user)
            # Another user may not be let into the directory that it was built in.
            self.command[0] = shutil.copy(self.binary, self.directory)
        self.listeners = self.command.count("--listen") + self.command.count("--lmtp")
        self.process = None

    def start(self):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MAILCHUTE_") and k != "RUST_LOG"}
        with open(self.log_path, "wb") as log:
            how = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "env": environment, **self.identity}
            self.process = subprocess.Popen(self.command, **how)
        wait_until(lambda: len(self.addresses()) >= self.listeners or self.process.poll() is not None, 10, "server start")
        expect(self.process.poll() is None, f"the server ended at start with status {self.process.returncode}")
        self.address, *rest = self.addresses()
        self.lmtp_address = rest[0] if rest else None
        self.host, self.port = host_and_port(self.address)

    def addresses(self):
        """Where it listens, in the order of its options: SMTP first, then LMTP."""
        return re.findall(r"listening on (\S+)", self.log())

    def log(self):
        return self.log_path.read_text(errors="replace")

    def resident_kib(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])

    def names(self, part):
        return sorted(os.listdir(self.maildir / part))

    def stored(self, count, maildir=None):
        """All messages, by the key that their reader uses; exactly `count`, all in new/ and none in tmp/."""
        maildir = maildir or self.maildir
        # What was answered in a burst may still be on its way there from the journal.
        patience = time.monotonic() + 5
        while True:
            tmp, new, cur = (sorted(os.listdir(maildir / part)) for part in ("tmp", "new", "cur"))
            if (len(new) >= count and not tmp) or time.monotonic() > patience:
                break
            time.sleep(0.02)
        expect(len(new) == count, f"{len(new)} files in {maildir.name}/new/, {count} wanted")
        expect(not tmp and not cur, f"files in {maildir.name}/tmp/: {tmp[:3]}, in cur/: {cur[:3]}")
        reader = mailbox.Maildir(maildir, create=False)
        messages = {key: reader.get_bytes(key) for key in reader.keys()}
        expect(len(messages) == count, f"mailbox.Maildir reads {len(messages)} messages, {count} wanted")
        return messages

    def made(self):
        """The mailboxes that there are; beside them may be the journal."""
        return sorted(name for name in os.listdir(self.mailboxes) if not name.startswith(".mailchute-journal."))

    def stop(self):
        """Ends it the polite way: status 0 at once, no trouble in the log, nothing left in tmp/."""
        self.process.send_signal(signal.SIGTERM)
        self.ended()
        left = [str(path) for path in self.directory.glob("**/tmp/*")]
        expect(not left, f"left in tmp/: {left[:3]}")

    def ended(self):
        try:
            status = self.process.wait(10)
        except subprocess.TimeoutExpired:
            raise Failed("the server still runs 10 s after SIGTERM") from None
        expect(status == 0, f"exit status {status} after SIGTERM")
        expect("panicked" not in self.log(), "the log tells of a panic")

    def remove(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.directory)


@contextlib.contextmanager
def running(*options, **how):
    server = Server(*options, **how)
    try:
        server.start()
        yield server
        if server.process.poll() is None:
            server.stop()
    except NotInstalled:
        raise
    except Exception:
        show_end("the server's log", server.log())
        raise
    finally:
        server.remove()


def check_message(messages, key, sender, recipients, text, protocol="ESMTP", reply_id=None):
    """One stored message: our three kinds of header on top, then the text as sent, with LF ends."""
    message = messages[key]
    size = re.search(r",S=(\d+)", key)
    expect(size and int(size[1]) == len(message), f"size in the name {key}: the file has {len(message)} octets")

    top = f"Return-Path: <{sender}>\n" + "".join(f"Delivered-To: {recipient}\n" for recipient in recipients)
    expect_same(message[: len(top.encode())], top.encode(), "first headers")
    trace = re.compile(rb"Received: .*\n(?:[ \t].*\n)*").match(message, len(top.encode()))
    expect(trace, f"no Received header behind them: {message[:300]!r}")
    received = " ".join(trace[0].decode().split())
    form = re.fullmatch(r"Received: from (.+) by (\S+) with (\S+) id ([^\s;]+)(?: for <([^>]+)>)? ?; (.+)", received)
    expect(form, f"form of {received!r}")
    _, by, with_protocol, identifier, for_whom, date = form.groups()
    expect(by == HOSTNAME, f"by {by} in {received!r}")
    expect(with_protocol == protocol, f"with {with_protocol}, {protocol} wanted")
    expect(identifier in key, f"id {identifier} is not in the file's name {key}")
    expect(reply_id in (None, identifier), f"id {identifier} is not that of the reply, {reply_id}")
    expect(for_whom == (recipients[0] if len(recipients) == 1 else None), f"for {for_whom} in {received!r}")
    age = time.time() - email.utils.parsedate_to_datetime(date).timestamp()
    expect(-5 < age < 600, f"date {date!r}")

    expect_same(message[trace.end() :], text.replace(b"\r\n", b"\n"), "text")


def check_one(server, sender, recipients, text, protocol="ESMTP", reply_id=None):
    messages = server.stored(1)
    check_message(messages, next(iter(messages)), sender, recipients, text, protocol, reply_id)


def key_of(messages, identifier):
    keys = [key for key in messages if identifier in key]
    expect(len(keys) == 1, f"files named after {identifier}: {keys}")
    return keys[0]


def accepted_id(reply):
    """The message's id in the last reply, `250 2.0.0 <id> Message accepted for delivery`."""
    match = re.search(r"2\.0\.0 (\S+) Message accepted for delivery", reply)
    expect(match, f"final reply {reply!r}")
    return match[1]


# ---------------------------------------------------------------------------------------------------- the clients


class Dialogue:
    """A person at a raw socket: says a line, reads the reply."""

    def __init__(self, server, line_end=b"\r\n"):
        self.socket = socket.create_connection((server.host, server.port), PATIENCE_SECONDS)
        self.replies = self.socket.makefile("rb")
        self.line_end = line_end
        self.hear(220)

    def hear(self, code):
        reply = b""
        while True:
            line = self.replies.readline()
            expect(line.endswith(b"\r\n"), f"the connection ended; {code} wanted, heard {reply + line!r}")
            reply += line
            if line[3:4] != b"-":
                break
        text = reply.decode()
        expect(text.startswith(str(code)), f"{code} wanted, heard {text!r}")
        return text

    def say(self, line, code):
        self.socket.sendall(line.encode() + self.line_end)
        return self.hear(code)

    def text(self, *lines):
        """Sends the lines and the final dot; returns the text as it should be stored, and the id."""
        body = b"".join(line.encode() + self.line_end for line in lines)
        self.socket.sendall(body + b"." + self.line_end)
        return body.replace(self.line_end, b"\n"), accepted_id(self.hear(250))

    def quit(self):
        self.say("QUIT", 221)
        expect(self.replies.read() == b"", "more after the reply to QUIT")
        self.close()

    def close(self):
        self.replies.close()
        self.socket.close()


def program(name):
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        raise NotInstalled(name)
    return path


def run(name, *arguments, given=None, **how):
    """Runs a client to its end; its exit status must be 0. Returns all that it printed."""
    done = subprocess.run(
        [program(name), *map(str, arguments)],
        input=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=5 * PATIENCE_SECONDS,
        **({"stdin": subprocess.DEVNULL} if given is None else {}),
        **how,
    )
    output = done.stdout.decode(errors="replace")
    expect(done.returncode == 0, f"{name} ended with status {done.returncode}: {output[-600:]}")
    return output


# A message with what trips careless servers: dots at the start of lines, blank lines, tabs, a From line.
TEXT = (
    b"From: c@d.example\r\nTo: a@b.example\r\nDate: Tue, 01 Oct 2024 10:00:00 +0000\r\nSubject: a test\r\n"
    b"Message-ID: <1@d.example>\r\n\r\n"
    b"first\r\n\r\n.leading dot\r\n..\r\n...three\r\n\tand a tab, and blanks at the end   \r\nFrom here on\r\nlast\r\n"
)
SENDER, RECIPIENT = "c@d.example", "a@b.example"


def large_text(octets):
    """A header and lines of 78 octets, none like its neighbours, some with a dot in front."""
    lines = [b"Subject: large\r\n\r\n"]
    size = len(lines[0])
    number = 0
    while size < octets:
        start = b"." if number % 100 == 0 else b" "
        lines.append(start + b"%010d " % number + b"abcdefghijklmnopqrstuvwxyz0123456789" * 2 + b"\r\n")
        size += len(lines[-1])
        number += 1
    return b"".join(lines)


CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


# ------------------------------------------------------------------------------------------- cases: typed by hand


def first_dialogue(line_end):
    with running() as server:
        person = Dialogue(server, line_end)
        person.say("HELO localhost", 250)
        reply = person.say("MAIL FROM: test@testingsmtp.com", 250)
        expect("<test@testingsmtp.com>... Sender ok" in reply, f"reply to MAIL {reply!r}")
        person.say("RCPT TO: richlowe@internet--tips.net", 250)
        person.say("DATA", 354)
        text, identifier = person.text(
            "From: test@testingsmtp.com", "To: richlowe@internet--tips.net", "Subject: test", "", "This is a test.", ""
        )
        person.quit()
        check_one(server, "test@testingsmtp.com", ["richlowe@internet--tips.net"], text, "SMTP", identifier)


@case
def typed_dialogue():
    """Blanks behind the colon and no angle brackets."""
    first_dialogue(b"\r\n")


@case
def lf_session():
    """The same from someone whose lines end in a bare LF."""
    first_dialogue(b"\n")


@case
def typed_two_messages():
    """Several recipients, verbs in any case, and two messages in one session."""
    with running() as server:
        person = Dialogue(server)
        person.say("helo localhost", 250)
        sent = []
        for sender, recipients, words in (
            ("test@testingsmtp.com", ["richlowe@internet--tips.net", "second@b.example", "third@b.example"], "first"),
            ("other@testingsmtp.com", ["richlowe@internet--tips.net"], "second"),
        ):
            person.say(f"mail from:   {sender}  ", 250)
            for recipient in recipients:
                person.say(f"Rcpt To:\t<{recipient}>", 250)
            person.say("data", 354)
            text, identifier = person.text(f"Subject: {words}", "", f"the {words} message")
            sent.append((sender, recipients, text, identifier))
        person.quit()
        messages = server.stored(2)
        for sender, recipients, text, identifier in sent:
            check_message(messages, key_of(messages, identifier), sender, recipients, text, "SMTP", identifier)


# -------------------------------------------------------------------------------------------- cases: mail clients


@case
def swaks():
    with running() as server:
        file = server.directory / "text"
        file.write_bytes(TEXT.removesuffix(b"\r\n").replace(b"\r\n", b"\n"))  # it adds the last line end itself
        said = run("swaks", "--server", server.address, "--from", SENDER, "--to", RECIPIENT, "--data", f"@{file}")
        check_one(server, SENDER, [RECIPIENT], TEXT, reply_id=accepted_id(said))


@case
def swaks_by_default():
    """The shortest command line; swaks makes up the text."""
    with running() as server:
        said = run("swaks", "--server", server.address, "--to", RECIPIENT, "--from", SENDER)
        text = "".join(f"{line[4:]}\n" for line in re.findall(r"^ -> .*", said, re.M))
        text = text.split("DATA\n")[1].split(".\nQUIT\n")[0]
        check_one(server, SENDER, [RECIPIENT], text.encode(), reply_id=accepted_id(said))


def curl_delivers(text, recipients):
    with running() as server:
        file = server.directory / "text"
        file.write_bytes(text)
        asked = [word for recipient in recipients for word in ("--mail-rcpt", recipient)]
        run("curl", "-sS", f"smtp://{server.address}/client.example", "--mail-from", SENDER, *asked, "--upload-file", file)
        check_one(server, SENDER, recipients, text)


@case
def curl():
    curl_delivers(TEXT, [RECIPIENT, "second@b.example"])


@case
def curl_10_mb():
    curl_delivers(large_text(10_000_000), [RECIPIENT])


def smtplib_session(server):
    return smtplib.SMTP(server.host, server.port, "client.example", PATIENCE_SECONDS)


def transaction(client, sender, recipients, text, options=()):
    """One message, taken for all its recipients; returns its id."""
    steps = [client.mail(sender, options)] + [client.rcpt(recipient) for recipient in recipients]
    for code, reply in [*steps, client.data(text)]:
        expect(code == 250, f"{code} {reply}")
    return accepted_id(reply.decode())


def smtplib_delivers(server, text, sender=SENDER, recipients=(RECIPIENT,), options=(), protocol="ESMTP"):
    with smtplib_session(server) as client:
        client.ehlo_or_helo_if_needed()
        for keyword in ("pipelining", "size", "8bitmime", "smtputf8", "enhancedstatuscodes"):
            expect(client.has_extn(keyword), f"EHLO does not list {keyword}: {client.esmtp_features}")
        identifier = transaction(client, sender, recipients, text, options)
        client.quit()
    check_one(server, sender, list(recipients), text, protocol, identifier)


@case
def smtplib_plain():
    with running() as server:
        smtplib_delivers(server, TEXT, recipients=[RECIPIENT, "second@b.example"])


@case
def smtplib_8_bit():
    with running() as server:
        text = b"Subject: octets\r\n\r\n" + bytes(octet for octet in range(256) if octet not in b"\r\n") + b"\r\n"
        smtplib_delivers(server, text, options=["BODY=8BITMIME", f"SIZE={len(text)}"])


@case
def smtplib_smtputf8():
    with running() as server:
        text = "Subject: Grüße\r\n\r\nÄpfel und Öl\r\n".encode()
        who = dict(sender="jürgen@bücher.example", recipients=["用户@例子.example"])
        smtplib_delivers(server, text, options=["SMTPUTF8", "BODY=8BITMIME"], protocol="UTF8SMTP", **who)


@case
def smtplib_null_sender():
    with running() as server:
        smtplib_delivers(server, TEXT, sender="")


@case
def smtplib_dots():
    with running() as server:
        text = b".\r\n..\r\n...\r\n\r\n.\r\n.a\r\n..b\r\na.\r\n. \r\n.\t.\r\n.\r\n"
        smtplib_delivers(server, text)


@case
def smtplib_long_lines():
    with running() as server:
        text = b"".join(b"%d " % octets + b"x" * octets + b"\r\n" for octets in (998, 1000, 4095, 4096, 65536, 1_000_000))
        smtplib_delivers(server, b"Subject: long\r\n\r\n" + text)


@case
def smtplib_sends_a_message():
    """The way most programs use it: send_message with an attachment of 1 MB."""
    with running() as server:
        message = email.message.EmailMessage()
        message["From"], message["To"], message["Subject"] = SENDER, RECIPIENT, "an attachment, Ümlaut"
        message.set_content("see there\n.\n")
        attachment = bytes(range(256)) * 4096
        message.add_attachment(attachment, maintype="application", subtype="octet-stream", filename="data.bin")
        with smtplib_session(server) as client:
            refused = client.send_message(message)
        expect(refused == {}, f"refused {refused}")
        server.stored(1)
        read = mailbox.Maildir(server.maildir, lambda file: email.message_from_binary_file(file, policy=email.policy.default))
        (stored,) = list(read)
        expect(str(stored["Subject"]) == "an attachment, Ümlaut", f"subject {stored['Subject']!r}")
        expect(stored.get_body().get_content() == "see there\n.\n", "the text part")
        expect([part.get_content() for part in stored.iter_attachments()] == [attachment], "the attachment")


@case
def msmtp():
    with running() as server:
        settings = server.directory / "msmtprc"
        settings.write_text(
            f"account default\nhost {server.host}\nport {server.port}\nfrom {SENDER}\ndomain client.example\n"
            "auth off\ntls off\ntimeout 60\n"
        )
        settings.chmod(0o600)
        run("msmtp", "-C", settings, RECIPIENT, "second@b.example", given=TEXT.replace(b"\r\n", b"\n"))
        check_one(server, SENDER, [RECIPIENT, "second@b.example"], TEXT)


@case
def smtp_source():
    """Postfix's load generator: 5,000 messages of 1 KiB from 50 sessions at a time."""
    with running() as server:
        who = ("-f", SENDER, "-t", RECIPIENT, "-M", "client.example", "-S", "load")
        run("smtp-source", "-c", "-s", 50, "-m", 5000, "-l", 1024, *who, server.address)
        lines = [b"%d%s\n" % (number % 10, b"X" * 77) for number in range(1, 13)]
        body = b"".join(lines) + b"X" * (1024 - 12 * 80) + b"\n"
        head = re.compile(rb"From: <c@d.example>\nTo: <a@b.example>\nDate: .*\nMessage-Id: (<.+>)\nSubject: load\n\n")
        seen = set()
        messages = server.stored(5000)
        for key, message in messages.items():
            match = head.search(message)
            expect(match, f"headers in {key}: {message[:600]!r}")
            expect(match[1] not in seen, f"{match[1]} came twice")
            seen.add(match[1])
            check_message(messages, key, SENDER, [RECIPIENT], match[0] + body, "SMTP")


def nc_delivers(line_end):
    """Everything in one write, then end of input: the replies must come all the same."""
    with running() as server:
        words = [b"HELO nc", b"MAIL FROM:<c@d.example>", b"RCPT TO:<a@b.example>", b"DATA", b"Subject: nc", b"", b"..", b"hi", b".", b"QUIT"]
        said = run("nc", "-N", "-w", 20, server.host, server.port, given=line_end.join(words) + line_end)
        codes = re.findall(r"^(\d\d\d) ", said, re.M)
        expect(codes == "220 250 250 250 354 250 221".split(), f"replies {codes}")
        check_one(server, SENDER, [RECIPIENT], b"Subject: nc\n\n.\nhi\n", "SMTP", accepted_id(said))


@case
def nc():
    nc_delivers(b"\r\n")


@case
def nc_lf_session():
    nc_delivers(b"\n")


# ------------------------------------------------------------------------------------------------ cases: readers


@case
def mutt():
    """Mutt opens the Maildir and copies all messages to a file."""
    with running() as server:
        texts = [b"Subject: number %d\r\n\r\ntext %d\r\n..\r\n" % (number, number) for number in range(3)]
        with smtplib_session(server) as client:
            for text in texts:
                client.sendmail(SENDER, RECIPIENT, text)
        wanted = server.stored(3)
        read = mutt_reads(server, server.maildir)
        subjects = [message["Subject"] for message in read]
        expect(subjects == ["number 0", "number 1", "number 2"], f"mutt copied {subjects}")
        for number, message in enumerate(read):
            expect(message.get_payload(decode=True) == b"text %d\n..\n" % number, f"mutt reads {message.get_payload()!r}")
            expect(message["Delivered-To"] == RECIPIENT, f"mutt reads Delivered-To {message['Delivered-To']!r}")
        expect(server.stored(3) == wanted, "reading changed the Maildir")


def mutt_reads(server, maildir):
    """What mutt copies out of a Maildir, by subject."""
    copy = server.directory / f"copy-of-{maildir.name}"
    settings = server.directory / "muttrc"
    settings.write_text(
        "set folder=/nonexistent record='' postponed='' header_cache='' confirmcreate=no confirmappend=no copy=no\n"
        "set mbox_type=mbox wait_key=no sort=mailbox-order timeout=5 quit=yes move=no delete=no check_new=no\n"
        f"push '<tag-pattern>~A<enter><tag-prefix><copy-message>{copy}<enter><quit>'\n"
    )
    present = sum(1 for directory in ("new", "cur") for _ in (maildir / directory).iterdir())
    for attempt in range(3):
        copy.unlink(missing_ok=True)
        shown = on_a_terminal([program("mutt"), "-n", "-F", str(settings), "-R", "-f", str(maildir)])
        expect(copy.exists(), f"mutt copied nothing; it showed {shown[-600:]!r}")
        read = sorted(mailbox.mbox(copy, create=False), key=lambda message: message["Subject"])
        # On a busy machine mutt was seen to act on the first message before it had tagged the others.
        if len(read) == present:
            break
        print(f"    mutt copied {len(read)} of {present}, attempt {attempt + 1}")
    return read


def on_a_terminal(command):
    """Runs a full-screen program to its end, on a terminal that nobody watches."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "vt100"
        os.execv(command[0], command)
    deadline = time.monotonic() + PATIENCE_SECONDS
    shown = b""
    with contextlib.suppress(OSError):  # the terminal goes away with the program
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 1)[0]:
                shown += os.read(terminal, 65536)
    if time.monotonic() >= deadline:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    expect(status == 0, f"{command[0]} ended with status {status}; it showed {shown[-600:]!r}")
    return shown


# ---------------------------------------------------------------------------------------------- cases: mailboxes

OWNERS = ("alice", "bob", "carol")


def deliver_to_three(server):
    """One message for each owner, one for all of them, and one with a blind copy.

    Returns for each owner what is to lie there: the id, those that Delivered-To names, and the text.
    """
    alice, bob, carol = (f"{owner}@{DOMAIN}" for owner in OWNERS)
    tagged = f"Carol+list@{DOMAIN.capitalize()}"
    lying = {owner: [] for owner in OWNERS}
    with smtplib_session(server) as client:
        client.ehlo_or_helo_if_needed()
        for subject, to, recipients, owners in (
            ("1 one", alice, [alice], ["alice"]),
            ("1 one", bob, [bob], ["bob"]),
            ("1 one", carol, [tagged], ["carol"]),
            ("2 all", f"{alice}, {bob}, {carol}", [alice, bob, tagged], OWNERS),
            ("3 blind", alice, [alice, carol], ["alice", "carol"]),
        ):
            text = f"From: {SENDER}\r\nTo: {to}\r\nSubject: {subject}\r\n\r\n..\r\ntext for {to}\r\n\r\nGrüße\r\n".encode()
            identifier = transaction(client, SENDER, recipients, text)
            # A file that several have names nobody.
            named = recipients if len(recipients) == 1 else []
            for owner in owners:
                lying[owner].append((identifier, named, text))
    return lying


def check_three(server, lying):
    """Reads the three mailboxes with Python's `mailbox`; returns their messages by owner."""
    mailboxes = {owner: server.stored(len(lying[owner]), server.mailboxes / owner) for owner in OWNERS}
    links = {}
    for owner, messages in mailboxes.items():
        for identifier, named, text in lying[owner]:
            key = key_of(messages, identifier)
            check_message(messages, key, SENDER, named, text, reply_id=identifier)
            if b"Subject: 3 blind" in text:
                expect(b"carol" not in messages[key], f"the blind copy shows in that of {owner}: {messages[key]!r}")
            status = (server.mailboxes / owner / "new" / key).stat()
            expect(status.st_mode & 0o777 == 0o600, f"mode {status.st_mode:o} of {owner}'s {key}")
            links.setdefault(identifier, []).append((status.st_ino, status.st_nlink))
    for identifier, files in links.items():
        expect(set(files) == {(files[0][0], len(files))}, f"files and links of {identifier}: {files}, which should be one")
    return mailboxes


@case
def mailboxes():
    """Three mailboxes, read by Python."""
    with running("--create-mailboxes", with_mailboxes=True) as server:
        check_three(server, deliver_to_three(server))
        made = server.made()
        expect(made == [*OWNERS, "postmaster"], f"mailboxes {made}")
        server.stored(0)


@case
def mailboxes_in_mutt():
    with running("--create-mailboxes", with_mailboxes=True) as server:
        lying = deliver_to_three(server)
        before = check_three(server, lying)
        for owner in OWNERS:
            read = mutt_reads(server, server.mailboxes / owner)
            wanted = [email.message_from_bytes(text) for _, _, text in lying[owner]]
            subjects = [message["Subject"] for message in read]
            expect(subjects == [message["Subject"] for message in wanted], f"mutt copied {subjects} of {owner}")
            for message, sent, (_, named, _) in zip(read, wanted, lying[owner]):
                same = message.get_payload(decode=True) == sent.get_payload(decode=True).replace(b"\r\n", b"\n")
                expect(same, f"mutt reads {message.get_payload(decode=True)!r} in the mailbox of {owner}")
                expect(message.get_all("Delivered-To", []) == named, f"mutt reads {message.items()} in that of {owner}")
        expect(check_three(server, lying) == before, "reading changed a mailbox")


class Dovecot:
    """A Dovecot of its own that an ordinary user runs: settings, sockets and log in a temporary directory, one port on
    loopback. Its users are all who have a Maildir in `mailboxes`. The system's own, if it runs, is not touched."""

    PASSWORD = "secret"

    def __init__(self, mailboxes, user):
        self.command = [program("dovecot"), "-F", "-c"]
        version = run("dovecot", "--version").split()[0]
        if not version.startswith("2.3."):
            raise NotInstalled(f"Dovecot 2.3 (there is {version}, with other settings)")
        libraries = run("doveconf", "-c", "/dev/null", "-h", "libexec_dir").strip()
        if not os.access(f"{libraries}/imap", os.X_OK):
            raise NotInstalled("Dovecot's IMAP server")
        account = pwd.getpwnam(user)
        group = grp.getgrgid(account.pw_gid).gr_name
        self.port = free_port()
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="interop-dovecot-"))
        shutil.chown(self.directory, user)
        self.identity = as_user(user)
        self.log_path = self.directory / "log"
        settings = self.directory / "dovecot.conf"
        settings.write_text(f"""\
base_dir = {self.directory}/run
state_dir = {self.directory}/state
log_path = {self.log_path}
protocols = imap
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
default_internal_user = {user}
default_internal_group = {group}
default_login_user = {user}
first_valid_uid = {account.pw_uid}
first_valid_gid = {account.pw_gid}
mail_location = maildir:{mailboxes}/%n
passdb {{
  driver = static
  args = password={self.PASSWORD}
}}
userdb {{
  driver = static
  args = uid={user} gid={group} home={self.directory}/home/%n allow_all_users=yes
}}
service anvil {{
  chroot =
}}
service imap-urlauth-login {{
  chroot =
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {self.port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
""")
        settings.chmod(0o644)
        self.command.append(str(settings))

    def __enter__(self):
        with open(self.directory / "output", "wb") as output:
            how = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output, **self.identity}
            self.process = subprocess.Popen(self.command, **how)
        try:
            wait_until(self.answers, PATIENCE_SECONDS, "Dovecot's greeting")
        except BaseException:
            self.__exit__(True)
            raise
        return self

    def answers(self):
        expect(self.process.poll() is None, f"Dovecot ended at start with status {self.process.returncode}")
        with contextlib.suppress(ConnectionRefusedError):
            imaplib.IMAP4("127.0.0.1", self.port, PATIENCE_SECONDS).logout()
            return True
        return False

    def __exit__(self, *failure):
        try:
            self.process.terminate()
            status = self.process.wait(PATIENCE_SECONDS)
            trouble = re.findall(r"^.* (?:Warning|Error|Fatal|Panic): (?!Killed with signal 15 ).*$", self.log(), re.M)
            if any(failure):
                show_end("Dovecot's log", self.log())
            else:
                expect(status == 0, f"Dovecot ended with status {status}")
                expect(not trouble, f"Dovecot says {trouble[:2]}")
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            shutil.rmtree(self.directory)

    def log(self):
        paths = [self.directory / "output", self.log_path]
        return "".join(path.read_text(errors="replace") for path in paths if path.exists())


class Imap:
    """An owner who logged in."""

    def __init__(self, dovecot, owner):
        self.client = imaplib.IMAP4("127.0.0.1", dovecot.port, PATIENCE_SECONDS)
        self.ask("login", f"{owner}@{DOMAIN}", dovecot.PASSWORD)

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.client.logout()

    def ask(self, command, *arguments):
        status, answer = getattr(self.client, command)(*arguments)
        expect(status == "OK", f"{command} {arguments}: {status} {answer}")
        return answer

    def select(self, folder):
        """How many messages there are."""
        return int(self.ask("select", folder)[0])

    def texts(self, item):
        """Those of all messages, in the form that they have in the files."""
        parts = [part for part in self.ask("fetch", "1:*", f"({item} RFC822.SIZE)") if isinstance(part, tuple)]
        for said, text in parts:
            size = re.search(rb"RFC822\.SIZE (\d+)", said)
            expect(size and int(size[1]) == len(text), f"{said!r} of {len(text)} octets")
            expect(b"\n" not in text.replace(b"\r\n", b""), f"line ends in {text!r}")
        return sorted(text.replace(b"\r\n", b"\n") for _, text in parts)

    def flags(self):
        """All that any message has, but the one that says that it was not seen before."""
        answer = b" ".join(self.ask("fetch", "1:*", "(FLAGS)"))
        return sorted(set(re.findall(rb"\\\w+", answer)) - {rb"\Recent"})


@case
def dovecot():
    """Three owners log in by IMAP, and what one does with a message leaves the linked copies of the others alone."""
    user = ordinary_user()
    with running("--create-mailboxes", with_mailboxes=True, user=user) as server, Dovecot(server.mailboxes, user) as imap:
        lying = deliver_to_three(server)
        stored = check_three(server, lying)

        def read(session, owner):
            count, wanted = session.select("INBOX"), sorted(stored[owner].values())
            expect(count == len(wanted), f"{count} messages of {owner}, {len(wanted)} wanted")
            expect_same(session.texts("BODY.PEEK[]"), wanted, f"messages of {owner}")
            expect(session.flags() == [], f"flags {session.flags()} of what {owner} did not touch")
            expect_same(session.texts("RFC822"), wanted, f"messages of {owner}, read once more")
            expect(session.flags() == [rb"\Seen"], f"flags {session.flags()} of what {owner} read")

        def untouched(owner, links):
            """The messages of an owner who was not there yet are as they were; the one for all has so many links."""
            maildir = server.mailboxes / owner
            expect(server.stored(len(stored[owner]), maildir) == stored[owner], f"messages of {owner} changed")
            key = key_of(stored[owner], lying["bob"][-1][0])
            found = (maildir / "new" / key).stat().st_nlink
            expect(found == links, f"{found} links to the message for all, {links} wanted")

        with Imap(imap, "alice") as alice:
            read(alice, "alice")
            alice.ask("store", "1:*", "+FLAGS", r"(\Flagged \Answered)")
            expect(alice.flags() == [rb"\Answered", rb"\Flagged", rb"\Seen"], f"flags {alice.flags()} of alice")
            untouched("bob", 3)
            untouched("carol", 3)
            alice.ask("store", "1:*", "+FLAGS", r"(\Deleted)")
            alice.ask("expunge")
            expect(alice.select("INBOX") == 0, "messages are left after EXPUNGE")
            untouched("bob", 2)
            untouched("carol", 2)
        for owner in ("bob", "carol"):
            with Imap(imap, owner) as session:
                read(session, owner)

        # A folder takes the mail of its tag from when it is made.
        with Imap(imap, "alice") as alice, Imap(imap, "bob") as bob, smtplib_session(server) as client:
            client.ehlo_or_helo_if_needed()
            alice.ask("create", "list")
            seen_by_bob = bob.select("INBOX")
            tagged = [f"{owner}+List@{DOMAIN}" for owner in ("alice", "bob")]
            identifiers = [transaction(client, SENDER, [recipient], TEXT) for recipient in tagged]
            messages = server.stored(1, server.mailboxes / "alice" / ".list")
            check_message(messages, key_of(messages, identifiers[0]), SENDER, tagged[:1], TEXT, reply_id=identifiers[0])
            expect(alice.select("list") == 1, "messages in the folder")
            expect_same(alice.texts("RFC822"), list(messages.values()), "what is in the folder")
            expect(alice.select("INBOX") == 0, "messages beside the folder")
            # Who has no such folder gets it in the inbox, also while that is open.
            bob.ask("noop")
            expect(bob.client.response("EXISTS")[1][-1] == b"%d" % (seen_by_bob + 1), "bob is told of no new message")
            # And one message for a folder and an inbox is a link in both.
            identifier = transaction(client, SENDER, tagged, TEXT)
            expect(alice.select("list") == 2 and bob.select("INBOX") == seen_by_bob + 2, "the message for both")
            files = list(server.mailboxes.glob(f"**/*{identifier}*"))
            expect(len({file.stat().st_ino for file in files}) == 1 and len(files) == 2, f"files of one message: {files}")
            folders = sorted(line.split()[-1] for line in alice.ask("list"))
            expect(folders == [b"INBOX", b"list"], f"folders {folders}")


# ------------------------------------------------------------------------------------- cases: the server's limits


@case
def memory_200_mb():
    """A message of 200 MB: resident memory grows by less than 1 MiB."""
    with running("--max-size", "1G") as server:
        person = Dialogue(server)
        person.say("EHLO client.example", 250)

        def envelope():
            person.say(f"MAIL FROM:<{SENDER}>", 250)
            person.say(f"RCPT TO:<{RECIPIENT}>", 250)
            person.say("DATA", 354)

        envelope()
        person.text("Subject: small", "", "small")
        text = large_text(200_000_000)
        wire = text.replace(b"\n.", b"\n..")
        before = most = server.resident_kib()
        envelope()
        for start in range(0, len(wire), MIB):
            person.socket.sendall(wire[start : start + MIB])
            most = max(most, server.resident_kib())
        person.socket.sendall(b".\r\n")
        identifier = accepted_id(person.hear(250))
        most = max(most, server.resident_kib())
        person.quit()
        print(f"    resident before {before} KiB, at most {most} KiB")
        expect(most - before < 1024, f"resident memory grew by {most - before} KiB, from {before} KiB")
        messages = server.stored(2)
        check_message(messages, key_of(messages, identifier), SENDER, [RECIPIENT], text, reply_id=identifier)


@case
def term_in_data():
    """SIGTERM while one client is in DATA: it gets its 250; an idle one hears 421; no new ones; status 0."""
    with running() as server:
        idle = Dialogue(server)
        idle.say("EHLO idle.example", 250)
        busy = Dialogue(server)
        busy.say("EHLO client.example", 250)
        busy.say(f"MAIL FROM:<{SENDER}>", 250)
        busy.say(f"RCPT TO:<{RECIPIENT}>", 250)
        busy.say("DATA", 354)
        busy.socket.sendall(b"Subject: half\r\n\r\nbefore\r\n")
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        reply = idle.hear(421)
        expect("4.3.2" in reply, f"the idle session heard {reply!r}")
        expect(idle.replies.read() == b"", "the idle session stayed open")
        idle.close()
        time.sleep(0.5)
        try:
            Dialogue(server).close()
            raise Failed("a new session was greeted after SIGTERM")
        except OSError:
            pass
        expect(server.process.poll() is None, "the server ended with a client in DATA")
        text, identifier = busy.text("after")
        server.ended()
        busy.close()
        check_one(server, SENDER, [RECIPIENT], b"Subject: half\n\nbefore\n" + text, reply_id=identifier)


@case
def cut_off_in_data():
    """A client that vanishes in the middle of a large message leaves nothing behind."""
    with running() as server:
        person = Dialogue(server)
        person.say("HELO client.example", 250)
        person.say(f"MAIL FROM:<{SENDER}>", 250)
        person.say(f"RCPT TO:<{RECIPIENT}>", 250)
        person.say("DATA", 354)
        person.socket.sendall(large_text(5_000_000))
        person.close()
        wait_until(lambda: not server.names("tmp"), 10, "tmp/ empty")
        server.stored(0)


# ------------------------------------------------------------------------------------------ cases: LMTP, Postfix


@case
def lmtp_by_smtplib():
    """One reply for each recipient."""
    with running("--lmtp", "127.0.0.1:0") as server:
        with smtplib.LMTP(*host_and_port(server.lmtp_address), "client.example", timeout=PATIENCE_SECONDS) as client:
            client.ehlo_or_helo_if_needed()
            client.mail(SENDER)
            client.rcpt(RECIPIENT)
            client.rcpt("second@b.example")
            for code, reply in (client.data(TEXT), client.getreply()):
                expect(code == 250, f"{code} {reply}")
            code, reply = client.quit()
            expect(code == 221, f"reply to QUIT {code} {reply}")
        check_one(server, SENDER, [RECIPIENT, "second@b.example"], TEXT, "LMTP")


@case
def lmtp_mailboxes():
    """Each recipient has a reply of its own: one without a mailbox at RCPT, one whose mailbox is broken at the end."""
    with running("--lmtp", "127.0.0.1:0", with_mailboxes=True) as server:
        alice, bob, nobody = (f"{name}@{DOMAIN}" for name in ("alice", "bob", "nobody"))
        maildirs = [server.mailboxes / name for name in ("alice", "bob")]
        for maildir in maildirs:
            mailbox.Maildir(maildir, create=True)

        def deliver(client, *last):
            client.mail(SENDER)
            taken = [client.rcpt(recipient) for recipient in (alice, nobody, bob)]
            codes = [code for code, _ in taken]
            expect(codes == [250, 550, 250], f"replies to RCPT {taken}")
            expect(taken[1][1].startswith(b"5.1.1 "), f"reply for nobody {taken[1]}")
            replies = [client.data(TEXT), client.getreply()]
            expect([code for code, _ in replies] == list(last), f"replies to the message {replies}, {last} wanted")
            return [reply.decode() for _, reply in replies]

        with smtplib.LMTP(*host_and_port(server.lmtp_address), "client.example", timeout=PATIENCE_SECONDS) as client:
            client.ehlo_or_helo_if_needed()
            identifier, again = map(accepted_id, deliver(client, 250, 250))
            expect(identifier == again, f"one message has two ids, {identifier} and {again}")
            for maildir in maildirs:
                messages = server.stored(1, maildir)
                check_message(messages, key_of(messages, identifier), SENDER, [], TEXT, "LMTP", identifier)

            (maildirs[1] / "new").rename(maildirs[1] / "new-was-here")
            (maildirs[1] / "new").write_bytes(b"")
            stored, refused = deliver(client, 250, 451)
            expect(refused.startswith("4.3.0 "), f"reply for the broken mailbox {refused!r}")
            messages = server.stored(2, maildirs[0])
            check_message(messages, key_of(messages, accepted_id(stored)), SENDER, [], TEXT, "LMTP")
            code, reply = client.quit()
            expect(code == 221, f"reply to QUIT {code} {reply}")
        made = server.made()
        expect(made == ["alice", "bob", "postmaster"], f"mailboxes {made}")
        server.stored(0)


class Postfix:
    """A Postfix of its own: configuration, queue and log in a temporary directory, one port on loopback."""

    SERVICES = """\
        smtp-in  inet n - n - - smtpd
        cleanup unix n - n - 0 cleanup
        qmgr unix n - n 300 1 qmgr
        rewrite unix - - n - - trivial-rewrite
        bounce unix - - n - 0 bounce
        defer unix - - n - 0 bounce
        trace unix - - n - 0 bounce
        verify unix - - n - 1 verify
        flush unix n - n 1000? 0 flush
        smtp unix - - n - - smtp
        relay unix - - n - - smtp
        lmtp unix - - n - - lmtp
        error unix - - n - - error
        retry unix - - n - - error
        anvil unix - - n - 1 anvil
        scache unix - - n - 1 scache
        postlog unix-dgram n - n - 1 postlogd
    """

    def __init__(self, transport):
        postfix = program("postfix")
        if os.geteuid() != 0:
            raise NotInstalled("a root user, whom Postfix wants,")
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="interop-postfix-"))
        self.directory.chmod(0o755)
        self.queue, self.log_path = self.directory / "queue", self.directory / "log"
        (self.directory / "data").mkdir()
        shutil.chown(self.directory / "data", "postfix")
        self.queue.mkdir()
        self.port = free_port()
        (self.directory / "main.cf").write_text(
            f"compatibility_level = 3.6\nqueue_directory = {self.queue}\ndata_directory = {self.directory}/data\n"
            f"maillog_file = {self.log_path}\nmaillog_file_prefixes = {self.directory}\n"
            "myhostname = relay.example\nmydestination =\nlocal_recipient_maps =\nlocal_transport = error:none\n"
            "alias_maps =\nalias_database =\ninet_interfaces = loopback-only\ninet_protocols = ipv4\n"
            "mynetworks = 127.0.0.0/8\nsmtpd_relay_restrictions = permit_mynetworks, reject\n"
            f"smtp_dns_support_level = disabled\ndefault_transport = {transport}\nminimal_backoff_time = 300s\n"
        )
        services = re.sub(r"^ +", "", self.SERVICES, flags=re.M).replace("smtp-in", f"127.0.0.1:{self.port}")
        (self.directory / "master.cf").write_text(services)
        self.command = [postfix, "-c", str(self.directory)]

    def __enter__(self):
        self.control("start")
        return self

    def __exit__(self, *failure):
        try:
            self.control("stop")
            if any(failure):
                show_end("Postfix's log", self.log())
        finally:
            shutil.rmtree(self.directory)

    def control(self, verb):
        # A file for its output: a pipe would stay open as long as the daemon lives.
        with tempfile.TemporaryFile() as output:
            status = subprocess.run([*self.command, verb], stdin=subprocess.DEVNULL, stdout=output, stderr=output).returncode
            output.seek(0)
            expect(status == 0, f"postfix {verb} ended with status {status}: {output.read().decode()} {self.log()[-600:]}")

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def queued(self):
        return sum(len(files) for part in ("incoming", "active", "deferred") for _, _, files in os.walk(self.queue / part))


def postfix_delivers(server, transport, protocol, count=1000):
    """Postfix takes `count` messages for two recipients each and hands them on; none is lost, none comes twice."""
    recipients = [RECIPIENT, "second@b.example"]
    with Postfix(transport) as postfix:
        with smtplib.SMTP("127.0.0.1", postfix.port, "client.example", PATIENCE_SECONDS) as client:
            for number in range(count):
                text = b"Message-ID: <%d@d.example>\r\n" % number + TEXT.replace(b"Message-ID: <1@d.example>\r\n", b"")
                client.sendmail(SENDER, recipients, text)
        wait_until(lambda: postfix.queued() == 0, 5 * PATIENCE_SECONDS, "Postfix's queue empty")
        log = postfix.log()
        trouble = [line for line in log.splitlines() if re.search(r"status=(?!sent)|: (fatal|panic|error): ", line)]
        expect(not trouble, f"Postfix says {trouble[:2]}")
    messages = server.stored(count)
    numbers = set()
    for key, message in messages.items():
        match = re.search(rb"^Received: from client\.example .*\n(?:[ \t].*\n)+Message-ID: <(\d+)@d\.example>\n", message, re.M)
        expect(match, f"{key} begins {message[:600]!r}")
        numbers.add(int(match[1]))
        check_message(messages, key, SENDER, recipients, message[match.start() :], protocol)
        expect(message.endswith(TEXT[TEXT.index(b"\r\n\r\n") :].replace(b"\r\n", b"\n")), f"text of {key}")
    expect(numbers == set(range(count)), f"lost: {sorted(set(range(count)) - numbers)[:10]}")


@case
def postfix_smtp():
    with running() as server:
        postfix_delivers(server, f"smtp:[{server.host}]:{server.port}", "ESMTP")


@case
def postfix_lmtp():
    with running("--lmtp", "127.0.0.1:0") as server:
        postfix_delivers(server, f"lmtp:inet:{server.lmtp_address}", "LMTP")


@case
def postfix_lmtp_unix():
    directory = pathlib.Path(tempfile.mkdtemp(prefix="interop-lmtp-"))
    directory.chmod(0o755)
    try:
        path = directory / "lmtp"
        with running("--lmtp", f"unix:{path}") as server:
            path.chmod(0o666)  # Postfix delivers as a user of its own
            postfix_delivers(server, f"lmtp:unix:{path}", "LMTP")
    finally:
        shutil.rmtree(directory)


# ------------------------------------------------------------------------------------------------------ the run


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    options.add_argument("binary", help="the server's release binary")
    options.add_argument("cases", nargs="*", metavar="CASE", help="run these only")
    options.add_argument("--require-all", action="store_true", help="a missing client is a failure")
    options.add_argument("--list", action="store_true", help="print the names of the cases")
    options = options.parse_args()
    if options.list:
        print("\n".join(CASES))
        return 0
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        print(f"no such case: {', '.join(unknown)}; --list names them", file=sys.stderr)
        return 64
    require_all = options.require_all or os.environ.get("CI") == "true"
    Server.binary = shutil.which(os.path.abspath(options.binary))
    if Server.binary is None:
        print(f"{options.binary} is not a program; build it with `cargo build --release`", file=sys.stderr)
        return 64

    passed = failed = skipped = 0
    for name in options.cases or CASES:
        start = time.monotonic()
        try:
            CASES[name]()
        except NotInstalled as missing:
            if require_all:
                failed += 1
                print(f"FAILED:  {name}: {missing} is not installed", flush=True)
            else:
                skipped += 1
                print(f"skipped: {name}: {missing} is not installed", flush=True)
        except Exception as failure:
            failed += 1
            print(f"FAILED:  {name}: {failure}", flush=True)
            if not isinstance(failure, Failed):
                traceback.print_exc()
        else:
            passed += 1
            print(f"ok:      {name} ({time.monotonic() - start:.1f} s)", flush=True)
    print(f"{passed} passed, {failed} failed" + f", {skipped} skipped" * bool(skipped))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
