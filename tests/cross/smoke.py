#!/usr/bin/env python3
"""Real mail into one build of the server, whatever runs it: what is in the Maildir must be what was sent, octet by octet.

    smoke.py [--messages N] [--year N] [--bare] [--resident KIB] COMMAND...

COMMAND starts the server, as in `smoke.py qemu-arm-static target/cross/mailchute-armv7…`. With `--bare` it is one static
file, which then runs as process 1 and user 65532 in a root that is empty and read-only but for the mail: no /proc, no /dev,
no /etc. `--year` is the one that its clock shows, if not ours. With `--resident` its resident set after the traffic must be at most so many KiB. Ends with 0 if all went well, 75
if this machine can't do what is asked, else 1.
"""

import argparse
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONNECTIONS = 51
PATIENCE = 60  # seconds, for an emulator on a busy machine
QUIET = 3  # seconds after which a server that nobody talks to has given back what it needed
SKIPPED = 75
USER = 65532
MAX_SIZE = 5 << 30  # beyond 32 bits


class Client:
    """One connection. What is read is checked where it is asked for."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.reader = self.socket.makefile("rb")
        self.reply("220")
        self.extensions = self.ask("EHLO smoke.example", "250")

    def send(self, octets):
        self.socket.sendall(octets)

    def reply(self, code):
        lines = []
        while True:
            line = self.reader.readline().decode()
            lines.append(line.rstrip("\r\n"))
            if line[3:4] != "-":
                break
        check(lines[-1].startswith(code), f"expected {code}, heard {lines}")
        return lines

    def ask(self, command, code):
        self.send(command.encode() + b"\r\n")
        return self.reply(code)

    def close(self):
        self.ask("QUIT", "221")
        self.socket.close()


class Server:
    """The server as a child, with its port; `pid` is that of the process that serves."""

    def __init__(self, command, maildir, options):
        self.log = tempfile.TemporaryFile()
        arguments = [*command, "--listen", "127.0.0.1:0", "--maildir", maildir, *options]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAILCHUTE_", "RUST_"))}
        self.child = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, env=environment
        )
        self.port = None
        deadline = time.monotonic() + PATIENCE
        while self.port is None:
            found = re.search(r"listening on 127\.0\.0\.1:(\d+)\n", self.text())
            self.port = found and int(found[1])
            check(self.child.poll() is None, f"it ended with {self.child.returncode}:\n{self.text()}")
            check(time.monotonic() < deadline, f"it does not listen:\n{self.text()}")
            time.sleep(0.02)
        # `unshare` waits for the one that it forked.
        children = Path(f"/proc/{self.child.pid}/task/{self.child.pid}/children").read_text().split()
        self.pid = int(children[0]) if children else self.child.pid

    def text(self):
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def resident(self):
        """KiB of its memory, of files and in all."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        anonymous, file = (int(re.search(rf"^{name}:\s*(\d+) kB", status, re.M)[1]) for name in ("RssAnon", "RssFile"))
        return anonymous, file, anonymous + file

    def stop(self):
        began = time.monotonic()
        os.kill(self.pid, signal.SIGTERM)
        status = self.child.wait(timeout=PATIENCE)
        check(status == 0, f"it ended with {status} after SIGTERM:\n{self.text()}")
        return time.monotonic() - began

    def kill(self):
        if self.child.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.child.wait(timeout=PATIENCE)


def check(holds, problem):
    if not holds:
        raise AssertionError(problem)


def text_of(number, lines):
    """A message as it is to be stored but for the trace lines, with a number to know it by."""
    return b"".join(line + b"\n" for line in [f"Subject: number {number}".encode(), b"", *lines])


def on_the_wire(text):
    """The same as DATA sends it."""
    lines = text.split(b"\n")[:-1]
    return b"".join((b"." + line if line.startswith(b".") else line) + b"\r\n" for line in lines) + b".\r\n"


def messages_of(count):
    """Texts: small ones, one that is nothing but dots, one with all octets that a line may have, one of 5 MB."""
    chosen = random.Random(count)
    line_octets = [octet for octet in range(1, 256) if octet not in b"\r\n"]
    dots = [b".", b"..", b"...", b".x", b"x.", b"", b".", b". ", b".\t."]
    large = [bytes(chosen.choices(line_octets, k=997)) for _ in range(5000)]
    special = [dots, [bytes(line_octets)], [b"x" * 70_000], large]
    small = ([bytes(chosen.choices(line_octets, k=76)) for _ in range(chosen.randint(0, 25))] for _ in range(count))
    return [text_of(number, lines) for number, lines in enumerate([*special, *small])]


ENVELOPE = b"MAIL FROM:<from@example.org>\r\nRCPT TO:<to@example.org>\r\n"


def deliver(port, texts):
    """All texts over several connections that are open at once: by DATA, every tenth by BDAT, all of it pipelined."""
    clients = [Client(port) for _ in range(CONNECTIONS)]
    shares = [texts[index::CONNECTIONS] for index in range(CONNECTIONS)]
    for turn in range(max(map(len, shares))):
        busy = [(client, share[turn]) for client, share in zip(clients, shares) if turn < len(share)]
        chunks = turn % 10 == 9
        for client, text in busy:
            content = text.replace(b"\n", b"\r\n")
            client.send(ENVELOPE + (b"BDAT %d LAST\r\n" % len(content) + content if chunks else b"DATA\r\n"))
        for client, text in busy:
            client.reply("250"), client.reply("250")
            if not chunks:
                client.reply("354")
                client.send(on_the_wire(text))
        for client, _ in busy:
            client.reply("250")
    # What ends one message begins the next.
    client = clients[0]
    extra = [text_of(f"pipelined {number}", [b"."] * number) for number in range(5)]
    client.send(b"NOOP\r\n" + ENVELOPE + b"DATA\r\n")
    client.reply("250")
    for number, text in enumerate(extra):
        client.reply("250"), client.reply("250"), client.reply("354")
        last = number + 1 == len(extra)
        client.send(on_the_wire(text) + (b"" if last else ENVELOPE + b"DATA\r\n"))
        client.reply("250")
    return clients, texts + extra


