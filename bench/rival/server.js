// nodemailer behind fastify, doing the same work: takes POST /send, sends over 16 pooled connections, writes a log
// row a mail, and answers with the relay's verdict, or 202 at once for `Prefer: respond-async`.
//
// node server.js SMTP_PORT LOG_FILE

import { randomUUID } from "node:crypto";
import { createWriteStream } from "node:fs";
import Fastify from "fastify";
import nodemailer from "nodemailer";

const [smtpPort, logFile] = process.argv.slice(2);
const log = createWriteStream(logFile, { flags: "a" });
const transport = nodemailer.createTransport({
  host: "127.0.0.1",
  port: Number(smtpPort),
  secure: false,
  ignoreTLS: true,
  pool: true,
  maxConnections: 16,
  maxMessages: Infinity,
});

const text = { type: "string" };
const body = {
  type: "object",
  required: ["from", "to"],
  additionalProperties: false,
  properties: { from: text, to: text, subject: text, text, html: text },
};

async function send(id, mail) {
  try {
    const info = await transport.sendMail(mail);
    row(id, mail, "sent", info.response);
    return { id, ok: true, state: "sent", message_id: info.messageId, accepted: info.accepted, reply: info.response };
  } catch (error) {
    row(id, mail, "failed", error.message);
    return { id, ok: false, state: "failed", error_code: error.code, message: error.message };
  }
}

function row(id, { to, subject }, state, reply) {
  log.write(`${JSON.stringify({ at: new Date().toISOString(), id, to, subject, state, reply })}\n`);
}

const app = Fastify({ logger: false });

app.post("/send", { schema: { body } }, async (request, reply) => {
  const id = randomUUID();
  const sending = send(id, request.body);
  if (request.headers.prefer === "respond-async") {
    reply.code(202);
    return { id, ok: true, state: "queued" };
  }
  const answer = await sending;
  reply.code(answer.ok ? 200 : 424);
  return answer;
});

app.get("/readyz", async () => ({ status: "pass" }));

process.on("SIGTERM", async () => {
  await app.close();
  transport.close();
  log.end(() => process.exit(0));
});

console.log(`listens on ${await app.listen({ host: "127.0.0.1", port: 0 })}`);
