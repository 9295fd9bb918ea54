// A user of the participant uses Hydrogen in a browser: logs in, accepts an invite to a room of the hub, reads,
// writes, and is written to, in the clear and encrypted.
import assert from "node:assert/strict";
import { openBrowser, serveHydrogen } from "./browser.mjs";
import { ENCRYPTION, eventually, finish, given, logIn, PASSWORD, register, saying, sdk } from "./session.mjs";

const [hub, participant] = given.servers;
await register(hub, "maria");
await register(participant, "jonas");
const maria = await logIn(hub, "maria", { crypto: true });
await maria.setDisplayName("Maria");
const elsewhere = await logIn(participant, "jonas");
await elsewhere.setDisplayName("Jonas");
await elsewhere.logout(true);
const { room_id: roomId } = await maria.createRoom({
  name: "Harbour walk",
  topic: "Every second Sunday",
  invite: [`@jonas:${given.names[1]}`],
});
const browser = await openBrowser(given.chromium, given.profile);
const page = await browser.newPage();
const paths = new Set();
page.on("console", (message) => console.log("page:", message.text()));
page.on("pageerror", (error) => console.log("page error:", error));
page.on("request", (request) => {
  if (request.url().startsWith(participant)) paths.add(new URL(request.url()).pathname);
});
try {
  await page.goto(`${await serveHydrogen()}/?homeserver=${participant}`);
  await page.fill("#username", "jonas");
  await page.fill("#password", PASSWORD);
  await page.click("button[type=submit]");

  // The invite of the other server is in the list; accepting it opens the room.
  const accept = async (roomId, name) => {
    await page.click(`.RoomList >> text=${name}`);
    await page.click("text=Accept");
    await page.waitForSelector(".RoomView .Timeline");
    await eventually("he is in the room", () => maria.getRoom(roomId)?.getJoinedMemberCount() === 2);
  };
  const receive = async (body, where = roomId) => {
    const { event_id: id } = await maria.sendTextMessage(where, body);
    await page.waitForSelector(`.Timeline_message .Timeline_messageBody >> text=${body}`);
    return id;
  };
  const send = async (body, where = roomId) => {
    await page.fill(".MessageComposer_input textarea", body);
    await page.press(".MessageComposer_input textarea", "Enter");
    return saying(maria, where, body);
  };
  await accept(roomId, "Harbour walk");
  await receive("Good morning! Is Sunday still fine for everybody?");
  await send("Good morning Maria. Sunday is perfect, I can bring coffee.");
  await receive("Then let us meet at ten, at the old lighthouse.");

  // A picture, which the browser gets from his server by way of hers, made smaller, and only when logged in.
  const picture = Buffer.from(given.picture, "base64");
  const { content_uri: uri } = await maria.uploadContent(picture, { type: "image/png", name: "lighthouse.png" });
  const info = { mimetype: "image/png", size: picture.length, w: 640, h: 360 };
  await maria.sendImageMessage(roomId, uri, info, "lighthouse.png");
  await page.waitForFunction(() => document.querySelector(".Timeline_messageBody .media img")?.naturalWidth > 0);
  const reply = await send("I will be there. Who brings the cake?");
  assert.equal(reply.getSender(), `@jonas:${given.names[1]}`);
  await maria.sendEvent(roomId, sdk.EventType.Reaction, {
    "m.relates_to": { rel_type: sdk.RelationType.Annotation, event_id: reply.getId(), key: "♥" },
  });
  await page.waitForSelector(".Timeline_messageReactions >> text=♥");
  const last = await receive("Me, of course.");

  // The page is loaded again and goes on where it was; what is shown is read, and Maria sees that.
  await page.reload();
  await page.waitForSelector(".Timeline_messageBody >> text=Me, of course.");
  await eventually("maria sees that he has read it", () =>
    maria.getRoom(roomId).getReadReceiptForUserId(`@jonas:${given.names[1]}`, true)?.eventId === last,
  );
  await page.waitForSelector(".RoomList .badge", { state: "hidden" });
  await page.mouse.move(0, 0);
  await page.screenshot({ path: given.screenshot });

  // An encrypted room, both ways.
  const { room_id: surprise } = await maria.createRoom({
    name: "Surprise party",
    invite: [`@jonas:${given.names[1]}`],
    initial_state: [ENCRYPTION],
  });
  await accept(surprise, "Surprise party");
  const sealed = await send("Nobody else can read this, I hope?", surprise);
  assert.equal(sealed.getWireType(), "m.room.encrypted");
  await receive("Nobody, not even our servers.", surprise);

  // Nothing is left that Hydrogen only believes to have sent.
  await page.waitForFunction(() => !document.querySelector(".Timeline_message.unsent"));
  assert.ok([...paths].every((path) => !path.includes("/client/v3/")), "it was to use r0 only");
} catch (error) {
  console.log("page:", page.url(), (await page.innerText("body")).slice(0, 2000));
  await page.screenshot({ path: given.screenshot });
  throw error;
} finally {
  await browser.close();
}
finish({ paths: [...paths] }, maria);
