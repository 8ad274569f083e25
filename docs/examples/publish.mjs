// Place one order and know that the broker has it: node publish.mjs KEY COLOR. AMQP_URL names the broker.
import amqp from "amqplib";

const [key, color] = process.argv.slice(2);
const order = {
  idempotency_key: key,
  pool: "comfyui",
  workflow: "solid-invert",
  inputs: { color: Number(color) },
};

const connection = await amqp.connect(process.env.AMQP_URL);
const channel = await connection.createConfirmChannel();
let returned = false;
channel.on("return", () => (returned = true)); // no queue took it; the broker says so before it confirms

channel.publish("orders", "order.placed", Buffer.from(JSON.stringify(order)), {
  type: "order.placed.v1",
  contentType: "application/json",
  persistent: true,
  mandatory: true,
});
await channel.waitForConfirms(); // throws when the broker refuses
await connection.close();

if (returned) throw new Error(`${key} was not placed: publish it again`);
console.log(`confirmed ${key}`);
