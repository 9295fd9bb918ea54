// Two users on two servers write to each other encrypted; one proves who he is with cross-signing.
import assert from "node:assert/strict";
import { given, logIn, register, saying, eventually, finish, PASSWORD } from "./session.mjs";

const [hub, participant] = given.servers;
await register(hub, "js-alice");
await register(participant, "js-bob");
const store = {};
const alice = await logIn(hub, "js-alice", { crypto: true });
const bob = await logIn(participant, "js-bob", { crypto: true, store });

// Cross-signing, secret storage of Bob.
const crypto = bob.getCrypto();
const authUploadDeviceSigningKeys = async (send) => {
  await send({
    type: "m.login.password",
    identifier: { type: "m.id.user", user: bob.getUserId() },
    password: PASSWORD,
  });
};
await crypto.bootstrapCrossSigning({ authUploadDeviceSigningKeys });
await crypto.bootstrapSecretStorage({
  createSecretStorageKey: () => crypto.createRecoveryKeyFromPassphrase(),
  setupNewSecretStorage: true,
});
assert.ok(await crypto.isCrossSigningReady(), "cross-signing is not ready");
assert.ok(await crypto.isSecretStorageReady(), "secret storage is not ready");

// A room encrypted from its first message.
const { room_id: roomId } = await alice.createRoom({
  name: "Encrypted",
  invite: [bob.getUserId()],
  initial_state: [
    { type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } },
  ],
});
await eventually("the invite comes", () => bob.getRoom(roomId)?.getMyMembership() === "invite");
await bob.joinRoom(roomId);
await eventually("both are members", () => alice.getRoom(roomId)?.getJoinedMemberCount() === 2);
await eventually("bob knows it is encrypted", () => bob.getRoom(roomId)?.hasEncryptionStateEvent());
await alice.sendTextMessage(roomId, "do you read me?");
await saying(bob, roomId, "do you read me?");
await bob.sendTextMessage(roomId, "loud and clear");
const answer = await saying(alice, roomId, "loud and clear");
assert.ok(answer.isEncrypted());
assert.equal(answer.getWireType(), "m.room.encrypted");
assert.ok(!("body" in answer.getWireContent()), "the message went in the clear");

// Alice sees over federation that Bob's device is signed by him.
const seen = await alice.getCrypto().getDeviceVerificationStatus(bob.getUserId(), bob.getDeviceId());
assert.ok(seen.signedByOwner, "the device is not cross-signed for others");

finish({ verified: seen.signedByOwner }, alice, bob);
