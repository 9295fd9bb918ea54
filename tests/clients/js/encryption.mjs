// Two users on two servers write to each other encrypted; one proves who he is with cross-signing, and reads
// everything again on a second device, from the key backup.
import assert from "node:assert/strict";
import { ENCRYPTION, eventually, finish, given, logIn, PASSWORD, register, saying, sharedRoom } from "./session.mjs";

const [hub, participant] = given.servers;
await register(hub, "js-alice");
await register(participant, "js-bob");
const store = {};
const alice = await logIn(hub, "js-alice", { crypto: true });
const bob = await logIn(participant, "js-bob", { crypto: true, store });

// Cross-signing, secret storage and key backup of Bob.
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
  setupNewKeyBackup: true,
});
assert.ok(await crypto.isCrossSigningReady(), "cross-signing is not ready");
assert.ok(await crypto.isSecretStorageReady(), "secret storage is not ready");
const version = await eventually("a backup is active", () => crypto.getActiveSessionBackupVersion());

// A room encrypted from its first message.
const roomId = await sharedRoom(alice, bob, { name: "Encrypted", initial_state: [ENCRYPTION] });
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

// Every session is in the backup; a second device reads with it what it was never sent.
await eventually("the sessions are backed up", async () => {
  const info = await bob.http.authedRequest("GET", "/room_keys/version");
  return info.version === version && info.count >= 2;
});
bob.stopClient();
const second = await logIn(participant, "js-bob", { crypto: true, store });
assert.ok(await second.getCrypto().userHasCrossSigningKeys(bob.getUserId(), true));
await second.getCrypto().bootstrapCrossSigning({});
await second.getCrypto().checkKeyBackupAndEnable();
await second.getCrypto().loadSessionBackupPrivateKeyFromSecretStorage();
const restored = await second.getCrypto().restoreKeyBackup();
assert.ok(restored.imported >= 2 && restored.imported === restored.total, JSON.stringify(restored));
await saying(second, roomId, "do you read me?");
await saying(second, roomId, "loud and clear");
assert.ok(await second.getCrypto().isCrossSigningReady(), "the second device is not cross-signed");

// Alice writes to the new device too.
await eventually("alice knows the new device", async () => {
  const devices = await alice.getCrypto().getUserDeviceInfo([bob.getUserId()]);
  return devices.get(bob.getUserId())?.has(second.getDeviceId());
});
await alice.sendTextMessage(roomId, "welcome on your new telephone");
await saying(second, roomId, "welcome on your new telephone");
finish({ restored }, alice, bob, second);
