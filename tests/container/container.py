#!/usr/bin/env python3
"""The image in a real engine: what is in it, and how it behaves with no rights, little memory and a full disk.

    tests/container/container.py BINARY [--arm64 BINARY] [--armv7 BINARY] [CASE ...]

BINARY is a static one. The last stage of the Dockerfile is built around it by buildah and run by podman, as root, with
images and volumes in a temporary directory of the test's own. The stage before, which compiles, comes from a registry;
what is shown of it is that the files it gets are enough to compile. Python's standard library is enough.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import resource
import shutil
import smtplib
import socket
import subprocess
import sys
import tempfile
import time
import traceback

SOURCE = pathlib.Path(__file__).resolve().parents[2]
IMAGE = "localhost/mailchute"  # what compose.yaml calls it, too
NOBODY_KNOWS = 65532  # the user of the image
PATIENCE_SECONDS = 20
MIB = 1024 * 1024
MEMORY = 16 * MIB
HARDENED = ["--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges", "--pids-limit=16"]
FEW = ["-e", "MAILCHUTE_MAX_CONNECTIONS=64"]  # with which it promises to stay below MEMORY


class Failed(Exception):
    """The image does not do what the case expects."""


def expect(truth, what):
    if not truth:
        raise Failed(what)


def wait_until(truth, what, seconds=PATIENCE_SECONDS):
    deadline = time.monotonic() + seconds
    while not truth():
        expect(time.monotonic() < deadline, f"{what}: not within {seconds} s")
        time.sleep(0.02)


def run(*command, status=0, **how):
    """Runs a program to its end, which has to be `status`; gives what it wrote to stdout."""
    ended = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300, **how)
    said = f"{ended.stdout[-2000:]}{ended.stderr[-2000:]}"
    expect(status is None or ended.returncode == status, f"{' '.join(map(str, command))}: {ended.returncode}\n{said}")
    return ended if status is None else ended.stdout


def limits():
    """Open files and processes, none of them beyond what we have."""
    hard = {it: resource.getrlimit(getattr(resource, f"RLIMIT_{it.upper()}"))[1] for it in ("nofile", "nproc")}
    most = {it: 4096 if limit == resource.RLIM_INFINITY else min(4096, limit) for it, limit in hard.items()}
    return [f"{it}={limit}:{limit}" for it, limit in most.items()]


def engine_settings(root):
    """Images, volumes and sockets below `root`, and what an engine needs on a machine that is a container itself."""
    (root / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{root}/images"\nrunroot = "{root}/run"\n'
    )
    (root / "containers.conf").write_text(
        # Without CAP_SYS_RESOURCE no limit can be raised, which the engine's own would do.
        f"[containers]\ndefault_ulimits = {json.dumps(limits())}\n"
        f'[engine]\ncgroup_manager = "cgroupfs"\nruntime = "runc"\nevents_logger = "file"\n'
        f'volume_path = "{root}/volumes"\nstatic_dir = "{root}/static"\ntmp_dir = "{root}/tmp"\n'
    )
    os.environ["CONTAINERS_STORAGE_CONF"] = str(root / "storage.conf")
    os.environ["CONTAINERS_CONF"] = str(root / "containers.conf")


# ------------------------------------------------------------------------------------------------- images and containers


def context(root, name, binary):
    """A directory that takes the place of the stage `build`."""
    directory = root / name
    (directory / "mail").mkdir(parents=True)
    (directory / "mail").chmod(0o755)
    shutil.copy(binary, directory / "mailchute")
    (directory / "mailchute").chmod(0o755)
    return directory


def expect_static(binary):
    expect("INTERP" not in run("readelf", "--program-headers", binary), f"{binary} is not static")


def build(directory, *options):
    # HEALTHCHECK is no part of the OCI's format.
    bud = ["buildah", "bud", "--format=docker", "--isolation=chroot", f"--build-context=build={directory}"]
    run(*bud, *options, ".", cwd=SOURCE)


class Container:
    """One container; the port that clients reach it at, if it is published."""

    def __init__(self, *options, arguments=(), image=IMAGE):
        self.id = run("podman", "run", "-d", *HARDENED, *memory_options(), *options, image, *arguments).strip()

    def inspect(self, *keys):
        value = json.loads(run("podman", "inspect", self.id))[0]
        for key in keys:
            value = value[key]
        return value

    def log(self):
        ended = run("podman", "logs", self.id, status=None)
        # The engine's own complaints, as of a missing systemd, are not the server's.
        return "\n".join(line for line in (ended.stdout + ended.stderr).splitlines() if not line.startswith("time="))

    def ready(self):
        serving = lambda: "storing mail in" in self.log() or not self.inspect("State", "Running")
        wait_until(serving, "the server's start")
        expect(self.inspect("State", "Running"), f"it ended at the start:\n{self.log()}")
        if not cgroups_work:
            # Not from the start: the engine's own part of the process takes more. Root may not without CAP_SYS_RESOURCE.
            user = self.status("Uid")[0]
            as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
            run(*as_user, "prlimit", f"--pid={self.pid()}", f"--data={MEMORY}:{MEMORY}")
        return self

    def address(self):
        host, port = run("podman", "port", self.id, "2525").strip().rsplit(":", 1)
        return host, int(port)

    def healthy(self):
        started = time.monotonic()
        ended = run("podman", "healthcheck", "run", self.id, status=None)
        took = time.monotonic() - started
        expect(ended.returncode in (0, 1) and took < 2, f"{ended.returncode} in {took:.2f} s: {ended.stderr}")
        return ended.returncode == 0

    def pid(self):
        return self.inspect("State", "Pid")

    def status(self, name):
        status = pathlib.Path(f"/proc/{self.pid()}/status").read_text()
        return re.search(rf"^{name}:\s*(.*?)\s*$", status, re.M)[1].split()

    def ends(self, what, *command):
        """Has it end, with 0 and soon."""
        started = time.monotonic()
        run(*command)
        wait_until(lambda: not self.inspect("State", "Running"), what)
        took = time.monotonic() - started
        code = self.inspect("State", "ExitCode")
        expect(code == 0 and took < 1, f"{what}: {code} in {took:.2f} s:\n{self.log()}")
        print(f"    {what}: status 0 after {took * 1000:.0f} ms, the engine's own time included")

    def remove(self):
        run("podman", "rm", "-f", "-v", "-t", "0", self.id, status=None)


@contextlib.contextmanager
def container(*options, **how):
    started = Container(*options, **how)
    try:
        yield started
    except Exception:
        print("    the end of the log:", *started.log().splitlines()[-15:], sep="\n    | ")
        raise
    finally:
        started.remove()


cgroups_work = None


def memory_options():
    """A limit of MEMORY; nothing, after a word about it, where the machine's cgroups have none."""
    global cgroups_work
    wanted = [f"--memory={MEMORY}", f"--memory-swap={MEMORY}"]
    if cgroups_work is None:
        # Not in the foreground: this engine may miss the end of what ends at once, and waits for 20 s.
        ended = run("podman", "run", "-d", *wanted, IMAGE, "--version", status=None)
        cgroups_work = ended.returncode == 0
        run("podman", "rm", "-f", "-v", ended.stdout.strip(), status=None)
        if not cgroups_work:
            print(f"SKIPPED: --memory, which fails here; RLIMIT_DATA is {MEMORY} in its place: {ended.stderr.strip()}")
    return wanted if cgroups_work else []


