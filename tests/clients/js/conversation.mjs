// What two people do to each other's messages in a day, on two servers: edits, reactions, redactions, typing,
// receipts, read markers, pictures, knocking; and no bar that urges to upgrade the room.
import assert from "node:assert/strict";
import { arrives, eventually, finish, given, logIn, register, saying, sdk } from "./session.mjs";

const { EventType, RelationType, ReceiptType } = sdk;
const [hub, participant] = given.servers;
await register(hub, "talk-alice");
await register(participant, "talk-bob");
const alice = await logIn(hub, "talk-alice");
const bob = await logIn(participant, "talk-bob");

// Bob knocks at Alice's door, is invited in, and both see what the room is called.
const { room_id: roomId } = await alice.createRoom({
  name: "Conversation",
  topic: "All that two people do",
  initial_state: [{ type: "m.room.join_rules", state_key: "", content: { join_rule: "knock" } }],
});
await bob.knockRoom(roomId, { reason: "I bring cake", viaServers: [alice.getDomain()] });
const atTheDoor = await eventually("the knock comes", () => {
  const member = alice.getRoom(roomId)?.getMember(bob.getUserId());
  return member?.membership === "knock" && member;
});
assert.equal(atTheDoor.events.member.getContent().reason, "I bring cake");
await alice.invite(roomId, bob.getUserId());
await eventually("bob is invited", () => bob.getRoom(roomId)?.getMyMembership() === "invite");
await bob.joinRoom(roomId);
await eventually("bob sees the name", () => bob.getRoom(roomId)?.name === "Conversation");
for (const client of [alice, bob]) {
  const { needsUpgrade, urgent } = await client.getRoom(roomId).getRecommendedVersion();
  assert.ok(!needsUpgrade && !urgent, "the client urges to upgrade the room");
}

// What the room does not let him do is refused, so that his client says so. It believes the maker of a room
// of a version it does not know to be all-powerful, so hers may show what she would be refused as well.
await assert.rejects(bob.setRoomName(roomId, "Mine"), { httpStatus: 403, errcode: "M_FORBIDDEN" });
const makersPower = alice.getRoom(roomId).getMember(alice.getUserId()).powerLevel;

// A message of one, edited; a reaction of the other.
const { event_id: first } = await alice.sendTextMessage(roomId, "Helo");
await saying(bob, roomId, "Helo");
await alice.sendEvent(roomId, EventType.RoomMessage, {
  msgtype: "m.text",
  body: "* Hello",
  "m.new_content": { msgtype: "m.text", body: "Hello" },
  "m.relates_to": { rel_type: RelationType.Replace, event_id: first },
});
await saying(bob, roomId, "Hello");
const { event_id: reaction } = await bob.sendEvent(roomId, EventType.Reaction, {
  "m.relates_to": { rel_type: RelationType.Annotation, event_id: first, key: "👋" },
});
await arrives(alice, roomId, "the reaction", (event) => event.getId() === reaction);
const aggregated = await alice.relations(roomId, first, RelationType.Annotation, EventType.Reaction);
assert.deepEqual(aggregated.events.map((event) => event.getRelation().key), ["👋"]);
const edits = await bob.relations(roomId, first, RelationType.Replace, EventType.RoomMessage);
assert.equal(edits.events.length, 1);

// Typing and receipts of the other server.
await bob.sendTyping(roomId, true, 20_000);
await eventually("alice sees bob typing", () => alice.getRoom(roomId).getMember(bob.getUserId()).typing);
await bob.sendTyping(roomId, false, 0);
const { event_id: answer } = await bob.sendTextMessage(roomId, "Hello yourself");
await eventually("it stops", () => !alice.getRoom(roomId).getMember(bob.getUserId()).typing);
const arrived = await saying(alice, roomId, "Hello yourself");
await eventually("alice has one unread", () => alice.getRoom(roomId).getUnreadNotificationCount() >= 1);
await alice.sendReadReceipt(arrived);
await eventually("it is read", () => alice.getRoom(roomId).getUnreadNotificationCount() === 0);
await eventually("bob sees that alice has read it", () =>
  bob.getRoom(roomId).getReadReceiptForUserId(alice.getUserId(), true)?.eventId === answer,
);
await alice.setRoomReadMarkers(roomId, answer, undefined, arrived);
await eventually("the marker comes back", () =>
  alice.getRoom(roomId).getAccountData("m.fully_read")?.getContent().event_id === answer,
);

// What is taken back is gone for both.
await alice.sendTextMessage(roomId, "I should not have said this");
const regretted = await saying(bob, roomId, "I should not have said this");
await alice.redactEvent(roomId, regretted.getId(), undefined, { reason: "regret" });
await eventually("it is gone for bob", () => regretted.isRedacted());
assert.deepEqual(regretted.getContent(), {});

// A picture, over federation and behind authentication.
const picture = Buffer.from(given.picture, "base64");
const { content_uri: uri } = await alice.uploadContent(picture, { type: "image/png", name: "lighthouse.png" });
await alice.sendImageMessage(roomId, uri, { mimetype: "image/png", size: picture.length }, "lighthouse.png");
const shown = await saying(bob, roomId, "lighthouse.png");
const fetchAs = (client, url) =>
  fetch(url, { headers: { Authorization: `Bearer ${client.getAccessToken()}` } });
const url = bob.mxcUrlToHttp(shown.getContent().url, undefined, undefined, undefined, false, true, true);
const downloaded = await fetchAs(bob, url);
assert.equal(downloaded.status, 200);
assert.equal(downloaded.headers.get("content-type"), "image/png");
assert.ok(picture.equals(Buffer.from(await downloaded.arrayBuffer())), "the picture came changed");
assert.equal((await fetch(url)).status, 401);

// A new name is seen in the room.
await bob.setDisplayName("Bob of the other server");
await eventually("alice sees the new name", () =>
  alice.getRoom(roomId).getMember(bob.getUserId()).name.startsWith("Bob of the other server"),
);
finish({ answer, makersPower: String(makersPower) }, alice, bob);
