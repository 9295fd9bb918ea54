// A thread that two users on two servers write in: its summary, its list, its unread counts and receipts.
import assert from "node:assert/strict";
import { eventually, finish, given, logIn, register, saying, sdk, sharedRoom } from "./session.mjs";

const { EventType, NotificationCountType, RelationType } = sdk;
const [hub, participant] = given.servers;
await register(hub, "thread-alice");
await register(participant, "thread-bob");
const alice = await logIn(hub, "thread-alice");
const bob = await logIn(participant, "thread-bob");
const roomId = await sharedRoom(alice, bob, { name: "Threads" });
const { event_id: root } = await alice.sendTextMessage(roomId, "Where shall we eat?");
const asked = await saying(bob, roomId, "Where shall we eat?");
bob.getRoom(roomId).createThread(root, asked, [], true);

const reply = (client, body) =>
  client.sendEvent(roomId, root, EventType.RoomMessage, {
    msgtype: "m.text",
    body,
    "m.relates_to": { rel_type: RelationType.Thread, event_id: root },
  });
await reply(bob, "At the harbour");
await reply(bob, "Or at home");
const thread = await eventually("alice sees the thread", () => {
  const found = alice.getRoom(roomId).getThread(root);
  return found?.length === 2 && found;
});
await eventually("its newest reply is known", () => thread.replyToEvent?.getContent().body === "Or at home");

// Unread counts are the thread's own.
const unread = (kind) => alice.getRoom(roomId).getThreadUnreadNotificationCount(root, kind);
await eventually("the thread has two unread", () => unread(NotificationCountType.Total) === 2);
await alice.sendReadReceipt(thread.replyToEvent);
await eventually("the thread is read", () => unread(NotificationCountType.Total) === 0);
await eventually("bob sees alice's receipt in the thread", () => {
  const receipt = bob.getRoom(roomId).getThread(root)?.getReadReceiptForUserId(alice.getUserId(), true);
  return receipt?.eventId === thread.replyToEvent.getId();
});
await reply(bob, `At home, ${alice.getUserId()}?`);
await eventually("a mention of alice is one unread", () => unread(NotificationCountType.Total) === 1);

// The list of threads, from the server, as a client that comes later opens it.
const later = await logIn(hub, "thread-alice");
const room = await eventually("the room is there", () => later.getRoom(roomId));
await room.createThreadsTimelineSets();
await room.fetchRoomThreads();
const listed = room.getThreads();
assert.deepEqual(listed.map((one) => one.id), [root]);
assert.equal(listed[0].length, 3);
assert.equal(listed[0].rootEvent.getServerAggregatedRelation(RelationType.Thread)?.count, 3);
finish({ replies: listed[0].length }, alice, bob, later);