def cgroup_figure(pid, *names):
    """A figure of the memory cgroup of a process, under the name that version 1 or 2 has for it."""
    for line in pathlib.Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for root in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup") if controllers in ("memory", "") else ():
            for name in names:
                file = pathlib.Path(root + path, name)
                if file.exists():
                    return int(file.read_text())
    return None


def text(number, octets):
    line = f"{number:08d} " + "x" * 60 + "\r\n"
    return f"Subject: {number}\r\n\r\n" + line * (octets // len(line)) + f"end of {number}\r\n"


def deliver(address, numbers, octets):
    with smtplib.SMTP(*address, timeout=PATIENCE_SECONDS) as client:
        for number in numbers:
            client.sendmail("from@a.example", ["to@b.example"], text(number, octets))


def reply_to_mail(address):
    with smtplib.SMTP(*address, timeout=PATIENCE_SECONDS) as client:
        client.ehlo()
        return client.mail("from@a.example")[0]


def assert_stored(maildir, wanted):
    """Exactly the messages of `wanted`, which are numbers and octets, each of them whole, in new/ and none in tmp/."""
    expect(not os.listdir(maildir / "tmp"), "something is left in tmp/")
    files = sorted((maildir / "new").iterdir())
    expect(len(files) == len(wanted), f"{len(files)} files, {len(wanted)} wanted")
    left = {number: text(number, octets).replace("\r\n", "\n").encode() for number, octets in wanted}
    for file in files:
        content = file.read_bytes()
        number = int(content.rsplit(b" ", 1)[1])
        expect(content.endswith(b"\n" + left.pop(number)), f"{file.name} is not the message {number} as it was sent")
        owner = (file.stat().st_uid, file.stat().st_gid, file.stat().st_mode & 0o7777)
        expect(owner == (NOBODY_KNOWS, NOBODY_KNOWS, 0o600), f"{file.name} is {owner}")


# ------------------------------------------------------------------------------------------------------------- the cases


def case_contents(root, _):
    """The image holds the program and an empty directory, and says what an engine needs to know."""
    name = run("buildah", "from", IMAGE).strip()
    mounted = pathlib.Path(run("buildah", "mount", name).strip())
    there = {str(it.relative_to(mounted)): it.stat() for it in mounted.rglob("*")}
    modes = {name: (it.st_uid, it.st_gid, oct(it.st_mode)) for name, it in there.items()}
    wanted = {"mailchute": (0, 0, "0o100755"), "mail": (NOBODY_KNOWS, NOBODY_KNOWS, "0o40755")}
    expect(modes == wanted, f"the image holds {modes}")
    print(f"    {there['mailchute'].st_size} octets in all")
    run("buildah", "rm", name)
    image = json.loads(run("podman", "image", "inspect", IMAGE))[0]
    config = image["Config"]
    expect(config["User"] == f"{NOBODY_KNOWS}:{NOBODY_KNOWS}", config["User"])
    expect(config["Entrypoint"] == ["/mailchute"] and not config.get("Cmd"), config["Entrypoint"])
    expect(list(config["Volumes"]) == ["/mail"] and config["StopSignal"] in ("SIGTERM", "15"), str(config))
    expect(image["HealthCheck" if "HealthCheck" in image else "Healthcheck"]["Test"] == ["CMD", "/mailchute", "healthcheck"], str(image))
    version = re.search(r'^version = "(.*)"', (SOURCE / "Cargo.toml").read_text(), re.M)[1]
    expect(config["Labels"]["org.opencontainers.image.version"] == version, f"the label is not {version}")


def case_mail(root, _):
    """Without rights, with 16 MiB: mail goes in, health is told, the end comes at once, and the mail outlives it."""
    volume = "mail-of-the-test"
    with container("-p", "127.0.0.1::2525", "-v", f"{volume}:/mail", *FEW) as server:
        server.ready()
        address = server.address()
        expect(server.status("Uid") == [str(NOBODY_KNOWS)] * 4, "it runs as another user")
        expect(server.status("NSpid")[-1] == "1", "it is not process 1")
        rights = [server.status(name)[0].strip("0") for name in ("CapEff", "CapPrm", "CapBnd")]
        expect(rights == [""] * 3 and server.status("NoNewPrivs") == ["1"], f"it has rights: {rights}")
        if cgroups_work:
            limit = cgroup_figure(server.pid(), "memory.limit_in_bytes", "memory.max")
            expect(limit == MEMORY, f"the limit of memory is {limit}")
        maildir = pathlib.Path(run("podman", "volume", "inspect", volume, "--format", "{{.Mountpoint}}").strip()) / "Maildir"
        expect(server.healthy(), "it is not healthy at the start")

        clients = [smtplib.SMTP(*address, timeout=PATIENCE_SECONDS) for _ in range(20)]
        small, large = [(number, 20_000) for number in range(200)], [(number, 5 * MIB) for number in (900, 901, 902)]
        for number, octets in small:
            clients[number % 20].sendmail("from@a.example", ["to@b.example"], text(number, octets))
        for number, octets in large:
            clients[0].sendmail("from@a.example", ["to@b.example"], text(number, octets))
        for client in clients:
            client.quit()
        # As many as one address may have, each with more of a message than is kept in memory.
        half = [(number, 300_000) for number in range(1000, 1045)]
        clients = [smtplib.SMTP(*address, timeout=PATIENCE_SECONDS) for _ in half]
        for client in clients:
            client.ehlo()
            client.mail("from@a.example")
            client.rcpt("to@b.example")
            expect(client.docmd("DATA")[0] == 354, "no DATA")
        for client, message in zip(clients, half):
            client.sock.sendall(text(*message).encode())
        print(f"    with {len(half)} messages on their way {server.status('VmRSS')[0]} KiB resident")
        for client in clients:
            expect(client.docmd(".")[0] == 250, "a message is not taken")
            client.quit()
        large += half
        assert_stored(maildir, small + large)
        expect(server.healthy(), "it is not healthy after mail")
        log = server.log()
        stored = [line for line in log.splitlines() if " stored id=" in line]
        told = [line for line in log.splitlines() if "session=" in line]
        expect(len(stored) == len(told) == len(small + large), f"{len(stored)} of {len(told)} lines tell of a message:\n{log}")
        expect("ERROR" not in log and "panicked" not in log, log)
        sandbox = [line for line in log.splitlines() if "sandbox" in line]
        expect(len(sandbox) == 1, f"{len(sandbox)} lines about the sandbox")
        promised = int(re.search(r"memory: at most (\d+) MiB with 64 connections", log)[1])
        expect(promised * MIB <= MEMORY, f"it may take {promised} MiB")
        print(f"    {sandbox[0]}")
        peak = cgroup_figure(server.pid(), "memory.max_usage_in_bytes", "memory.peak")
        resident, most = server.status("VmRSS")[0], server.status("VmHWM")[0]
        print(f"    after {len(stored)} messages {resident} KiB resident, {most} at most, cached files among the cgroup's {peak}")
        server.ends("podman stop", "podman", "stop", "-t", "5", server.id)
        expect("stopping" in server.log(), server.log())
        expect(not server.inspect("State", "OOMKilled"), "it ran out of memory")

        run("podman", "start", server.id)
        server.ready()
        wait_until(lambda: server.healthy(), "health after a new start")
        more = [(300, 1000)]
        deliver(server.address(), [300], 1000)
        assert_stored(maildir, small + large + more)
        server.ends("SIGINT", "podman", "kill", "-s", "INT", server.id)


def case_fullness(root, _):
    """A full disk refuses mail, and that is what unhealthy means; no line in the log tells of the checks."""
    disk = root / "small-disk"
    disk.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size=16m,uid={NOBODY_KNOWS},gid={NOBODY_KNOWS},mode=700", "none", disk)
    try:
        with container("-p", "127.0.0.1::2525", "-v", f"{disk}:/mail", "-e", "MAILCHUTE_MIN_FREE=4M", *FEW) as server:
            address = server.ready().address()
            deliver(address, [1], 1000)
            expect(server.healthy(), "it is not healthy")
            (disk / "ballast").write_bytes(bytes(13 * MIB))
            wait_until(lambda: not server.healthy(), "the full disk is told")
            expect(reply_to_mail(address) == 452, "mail is taken on a full disk")
            expect("healthcheck" not in server.log() and server.log().count("session=") == 1, server.log())
            (disk / "ballast").unlink()
            wait_until(server.healthy, "the disk with room is told")
            deliver(address, [2], 1000)
            assert_stored(disk / "Maildir", [(1, 1000), (2, 1000)])
            server.ends("podman stop", "podman", "stop", "-t", "5", server.id)
    finally:
        run("umount", disk)


def case_owners(root, _):
    """A directory that is root's is told in a line that helps; with the right owner, or another user, it serves."""
    directory = root / "given"
    directory.mkdir(mode=0o755)
    mounted = ["-v", f"{directory}:/mail", *FEW]
    with container(*mounted) as server:
        wait_until(lambda: not server.inspect("State", "Running"), "the end")
        expect(server.inspect("State", "ExitCode") == 1, "status is not 1")
        lines = server.log().splitlines()
        advice = f"mkdir -p '/mail/Maildir' && chown -R {NOBODY_KNOWS}:{NOBODY_KNOWS} '/mail/Maildir' && chmod 0700 "
        expect(len(lines) >= 1 and advice in lines[-1], server.log())
    os.chown(directory, NOBODY_KNOWS, NOBODY_KNOWS)
    with container(*mounted) as server:
        server.ready()
        expect(server.healthy(), "it is not healthy in a directory of its own")
    other = root / "others"
    other.mkdir(mode=0o700)
    os.chown(other, 12345, 12345)
    with container("--user=12345:12345", "-v", f"{other}:/mail", *FEW) as server:
        server.ready()
        expect((other / "Maildir").stat().st_uid == 12345, "the Maildir is another user's")
        expect(server.healthy(), "it is not healthy as another user")


def case_mailboxes(root, _):
    """Maildirs of recipients lie in the volume beside the one without options, and none can be taken for it."""
    volume = "mailboxes-of-the-test"
    variables = ["MAILBOXES=/mail", "CREATE_MAILBOXES=yes", "DOMAIN=b.example"]
    options = [word for it in variables for word in ("-e", f"MAILCHUTE_{it}")]
    with container("-p", "127.0.0.1::2525", "-v", f"{volume}:/mail", *options, *FEW) as server:
        with smtplib.SMTP(*server.ready().address(), timeout=PATIENCE_SECONDS) as client:
            for recipient in ("maildir", "new", "postmaster"):
                client.sendmail("from@a.example", [f"{recipient}@b.example"], text(1, 1000))
        mail = pathlib.Path(run("podman", "volume", "inspect", volume, "--format", "{{.Mountpoint}}").strip())
        found = {str(it.parent.relative_to(mail)) for it in mail.glob("*/new/*")}
        expect(found == {"maildir/new", "new/new", "postmaster/new"}, f"mail lies in {found}")
        there = {it.name for it in mail.iterdir() if not it.name.startswith(".mailchute-journal.")}
        expect(there == {"Maildir", "maildir", "new", "postmaster"}, f"the volume holds {there}")
        expect(server.healthy(), "it is not healthy")


def case_strangers(root, _):
    """Who comes from a public address is turned away, unless the server has a domain."""
    stranger = "203.0.113.7"  # RFC 5737
    for options, code in (([], b"554"), (["-e", "MAILCHUTE_DOMAIN=b.example"], b"220")):
        with container("--network=none", *options, *FEW) as server:
            server.ready()
            within = ["nsenter", "-t", server.pid(), "-n"]
            run(*within, "ip", "addr", "add", f"{stranger}/32", "dev", "lo")
            connect = "import socket, sys; print(socket.create_connection(('127.0.0.1', 2525), 9, (sys.argv[1], 0)).recv(99))"
            heard = {it: run(*within, sys.executable, "-c", connect, it) for it in (stranger, "127.0.0.1")}
            expect(code.decode() in heard[stranger] and "220" in heard["127.0.0.1"], str(heard))


def case_compose(root, _):
    """compose.yaml as it is."""
    if shutil.which("podman-compose") is None:
        return print("SKIPPED: compose.yaml, as there is no podman-compose")
    if " 1.0." in run("podman-compose", "--version"):
        return print("SKIPPED: compose.yaml, as this podman-compose hands health checks to a shell; 1.1 does not")
    if not memory_options():
        return print("SKIPPED: compose.yaml, whose limit of memory can't be had here")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    compose = ["podman-compose", "-p", "chute", "-f", SOURCE / "compose.yaml"]
    how = {"env": {**os.environ, "PORT": str(port)}, "cwd": SOURCE}
    try:
        run(*compose, "up", "-d", "--no-build", **how)
        [identity] = run("podman", "ps", "-q", "--no-trunc").split()
        server = Container.__new__(Container)
        server.id = identity
        server.ready()
        deliver(("127.0.0.1", port), range(3), 1000)
        expect(server.log().count(" stored id=") == 3 and server.healthy(), server.log())
        config = server.inspect("HostConfig")
        limits = tuple(config[key] for key in ("ReadonlyRootfs", "Memory", "PidsLimit"))
        expect(limits == (True, MEMORY, 16), f"read-only, memory and processes are {limits}")
        expect(server.status("CapEff")[0].strip("0") == "" and server.status("NoNewPrivs") == ["1"], "it has rights")
        expect("at most 15 MiB with 64 connections" in server.log(), server.log())
        server.ends("podman stop", "podman", "stop", server.id)
    finally:
        run(*compose, "down", "-v", status=None, **how)


def case_manifest(root, binaries):
    """One name for three architectures."""
    platforms = {"amd64": "linux/amd64", "arm64": "linux/arm64/v8", "armv7": "linux/arm/v7"}
    missing = [name for name in platforms if not binaries[name]]
    if missing:
        print(f"SKIPPED: no binary for {' and '.join(missing)}, so the manifest has only the others")
    run("buildah", "manifest", "create", "mailchute:all")
    for name, platform in platforms.items():
        if binaries[name]:
            expect_static(binaries[name])
            build(context(root, f"context-{name}", binaries[name]), f"--platform={platform}", "--manifest=mailchute:all")
    # Docker's format once more, or the health check would go.
    run("buildah", "manifest", "push", "--all", "--format=v2s2", "mailchute:all", f"dir:{root}/all")
    manifests = json.loads((root / "all" / "manifest.json").read_text())["manifests"]
    found = {}
    for it in manifests:
        platform = it["platform"]
        found[platform["architecture"] + platform.get("variant", "")] = it["digest"].split(":")[1]
    wanted = {name: key for name, key in (("amd64", "amd64"), ("arm64", "arm64v8"), ("armv7", "armv7")) if binaries[name]}
    expect(sorted(found) == sorted(wanted.values()), str(found))
    # Each has its own program, and the health check.
    for name, key in wanted.items():
        manifest = json.loads((root / "all" / f"{found[key]}.manifest.json").read_text())
        config = json.loads((root / "all" / manifest["config"]["digest"].split(":")[1]).read_text())
        expect(config["config"]["Healthcheck"]["Test"] == ["CMD", "/mailchute", "healthcheck"], f"{name}: {config}")
        layers = [root / "all" / it["digest"].split(":")[1] for it in manifest["layers"]]
        inside = b"".join(run_octets("tar", "-xOf", it, "mailchute") for it in layers)
        expect(inside == pathlib.Path(binaries[name]).read_bytes(), f"{name}: another program")
        print(f"    {key}: {len(inside)} octets of program, {sum(it['size'] for it in manifest['layers'])} in its layers")


def run_octets(*command):
    return subprocess.run([str(word) for word in command], capture_output=True, timeout=60).stdout


def case_source(root, _):
    """The stage that compiles gets all that it needs, and little else."""
    run("buildah", "bud", "--isolation=chroot", "-t", "context", "-f", "-", ".", cwd=SOURCE, input="FROM scratch\nCOPY . /\n")
    name = run("buildah", "from", "context").strip()
    mounted = pathlib.Path(run("buildah", "mount", name).strip())
    # The same place each time, so that nothing is compiled twice.
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", SOURCE / "target")).absolute() / "container"
    source = target / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(mounted, source)
    run("buildah", "rm", name)
    there = sorted(it.name for it in source.iterdir())
    expect(there == ["Cargo.lock", "Cargo.toml", "README.md", "benches", "dist", "src"], str(there))
    expect([it.name for it in (source / "dist").iterdir()] == ["build.rs"], "more of dist/ than is compiled")
    command = "cargo build --release --locked"
    expect(f"RUN {command}\n" in (SOURCE / "Dockerfile").read_text(), f"the Dockerfile does not say {command}")
    if shutil.which("cargo") is None:
        print("SKIPPED: no cargo here, so what the Dockerfile compiles is not compiled")
        return
    # As in the Dockerfile but for the system that it is compiled on.
    run(*command.split(), cwd=source, env={**os.environ, "CARGO_TARGET_DIR": str(target)})


CASES = {name[5:]: it for name, it in globals().items() if name.startswith("case_")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary", help="a static one, for this machine")
    parser.add_argument("--arm64", help="the same for ARM with 64 bits")
    parser.add_argument("--armv7", help="the same for ARM with 32 bits")
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], default=[], metavar="CASE", help=" ".join(CASES))
    options = parser.parse_intermixed_args()
    binaries = {"amd64": options.binary, "arm64": options.arm64, "armv7": options.armv7}
    expect_static(options.binary)
    print("not run here: the Dockerfile's stage that compiles, whose image comes from a registry")
    failures = 0
    with tempfile.TemporaryDirectory(prefix="chute-") as directory:
        root = pathlib.Path(directory)
        root.chmod(0o755)
        engine_settings(root)
        build(context(root, "context", options.binary), f"--tag={IMAGE}")
        for name in options.cases or CASES:
            print(f"{name}: {CASES[name].__doc__.splitlines()[0]}", flush=True)
            started = time.monotonic()
            try:
                CASES[name](root, binaries)
                print(f"    ok, {time.monotonic() - started:.1f} s", flush=True)
            except Exception as problem:
                failures += 1
                print(f"    FAILED: {problem if isinstance(problem, Failed) else traceback.format_exc()}", flush=True)
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
