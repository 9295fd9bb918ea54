// Finding and furnishing rooms across two servers: the public list, aliases, scrolling up to before one joined,
// search, spaces, tags, ignored users, people found by name, and a room replaced by a newer one.
import assert from "node:assert/strict";
import { eventually, finish, given, logIn, register, saying, sdk } from "./session.mjs";

const { Direction, Preset, RoomType, Visibility } = sdk;
const [hub, participant] = given.servers;
await register(hub, "find-alice");
await register(participant, "find-bob");
const alice = await logIn(hub, "find-alice");
const bob = await logIn(participant, "find-bob");
await alice.setDisplayName("Alexandra Findable");

// A public room with a past, in a space.
const { room_id: spaceId } = await alice.createRoom({
  name: "The house",
  preset: Preset.PublicChat,
  creation_content: { type: RoomType.Space },
});
const { room_id: roomId } = await alice.createRoom({
  name: "Library of clients",
  topic: "Books about books",
  preset: Preset.PublicChat,
  visibility: Visibility.Public,
  room_alias_name: "library-of-clients",
});
await alice.sendStateEvent(spaceId, "m.space.child", { via: [alice.getDomain()] }, roomId);
const said = [];
for (let page = 1; page <= 40; page++) {
  said.push(`page ${page} of the catalogue`);
  await alice.sendTextMessage(roomId, said.at(-1));
}

// Bob finds it in the list of the other server, looks into the space, and joins by the room's alias.
const listed = await bob.publicRooms({
  server: alice.getDomain(), limit: 10, filter: { generic_search_term: "of clients" },
});
assert.deepEqual(listed.chunk.map((room) => [room.room_id, room.name, room.num_joined_members]), [
  [roomId, "Library of clients", 1],
]);
await bob.joinRoom(spaceId, { viaServers: [alice.getDomain()] });
const { rooms } = await bob.getRoomHierarchy(spaceId, 10, 2);
assert.deepEqual(rooms.map((room) => room.name), ["The house", "Library of clients"]);
await bob.joinRoom(`#library-of-clients:${alice.getDomain()}`);
const library = await eventually("bob is in the library", () => bob.getRoom(roomId));
assert.equal(library.getCanonicalAlias(), `#library-of-clients:${alice.getDomain()}`);

// He scrolls up to before he joined, as far as there is anything.
const bodies = () => library.getLiveTimeline().getEvents().map((event) => event.getContent().body).filter(Boolean);
for (let turn = 0; turn < 20 && library.oldState.paginationToken !== null; turn++) await bob.scrollback(library, 10);
assert.deepEqual(bodies(), said);
assert.equal(library.getLiveTimeline().getEvents()[0].getType(), "m.room.create");

// A message found by its words opens where it stands.
const wanted = await eventually("the search finds the page", async () => {
  const found = await alice.searchRoomEvents({ term: "catalogue 17" });
  return found.results.length === 1 && found.results[0].context.getEvent();
});
assert.equal(wanted.getContent().body, "page 17 of the catalogue");
const around = await bob.getEventTimeline(library.getUnfilteredTimelineSet(), wanted.getId());
assert.ok(around.getEvents().some((event) => event.getId() === wanted.getId()));
const { event_id: at } = await alice.timestampToEvent(roomId, wanted.getTs(), Direction.Backward);
assert.equal(at, wanted.getId());

// People who share a room find each other by name.
const people = await eventually("bob finds alice", async () => {
  const { results } = await bob.searchUserDirectory({ term: "findable" });
  return results.length && results;
});
assert.deepEqual(people.map((person) => person.user_id), [alice.getUserId()]);

// Tags and ignored users are the account's: another device of his has them.
await bob.setRoomTag(roomId, "m.favourite", { order: 0.5 });
await bob.setIgnoredUsers([alice.getUserId()]);
const tablet = await logIn(participant, "find-bob");
assert.equal(tablet.getRoom(roomId).tags["m.favourite"].order, 0.5);
assert.ok(tablet.isUserIgnored(alice.getUserId()));
await bob.setIgnoredUsers([]);
assert.ok((await bob.getOpenIdToken()).access_token);

// The room is replaced: he is shown the way to the new one.
const version = (await alice.getCapabilities())["m.room_versions"].default;
const { replacement_room: newId } = await alice.upgradeRoom(roomId, version);
const tombstone = await eventually("bob sees the tombstone", () =>
  library.currentState.getStateEvents("m.room.tombstone", ""),
);
assert.equal(tombstone.getContent().replacement_room, newId);
await bob.joinRoom(newId, { viaServers: [alice.getDomain()] });
const successor = await eventually("bob is in the new room", () => bob.getRoom(newId));
assert.equal(successor.findPredecessor().roomId, roomId);
assert.equal(successor.name, "Library of clients");
assert.ok(!bob.getVisibleRooms().includes(library), "the old room is still shown");
await alice.sendTextMessage(newId, "mind the step");
await saying(bob, newId, "mind the step");
finish({ read: bodies().length }, alice, bob, tablet);
