// what is written with ws and pg: LISTEN, a set of sockets for each record, send
import pg from "pg";
import { WebSocketServer } from "ws";

const client = new pg.Client({ connectionString: process.env.DATABASE_URL });
await client.connect();
await client.query("listen listings");

const rooms = new Map();
const server = new WebSocketServer({ host: "127.0.0.1", port: Number(process.env.PORT), backlog: 4096 });
server.on("connection", (socket) => {
  socket.on("message", (message) => {
    const room = String(message);
    if (!rooms.has(room)) rooms.set(room, new Set());
    rooms.get(room).add(socket);
    socket.on("close", () => rooms.get(room).delete(socket));
    socket.send("subscribed");
  });
  socket.on("error", () => socket.terminate());
});

client.on("notification", ({ payload }) => {
  for (const socket of rooms.get(JSON.parse(payload).id) ?? []) socket.send(payload);
});
