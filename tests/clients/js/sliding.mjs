// A user follows her rooms over simplified sliding sync (MSC4186), as telephones do: a window of the room list,
// the room she looks at, invites, typing, receipts, and encrypted messages.
import assert from "node:assert/strict";
import { ENCRYPTION, eventually, finish, given, logIn, register, saying, sdk, sharedRoom } from "./session.mjs";

const { SlidingSync, SlidingSyncEvent } = await import("matrix-js-sdk/lib/sliding-sync.js");
const [hub, participant] = given.servers;
await register(hub, "slide-alice");
await register(participant, "slide-bob");
const alice = await logIn(hub, "slide-alice", { crypto: true });
const home = await logIn(participant, "slide-bob");
const me = home.getUserId();

const oldest = await sharedRoom(alice, home, { name: "Oldest" });
for (const body of ["one", "two", "three"]) await alice.sendTextMessage(oldest, body);
await saying(home, oldest, "three");
const middle = await sharedRoom(alice, home, { name: "Middle" });
const secret = await sharedRoom(alice, home, { name: "Secret", initial_state: [ENCRYPTION] });
await home.logout(true);

// Her telephone sees a window of two rooms of the three, those with the newest messages.
const REQUIRED = ["name", "encryption", "create", "join_rules", "power_levels"].map((type) => [`m.room.${type}`, ""]);
const required_state = [...REQUIRED, ["m.room.member", "$LAZY"], ["m.room.member", "$ME"]];
const list = { ranges: [[0, 1]], timeline_limit: 1, required_state };
let sliding;
const told = new Map(); // room ID -> what the list said of it last
const bob = await logIn(participant, "slide-bob", {
  crypto: true,
  sync: (client) => {
    sliding = new SlidingSync(
      participant, new Map([["all_rooms", list]]), { timeline_limit: 20, required_state }, client, 20_000,
    );
    sliding.on(SlidingSyncEvent.RoomData, (roomId, data) => told.set(roomId, data));
    return { slidingSync: sliding };
  },
});
assert.equal(sliding.getListData("all_rooms").joinedCount, 3);
assert.deepEqual(bob.getRooms().map((room) => room.name).sort(), ["Middle", "Secret"]);
assert.ok(bob.getRoom(secret).hasEncryptionStateEvent());
assert.equal(told.get(middle).initial, true);
assert.equal(told.get(middle).timeline.length, 1);

// The window grows, and the third comes, with its newest message.
sliding.setListRanges("all_rooms", [[0, 9]]);
await eventually("the oldest room comes", () => bob.getRoom(oldest)?.name === "Oldest");
await saying(bob, oldest, "three");
assert.ok(!bob.getRoom(oldest).getLiveTimeline().getEvents().some((event) => event.getContent().body === "two"));

// She opens it: what was before comes, then what is written, typed and read.
sliding.modifyRoomSubscriptions(new Set([oldest]));
for (const body of ["one", "two", "three"]) await saying(bob, oldest, body);
await alice.sendTextMessage(oldest, "while she looks");
const heard = await saying(bob, oldest, "while she looks");
await bob.sendReadReceipt(heard);
await eventually("alice sees that it is read", () =>
  alice.getRoom(oldest).getReadReceiptForUserId(me, true)?.eventId === heard.getId(),
);
await alice.sendTyping(oldest, true, 20_000);
await eventually("alice is typing", () => bob.getRoom(oldest).getMember(alice.getUserId())?.typing);
await bob.sendTextMessage(oldest, "I am here");
const answer = await saying(alice, oldest, "I am here");
await alice.sendReadReceipt(answer);
await eventually("alice has read it", () =>
  bob.getRoom(oldest).getReadReceiptForUserId(alice.getUserId(), true)?.eventId === answer.getId(),
);

// Keys and devices come beside the rooms: she reads and writes encrypted.
await eventually("alice knows the telephone", async () => {
  const devices = await alice.getCrypto().getUserDeviceInfo([me]);
  return devices.get(me)?.has(bob.getDeviceId());
});
await alice.sendTextMessage(secret, "between us");
await saying(bob, secret, "between us");
await bob.sendTextMessage(secret, "so it stays");
const sealed = await saying(alice, secret, "so it stays");
assert.equal(sealed.getWireType(), "m.room.encrypted");

// An invite comes with its name; accepted, the room is one of the list.
const { room_id: invited } = await alice.createRoom({ name: "Newest", invite: [me] });
await eventually("the invite comes", () => bob.getRoom(invited)?.getMyMembership() === "invite");
assert.equal(bob.getRoom(invited).name, "Newest");
await bob.joinRoom(invited);
await eventually("she is in", () => bob.getRoom(invited).getMyMembership() === "join");
await eventually("it is counted", () => sliding.getListData("all_rooms").joinedCount === 4);
await alice.sendTextMessage(invited, "welcome");
await saying(bob, invited, "welcome");
finish({ rooms: bob.getRooms().length }, alice, bob);
