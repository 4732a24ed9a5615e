// what is written with socket.io and pg: LISTEN, a room for each record, emit
import { createServer } from "node:http";
import pg from "pg";
import { Server } from "socket.io";

const client = new pg.Client({ connectionString: process.env.DATABASE_URL });
await client.connect();

const http = createServer();
// no pings while something is measured: the others send none either
const io = new Server(http, { transports: ["websocket"], pingInterval: 600_000, pingTimeout: 600_000 });
io.on("connection", (socket) => {
  socket.on("subscribe", (room, done) => {
    socket.join(room);
    done("subscribed");
  });
});

client.on("notification", ({ payload }) => {
  const row = JSON.parse(payload);
  io.to(row.id).emit("data:update", row);
});
await client.query("listen listings");
http.listen({ host: "127.0.0.1", port: Number(process.env.PORT), backlog: 4096 });
