// The whole of Hydrogen, put together as its application does; the homeserver comes in the query.
import { createNavigation, createRouter, FeatureSet, Platform, RootViewModel } from "hydrogen-view-sdk";

const platform = new Platform({
  container: document.body,
  assetPaths: {
    downloadSandbox: "/assets/download-sandbox.html",
    worker: "/assets/main.js",
    serviceWorker: "/sw.js",
    olm: { wasm: "/olm.wasm", legacyBundle: "/olm_legacy.js", wasmBundle: "/olm.js" },
  },
  config: { defaultHomeServer: new URLSearchParams(location.search).get("homeserver") },
  options: { development: false },
});
await platform.init();
const navigation = createNavigation();
platform.setNavigation(navigation);
const urlRouter = createRouter({ navigation, history: platform.history });
const features = await FeatureSet.load(platform.settingsStorage);
urlRouter.attach();
const root = new RootViewModel({ platform, urlRouter, urlCreator: urlRouter, navigation, features });
await root.load();
platform.createAndMountRootView(root);
