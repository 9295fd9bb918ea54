// The life of an account: the server found, an account made, devices named and ended, the password changed, the
// account closed. Where the server wants proof of who one is, the SDK's own InteractiveAuth gives it.
import assert from "node:assert/strict";
import { finish, given, logIn, PASSWORD, sdk } from "./session.mjs";

const [hub] = given.servers;
const found = await sdk.AutoDiscovery.fromDiscoveryConfig({ "m.homeserver": { base_url: hub } });
assert.equal(found["m.homeserver"].state, sdk.AutoDiscovery.SUCCESS, JSON.stringify(found));

// Go through the stages the server asks for, until the request is let through.
async function prove(client, request, name, password) {
  const stages = [];
  const auth = new sdk.InteractiveAuth({
    matrixClient: client,
    doRequest: (proof) => request(proof ?? undefined),
    busyChanged: () => {},
    stateUpdated: (stage) => {
      stages.push(stage);
      const session = auth.getSessionId();
      const identifier = { type: "m.id.user", user: name };
      auth.submitAuthDict({ type: stage, session, ...(stage === "m.login.password" && { identifier, password }) });
    },
    requestEmailToken: () => Promise.reject(new Error("no e-mail")),
  });
  return [await auth.attemptAuth(), stages];
}

const opener = sdk.createClient({ baseUrl: hub });
assert.equal(await opener.isUsernameAvailable("account-eve"), true);
const [made] = await prove(opener, (auth) =>
  opener.registerRequest({ username: "account-eve", password: PASSWORD, auth: auth ?? {}, inhibit_login: true }),
);
assert.equal(await opener.isUsernameAvailable("account-eve"), false);

// Two devices; one is named, one ended from the other, which proves who it is.
const eve = await logIn(hub, "account-eve");
const lost = await logIn(hub, "account-eve");
await eve.setDeviceDetails(eve.getDeviceId(), { display_name: "Eve's desk" });
const { devices } = await eve.getDevices();
assert.equal(devices.length, 2);
assert.equal(devices.find((device) => device.device_id === eve.getDeviceId()).display_name, "Eve's desk");
let ended = false;
lost.on(sdk.HttpApiEvent.SessionLoggedOut, () => (ended = true));
const [, asked] = await prove(eve, (auth) => eve.deleteDevice(lost.getDeviceId(), auth), "account-eve", PASSWORD);
assert.deepEqual(asked, ["m.login.password"]);
await assert.rejects(lost.whoami(), { errcode: "M_UNKNOWN_TOKEN" });
assert.ok(ended, "the lost device does not say that it is logged out");

// A new password: the old one is of no use, other devices are logged out if that is asked for.
await prove(eve, (auth) => eve.setPassword(auth, "a better password", false), "account-eve", PASSWORD);
await assert.rejects(logIn(hub, "account-eve"), { errcode: "M_FORBIDDEN" });
assert.equal((await eve.whoami()).user_id, made.user_id);

// Closed, it stays closed.
await prove(eve, (auth) => eve.deactivateAccount(auth), "account-eve", "a better password");
await assert.rejects(eve.whoami(), { errcode: "M_UNKNOWN_TOKEN" });
const identifier = { type: "m.id.user", user: "account-eve" };
await assert.rejects(
  opener.loginRequest({ type: "m.login.password", identifier, password: "a better password" }),
  { httpStatus: 403 },
);
finish({ user: made.user_id }, eve, lost);
