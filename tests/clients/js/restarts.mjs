// Servers are killed under their users and start again: nobody is logged out, nothing is lost, nothing comes twice.
import assert from "node:assert/strict";
import { ask, ENCRYPTION, finish, given, logIn, register, saying, sdk, sharedRoom } from "./session.mjs";

const [hub, participant] = given.servers;
await register(hub, "stay-alice");
await register(participant, "stay-bob");
const alice = await logIn(hub, "stay-alice", { crypto: true });
const bob = await logIn(participant, "stay-bob", { crypto: true });
for (const client of [alice, bob]) {
  client.on(sdk.HttpApiEvent.SessionLoggedOut, () => console.log("LOGGED OUT", client.getUserId()) || process.exit(1));
}
const roomId = await sharedRoom(alice, bob, { name: "Through thick and thin", initial_state: [ENCRYPTION] });
// Keys are exchanged while both are there: one-time keys of a server that is away cannot be had.
await alice.sendTextMessage(roomId, "are you there?");
await saying(bob, roomId, "are you there?");
await bob.sendTextMessage(roomId, "always");
await saying(alice, roomId, "always");

// The hub dies. What Bob writes meanwhile waits, and arrives once the hub is back.
await ask("kill hub");
const waiting = bob.sendTextMessage(roomId, "into the silence");
await ask("start hub");
alice.retryImmediately();
await waiting;
await saying(alice, roomId, "into the silence");

// Bob's server dies. What Alice writes meanwhile is there when it is back.
await ask("kill participant");
await alice.sendTextMessage(roomId, "while you were away");
await ask("start participant");
bob.retryImmediately();
await saying(bob, roomId, "while you were away");
await bob.sendTextMessage(roomId, "and here I am");
await saying(alice, roomId, "and here I am");

const expected = ["are you there?", "always", "into the silence", "while you were away", "and here I am"];
for (const client of [alice, bob]) {
  const events = client.getRoom(roomId).getLiveTimeline().getEvents();
  assert.deepEqual(events.map((event) => event.getContent().body).filter(Boolean), expected);
}
finish({ messages: expected.length }, alice, bob);
