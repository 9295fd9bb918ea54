// An operator uses the page at /admin: logs in, finds a user, locks and unlocks them, looks at every page.
import assert from "node:assert/strict";
import { openBrowser } from "./browser.mjs";

const given = JSON.parse(process.argv[2]);
const browser = await openBrowser(given.chromium, given.profile);
const page = await browser.newPage();
const problems = [];
page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
page.on("pageerror", (error) => problems.push(String(error)));
try {
  await page.goto(`${given.admin}/admin`);
  await page.fill("input[name=name]", given.name);
  await page.fill("input[name=password]", "not the password");
  await page.click("text=Log in >> nth=-1");
  await page.waitForSelector(".problem");
  problems.length = 0; // the 403 of the wrong password
  await page.fill("input[name=name]", given.name);
  await page.fill("input[name=password]", given.password);
  await page.click("button.strong");

  // Styles apply, nothing else is loaded, and no script of the page could run.
  await page.waitForSelector("header nav a.here");
  assert.equal(await page.evaluate(() => getComputedStyle(document.querySelector("header")).display), "flex");
  assert.equal(await page.locator("script").count(), 0);

  await page.fill("input[name=q]", given.user);
  await page.click("text=Search");
  await page.click("button:text-is('Lock')");
  await page.waitForSelector(".tag:text-is('locked')");
  await page.click("button:text-is('Unlock')");
  await page.waitForSelector("button:text-is('Lock')");

  const texts = {};
  for (const name of ["users", "destinations", "evidence", "reports", "rooms"]) {
    await page.click(`header nav >> text=${name[0].toUpperCase()}${name.slice(1)}`);
    await page.waitForSelector(`header nav a.here[href='/admin/${name}']`);
    texts[name] = await page.innerText("main");
  }
  await page.screenshot({ path: given.screenshot });
  await page.click("text=Log out");
  await page.waitForSelector("input[name=password]");
  await page.goto(`${given.admin}/admin/rooms`);
  assert.ok(page.url().endsWith("/admin/login"));
  assert.deepEqual(problems, []);
  console.log(JSON.stringify({ texts }));
} catch (error) {
  console.log("page:", page.url(), (await page.innerText("body")).slice(0, 2000), problems);
  await page.screenshot({ path: given.screenshot });
  throw error;
} finally {
  await browser.close();
}