def sizes(client):
    """Sizes that 32 bits don't hold."""
    check(f"250-SIZE {MAX_SIZE}" in client.extensions, f"no SIZE {MAX_SIZE} in {client.extensions}")
    # 452 is an honest answer on a small disk.
    client.ask("MAIL FROM:<from@example.org> SIZE=5000000000", ("250", "452"))
    client.ask("RSET", "250")
    for size in MAX_SIZE + 1, 1 << 33, 3 << 32 | 1, (1 << 64) - 1:
        client.ask(f"MAIL FROM:<from@example.org> SIZE={size}", "552")


def compare(maildir, texts, year):
    """Each text is in one file, which is as large as its name says, and nothing else is there."""
    # What was answered in a burst may still be on its way there from the journal.
    patience = time.monotonic() + 10
    files = list((maildir / "new").iterdir())
    while len(files) < len(texts) and time.monotonic() < patience:
        time.sleep(0.05)
        files = list((maildir / "new").iterdir())
    expected = {text.split(b"\n", 1)[0]: text for text in texts}
    check(len(files) == len(expected) == len(texts), f"{len(texts)} messages were sent, {len(files)} are there")
    check(not list((maildir / "tmp").iterdir()), "something is left in tmp/")
    trace = re.compile(
        rb"Return-Path: <from@example\.org>\nDelivered-To: to@example\.org\nReceived: [^\n]+\n(?:[ \t][^\n]+\n)*", re.S
    )
    for path in files:
        content = path.read_bytes()
        head = trace.match(content)
        check(head, f"{path}: trace lines are not as they should be:\n{content[:500]!r}")
        text = content[head.end() :]
        check(text == expected.pop(text.split(b"\n", 1)[0], None), f"{path} is not what was sent")
        seconds, size = re.fullmatch(r"(\d+)\.[^.]+\..+,S=(\d+)", path.name).groups()
        check(int(size) == len(content), f"{path} has {len(content)} octets")
        check(time.gmtime(int(seconds)).tm_year == year and b"%d" % year in head[0], f"{path} is not of {year}")


def bare_root(program, directory):
    """The command that starts `program` alone in a root, and where the mail of /mail/in is then."""
    root, mail = directory / "root", directory / "mail"
    for path in root, root / "mail", mail:
        path.mkdir()
    shutil.copy(program, root / "mailchute")
    directory.chmod(0o755)
    user = ["--userspec", f"{USER}:{USER}"]
    new = ["unshare", "--mount", "--pid", "--fork"]
    if os.geteuid() == 0:
        os.chown(mail, USER, USER)
    else:
        new[1:1] = ["--user", "--map-root-user"]
        user = []
    mounts = 'mount --bind "$1" "$1" && mount --bind "$2" "$1/mail" && mount -o remount,bind,ro "$1"'
    if subprocess.run([*new, "sh", "-c", mounts, "sh", root, mail], capture_output=True).returncode:
        print(f"no empty root for {program}: this machine allows no mounts in a namespace of one's own")
        sys.exit(SKIPPED)
    command = f'{mounts} && root=$1 && shift 2 && exec setpriv --no-new-privs chroot "$@"'
    return [*new, "sh", "-c", command, "sh", root, mail, *user, root, "/mailchute"], mail / "in"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=200)
    parser.add_argument("--year", type=int, default=time.gmtime().tm_year)
    parser.add_argument("--bare", action="store_true")
    parser.add_argument("--resident", type=int)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mailchute-smoke-") as directory:
        directory = Path(directory)
        command, maildir, inside = chosen.command, directory / "Maildir", directory / "Maildir"
        if chosen.bare:
            (program,) = command
            command, maildir = bare_root(program, directory)
            inside = "/mail/in"
        server = Server(command, inside, ["--max-size", "5G", "--max-connections-per-ip", "100"])
        try:
            at_start = server.resident()
            clients, texts = deliver(server.port, messages_of(chosen.messages))
            sizes(clients[0])
            for client in clients:
                client.close()
            compare(maildir, texts, chosen.year)
            if chosen.resident is not None:
                time.sleep(QUIET)
            after = server.resident()
            seconds = server.stop()
        finally:
            server.kill()
    what = "in a bare root" if chosen.bare else "delivered"
    print(f"{what}: {len(texts)} messages over {CONNECTIONS} connections are as sent; SIGTERM: 0 after {seconds:.2f} s")
    if chosen.resident is not None:
        for when, (anonymous, file, total) in ("at the start", at_start), ("after the traffic", after):
            print(f"resident {when}: {total} KiB ({anonymous} of memory, {file} of the program)")
        check(after[2] <= chosen.resident, f"{after[2]} KiB are resident, at most {chosen.resident} may be")


if __name__ == "__main__":
    try:
        main()
    except AssertionError as problem:
        print(f"smoke.py: {problem}", file=sys.stderr)
        sys.exit(1)
