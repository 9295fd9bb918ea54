// What every script on matrix-js-sdk needs: users logged in by password, and waiting for what arrives.

import { createInterface } from "node:readline";

// Node 20 lacks it; the SDK declares Node 22.
Promise.withResolvers ??= function () {
  let resolve, reject;
  const promise = new Promise((...both) => ([resolve, reject] = both));
  return { promise, resolve, reject };
};

// The answer alone goes to standard output; what the SDK thinks goes with the errors.
console.log = console.info = console.debug = console.trace = console.error;
const sdk = await import("matrix-js-sdk");

export { sdk };
export const PASSWORD = "correct horse battery staple";
export const given = JSON.parse(process.argv[2]);

// Register a user on a server.
export async function register(baseUrl, name) {
  const client = sdk.createClient({ baseUrl });
  const auth = { type: "m.login.dummy" };
  await client.registerRequest({ username: name, password: PASSWORD, auth, inhibit_login: true });
}

// A new device of a registered user, following /sync. `store` keeps the key of secret storage, as a careful user
// would; `sync` gives options of startClient for the client.
export async function logIn(baseUrl, name, { crypto = false, store = {}, sync = () => ({}), ...options } = {}) {
  const opener = sdk.createClient({ baseUrl });
  const identifier = { type: "m.id.user", user: name };
  const login = await opener.loginRequest({ type: "m.login.password", identifier, password: PASSWORD });
  const client = sdk.createClient({
    baseUrl,
    userId: login.user_id,
    deviceId: login.device_id,
    accessToken: login.access_token,
    timelineSupport: true,
    cryptoCallbacks: {
      getSecretStorageKey: async ({ keys }) => {
        const id = Object.keys(keys).find((known) => store[known]);
        return id ? [id, store[id]] : null;
      },
      cacheSecretStorageKey: (id, _info, key) => (store[id] = key),
    },
    ...options,
  });
  if (crypto) await client.initRustCrypto({ useIndexedDB: false });
  await client.startClient({ initialSyncLimit: 20, threadSupport: true, lazyLoadMembers: true, ...sync(client) });
  await eventually(`${name} syncs`, () => client.isInitialSyncComplete());
  return client;
}

// State a room is created with to be encrypted from its first message.
export const ENCRYPTION = {
  type: "m.room.encryption",
  state_key: "",
  content: { algorithm: "m.megolm.v1.aes-sha2" },
};

// A room of a host that a guest has been invited to and has joined, as both know; its ID.
export async function sharedRoom(host, guest, options) {
  const { room_id: roomId } = await host.createRoom({ invite: [guest.getUserId()], ...options });
  await eventually("the invite comes", () => guest.getRoom(roomId)?.getMyMembership() === "invite");
  await guest.joinRoom(roomId);
  await eventually("both are members", () => host.getRoom(roomId)?.getJoinedMemberCount() === 2);
  if (options.initial_state?.includes(ENCRYPTION)) {
    await eventually("the guest knows that it is encrypted", () =>
      guest.getCrypto()?.isEncryptionEnabledInRoom(roomId) ?? guest.getRoom(roomId)?.hasEncryptionStateEvent(),
    );
  }
  return roomId;
}

// What `check` gives as soon as it is neither false nor missing.
export async function eventually(what, check, seconds = 120) {
  const deadline = Date.now() + seconds * 1000;
  for (;;) {
    const found = await check();
    if (found) return found;
    if (Date.now() > deadline) throw new Error(`did not happen in ${seconds} s: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 30));
  }
}

// The event of a client's room that `check` accepts, decrypted if it can be.
export function arrives(client, roomId, what, check) {
  return eventually(`${client.getUserId()} sees ${what}`, () =>
    client.getRoom(roomId)?.getLiveTimeline().getEvents().find(check),
  );
}

export function saying(client, roomId, body) {
  return arrives(client, roomId, body, (event) => event.getContent().body === body);
}

// Have the test do something outside, such as stopping a server, and wait until it is done.
const answers = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
export async function ask(what) {
  process.stdout.write(what + "\n");
  const { value } = await answers.next();
  if (value !== what) throw new Error(`the test did not ${what}: ${value}`);
}

// Say what came of it and end: the SDK leaves timers behind.
export function finish(answer, ...clients) {
  for (const client of clients) client.stopClient();
  process.stdout.write(JSON.stringify(answer) + "\n", () => process.exit(0));
}
