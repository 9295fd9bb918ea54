// A headless Chromium that speaks to loopback only, and Hydrogen served to it.
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import path from "node:path";
import { build } from "esbuild";
import { chromium } from "playwright-core";

const here = import.meta.dirname;
const require = createRequire(import.meta.url);
const packageFolder = (name, file) => path.dirname(require.resolve(`${name}${file}`));
const TYPES = {
  ".css": "text/css",
  ".html": "text/html",
  ".js": "text/javascript",
  ".png": "image/png",
  ".svg": "image/svg+xml",
  ".wasm": "application/wasm",
  ".woff2": "font/woff2",
};

// Serve Hydrogen, bundled, from a port of loopback; the address.
export async function serveHydrogen() {
  const sdk = path.dirname(packageFolder("hydrogen-view-sdk", ""));
  const olm = packageFolder("@matrix-org/olm", "");
  const bundled = await build({
    entryPoints: [path.join(here, "hydrogen", "main.mjs")],
    bundle: true,
    format: "esm",
    target: "es2022",
    external: ["crypto", "fs", "path"],
    write: false,
  });
  const fileOf = (name) => {
    if (name === "/" || name === "/index.html") return path.join(here, "hydrogen", "index.html");
    if (name === "/sw.js") return path.join(sdk, "lib-build", "sw.js");
    if (/^\/olm(_legacy)?\.(js|wasm)$/.test(name)) return path.join(olm, name);
    if (/^\/assets\/[\w.-]+$/.test(name)) return path.join(sdk, "asset-build", name);
  };
  const server = createServer(async (request, response) => {
    const name = new URL(request.url, "http://loopback").pathname;
    try {
      const body = name === "/main.js" ? bundled.outputFiles[0].contents : await readFile(fileOf(name));
      response.writeHead(200, { "Content-Type": TYPES[path.extname(name) || ".html"] ?? "application/octet-stream" });
      response.end(body);
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return `http://127.0.0.1:${server.address().port}`;
}

export async function openBrowser(executablePath, profile) {
  const context = await chromium.launchPersistentContext(profile, {
    executablePath,
    headless: true,
    timeout: 120_000,
    viewport: { width: 1080, height: 780 },
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
      "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ],
  });
  context.setDefaultTimeout(120_000);
  return context;
}
