// Keep a file per order with its newest event: node follow.mjs FOLDER. AMQP_URL names the broker. Runs until stopped.
import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import amqp from "amqplib";

const [folder] = process.argv.slice(2);
const queue = "node-example.order-events"; // yours: one per system that wants every event

// The folder stands for your database. A repeat and a late, older event change nothing.
function save(event) {
  const file = join(folder, `${event.task_id}.json`);
  const known = existsSync(file) ? JSON.parse(readFileSync(file, "utf8")).version : 0;
  if (event.version <= known) return;
  writeFileSync(`${file}.new`, JSON.stringify(event));
  renameSync(`${file}.new`, file); // the commit
}

// What was not acked comes back when whoever watches this process starts it again.
function stop(why) {
  console.error(why ?? "the connection ended");
  process.exit(1);
}

const connection = await amqp.connect(process.env.AMQP_URL);
const channel = await connection.createChannel();
connection.on("close", stop);
channel.on("handler-error", stop); // amqplib's name for an exception in the function given to consume
await channel.assertQueue(queue, { durable: true, arguments: { "x-queue-type": "quorum" } });
for (const status of ["processing", "completed", "failed", "cancelled"]) {
  await channel.bindQueue(queue, "events", `order.${status}`);
}
await channel.prefetch(50);
await channel.consume(queue, (message) => {
  if (message === null) throw new Error("the queue was deleted");
  save(JSON.parse(message.content));
  channel.ack(message); // last: killed before this line, the event comes again
});
console.log("listening");
