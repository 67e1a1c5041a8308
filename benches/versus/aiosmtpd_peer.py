"""aiosmtpd as one uses it, with uvloop where that is installed: ADDRESS PORT MAILDIR always|never"""

import asyncio
import os
import sys
import time

from aiosmtpd.smtp import SMTP

address, port, maildir, sync = sys.argv[1:]
durable = sync == "always"
tmp, new = (os.path.join(maildir, name) for name in ("tmp", "new"))


class Handler:
    sequence = 0

    async def handle_DATA(self, server, session, envelope):
        Handler.sequence += 1
        name = f"{time.time():.6f}Q{Handler.sequence}.aiosmtpd"
        header = f"Return-Path: <{envelope.mail_from}>\nReceived: from {session.peer[0]}\n\tby bench\n".encode()
        with open(os.path.join(tmp, name), "xb") as file:
            file.write(header + envelope.content.replace(b"\r\n", b"\n"))
            file.flush()
            if durable:
                os.fdatasync(file.fileno())
        os.rename(os.path.join(tmp, name), os.path.join(new, name))
        if durable:
            os.fsync(directory)
        return "250 2.0.0 Stored"


for path in (tmp, new):
    os.makedirs(path, exist_ok=True)
directory = os.open(new, os.O_RDONLY)
try:
    import uvloop

    loop = uvloop.new_event_loop()
except ImportError:
    loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)
loop.run_until_complete(loop.create_server(lambda: SMTP(Handler(), hostname="bench", loop=loop), address, int(port)))
loop.run_forever()
