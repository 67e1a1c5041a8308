// Nodemailer's smtp-server as one uses it: ADDRESS PORT MAILDIR always|never
const fs = require("fs");
const path = require("path");
const { SMTPServer } = require("smtp-server");

const [address, port, maildir, sync] = process.argv.slice(2);
const [tmp, neu] = ["tmp", "new"].map((name) => path.join(maildir, name));
for (const name of [tmp, neu]) fs.mkdirSync(name, { recursive: true });
const directory = fs.openSync(neu, "r");
let sequence = 0;

async function save(stream, session) {
    const chunks = [`Return-Path: <${session.envelope.mailFrom.address}>\nReceived: from ${session.remoteAddress}\n`];
    for await (const chunk of stream) chunks.push(chunk);
    const content = Buffer.concat(chunks.map((chunk) => Buffer.from(chunk)));
    const name = `${Date.now()}Q${++sequence}.node`;
    const file = await fs.promises.open(path.join(tmp, name), "wx");
    await file.writeFile(content);
    if (sync === "always") await file.datasync();
    await file.close();
    await fs.promises.rename(path.join(tmp, name), path.join(neu, name));
    if (sync === "always") await new Promise((done, fail) => fs.fsync(directory, (e) => (e ? fail(e) : done())));
}

new SMTPServer({
    authOptional: true,
    disabledCommands: ["AUTH", "STARTTLS"],
    disableReverseLookup: true,
    logger: false,
    onData: (stream, session, reply) => save(stream, session).then(() => reply(null, "Stored"), reply),
}).listen(Number(port), address);
