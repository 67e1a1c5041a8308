#!/usr/bin/env python3
"""Shows that the simulation finds bugs: plants one after the other in a copy of the sources, and has it fail.

    tests/simulation/mutations.py            all of them
    tests/simulation/mutations.py 3 5        these two
    tests/simulation/mutations.py --list

A text that is not found exactly once ends it: whoever changed the code changes the mutation, too.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

# File, text that is there once, what takes its place, and what bug that is.
MUTATIONS = [
    (
        "src/delivery.rs",
        "            self.written.push(key);\n",
        "            if let Some(delivery) = self.deliveries.get_mut(key) {\n"
        "                (0..delivery.copies.len()).for_each(|index| drop(delivery.publish(key, index, &mut self.maildirs)));\n"
        "            }\n"
        "            self.written.push(key);\n",
        "moved to new/ before the octets are flushed",
    ),
    (
        "src/smtp/data.rs",
        "        let mut at = 0;\n",
        "        let mut at = 0;\n        if self.state == DotCr(false) {\n            self.state = Cr;\n        }\n",
        "the state of the end of a message is lost where a read ends in it",
    ),
    (
        "src/server.rs",
        "            (Action::Deliver, _) | (_, Ok(false)) => {}\n            (_, Err(_)) => self.close(key, \"lost\"),\n",
        "            (_, Err(_)) => self.close(key, \"lost\"),\n            (Action::Deliver, _) | (_, Ok(false)) => {}\n",
        "who is lost while its message is stored gives its key to a newcomer, who hears what came of it",
    ),
    (
        "src/server.rs",
        "                self.look = self.look.min(until);\n",
        "",
        "the timer is not set for the next deadline",
    ),
    (
        "src/server.rs",
        "            Action::Discard | Action::Close => connection.discard(&mut self.store),\n",
        "            Action::Close => connection.discard(&mut self.store),\n            Action::Discard => {}\n",
        "what was there of a message is kept after RSET",
    ),
    (
        "src/delivery.rs",
        "[&maildir.directories.new, &maildir.directories.cur].into_iter()",
        "[&maildir.directories.cur].into_iter()",
        "250 without a flush of new/",
    ),
    (
        "src/connection.rs",
        "self.ready.readable = count == place.len() || self.ready.ending;",
        "self.ready.readable = count == place.len();",
        "the end behind the last octets is never read, as no event tells of it again",
    ),
    (
        "src/server.rs",
        "        ready.writable |= readiness.writable;\n",
        "",
        "replies wait for ever in front of a socket that was full",
    ),
    (
        "src/server.rs",
        "                self.input[..kept].copy_from_slice(&connection.unread[connection.used as usize..]);\n",
        "",
        "the first part of a command that came in two is another's",
    ),
    (
        "src/server.rs",
        "            if connection.action == Action::Deliver || connection.scheduled {\n",
        "            if connection.scheduled {\n",
        "who waits for a slow disk is timed out",
    ),
    (
        "src/delivery.rs",
        "            delivery.fail(\"flush\", &error, &|copy| copy.body == body, &mut self.maildirs, now);\n",
        "            let _ = error;\n",
        "250 though the flush failed",
    ),
    (
        "src/server.rs",
        "            self.runnable.append(&mut self.stalled);\n        }\n    }",
        "        }\n    }",
        "who waits for a file to be closed waits for ever",
    ),
    (
        "src/smtp/session.rs",
        "                _ if turn.replies.len() > REPLIES_FULL => return (used, Action::Flush),\n",
        "                _ if turn.replies.len() > 1 << 30 => return (used, Action::Flush),\n",
        "replies to who does not read them pile up in memory",
    ),
    (
        "src/server.rs",
        "OCTET_TIME * (filled - kept) as u32",
        "OCTET_TIME * filled as u32",
        "who sends a line octet by octet is given time for all of it each time",
    ),
    (
        "src/server.rs",
        "self.connections.len() >= self.config.connections_max",
        "self.connections.len() > self.config.connections_max",
        "one connection more than there may be",
    ),
    (
        "src/connection.rs",
        "self.ready.readable = error.kind() == ErrorKind::Interrupted;",
        "self.ready.readable = error.kind() != ErrorKind::ConnectionReset;",
        "a socket that has nothing is read again and again",
    ),
    (
        "src/smtp/session.rs",
        "            paths.clear();\n",
        "",
        "a transaction has the recipients of another peer's",
    ),
    (
        "src/server.rs",
        "        connection.discard(&mut self.store);\n        if let",
        "        if let",
        "who goes in the middle of a message leaves its file behind",
    ),
    (
        "src/delivery.rs",
        "        self.files -= usize::from(delivery.copies.get_mut(body).and_then(|copy| copy.file.take()).is_some());\n",
        "        drop(delivery.copies.get_mut(body).and_then(|copy| copy.file.take()));\n",
        "files that are closed count as open, until nobody may open one",
    ),
    (
        "src/maildir.rs",
        "= self.open_maildir(MAIN, false)?;",
        "= self.open_maildir(MAIN, true)?;",
        "a Maildir that was taken away is made again, where a card was",
    ),
    (
        "src/smtp/session.rs",
        "        self.origin.clear();\n",
        "",
        "a peer is called by the name of another, too",
    ),
    (
        "src/delivery.rs",
        " >= self.files_max\n",
        " >= self.files_max + 100\n",
        "more files are open than there may be",
    ),
    (
        "src/journal.rs",
        "        fs.begin_flush(Flush::File(file), TICKET);\n        (self.flushes",
        "        let _ = file;\n        fs.begin_flush(Flush::Directory(&self.root), TICKET);\n        (self.flushes",
        "250 before the journal is flushed",
    ),
    (
        "src/journal.rs",
        "records.map(|record| record.number).fold(journal.number, u64::min);",
        "records.fold(journal.number, |below, _| below);",
        "messages have their mark in the journal before they are published",
    ),
    (
        "src/journal.rs",
        " && xxh64(&record[8..], state.seed) == number(&record, 0);",
        ";",
        "a record that is not whole is delivered, as its checksum is not compared",
    ),
    (
        "src/journal.rs",
        "if half.live == 0 && half.free > half.start",
        "if half.free > half.start",
        "a half of the journal is written again before what is in it is published",
    ),
    (
        "src/journal.rs",
        "            journal.failed.push((id, record, destinations));\n        } else",
        "            drop((id, record, destinations));\n        } else",
        "what could not be published is not tried again",
    ),
    (
        "src/journal.rs",
        "        self.write_state(fs, index)?;\n        self.write_state(fs, index)\n",
        "        let _ = (fs, index);\n        Ok(())\n",
        "a half of the journal begins anew, and its state does not say so",
    ),
    (
        "src/journal.rs",
        "            delivery.fail(\"flush of the journal\", &error, &|_| true, &mut self.maildirs, now);\n",
        "",
        "250 though the flush of the journal failed",
    ),
    (
        "src/journal.rs",
        "due.filter(|_| self.unpublished == 0).into_iter().chain(self.retry).min()",
        "self.retry.filter(|_| due.is_some())",
        "what was answered is published only when somebody has something to do",
    ),
    (
        "src/journal.rs",
        "missing.filter(|it| !present.contains(&format!(\"{unique}{SEPARATOR}{it}\")));",
        "missing.filter(|_| true);",
        "what is in a Maildir already is delivered again after a crash",
    ),
    (
        "src/journal.rs",
        "journal.stage == Stage::Failed && journal.waiting() == 0 {",
        "journal.stage == Stage::Failed {",
        "a journal that failed is removed before what is in it is published",
    ),
]

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300


def fail(what):
    sys.exit(f"mutations: {what}")


def copy(place):
    """The sources alone, with a manifest that builds no more than the simulation needs."""
    for name in ["src", "tests/model", "tests/common", "tests/simulation"]:
        shutil.rmtree(place / name, ignore_errors=True)
        shutil.copytree(ROOT / name, place / name)
    shutil.copy(ROOT / "tests/simulation.rs", place / "tests/simulation.rs")
    shutil.copy(ROOT / "Cargo.lock", place / "Cargo.lock")
    shutil.copy(ROOT / "README.md", place / "README.md")
    manifest = (ROOT / "Cargo.toml").read_text()
    sections = re.split(r"(?m)^(?=\[)", manifest)
    kept = [part for part in sections if not part.startswith(("[[bench]]", "[dev-dependencies]"))]
    manifest = "".join(kept).replace("[package]\n", "[package]\nautobins = false\nautotests = false\n", 1)
    # There is no program that it could help to link.
    manifest = re.sub(r'(?m)^build = .*\n', "", manifest)
    manifest += '\n[workspace]\n\n[[test]]\nname = "simulation"\npath = "tests/simulation.rs"\n'
    # Each is built once and runs for some seconds.
    manifest += "\n[profile.test]\ndebug = false\n"
    (place / "Cargo.toml").write_text(manifest)


def cargo(place, target, *arguments, **environment):
    environment = {**os.environ, "CARGO_TARGET_DIR": str(target), **environment}
    command = ["cargo", "test", "--quiet", "--test", "simulation", *arguments]
    return subprocess.run(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", timeout=PATIENCE,
    )


def main():
    arguments = sys.argv[1:]
    if arguments == ["--list"]:
        for number, (file, _, _, bug) in enumerate(MUTATIONS, 1):
            print(f"{number:2} {file}: {bug}")
        return
    chosen = [int(argument) for argument in arguments] or range(1, len(MUTATIONS) + 1)
    base = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "mutations"
    place, target = base / "copy", base / "target"
    (place / "tests").mkdir(parents=True, exist_ok=True)
    copy(place)
    for file, old, _, bug in MUTATIONS:
        count = (ROOT / file).read_text().count(old)
        if count != 1:
            fail(f"for \"{bug}\" this is {count} times in {file}, not once: {old!r}")
    # Without a mutation it builds and passes; what fails below then fails because of one.
    built = cargo(place, target, MAILCHUTE_SIMULATION_SEEDS="0..10")
    if built.returncode != 0:
        fail(f"fails without a mutation:\n{built.stdout}")
    missed = []
    for number in chosen:
        file, old, new, bug = MUTATIONS[number - 1]
        start = time.monotonic()
        text = (ROOT / file).read_text()
        (place / file).write_text(text.replace(old, new))
        built = cargo(place, target, "--no-run")
        if built.returncode != 0:
            fail(f"{number}, {bug}: does not build:\n{built.stdout}")
        compiled = time.monotonic()
        try:
            ran = cargo(place, target)
            found = ran.returncode != 0
            reason = re.search(r"(?m)^seed (\d+):\n(.*)", ran.stdout)
            reason = f"seed {reason[1]}: {reason[2][:110]}" if reason else ran.stdout[-300:]
        except subprocess.TimeoutExpired:
            found, reason = True, "it has no end"
        (place / file).write_text(text)
        seconds = f"{compiled - start:.0f} + {time.monotonic() - compiled:.0f} s"
        print(f"{number:2} {'found' if found else 'MISSED'}, {seconds}: {bug}\n     {reason}", flush=True)
        if not found:
            missed.append(number)
    if missed:
        fail(f"the simulation finds nothing wrong with {missed}")


main()
