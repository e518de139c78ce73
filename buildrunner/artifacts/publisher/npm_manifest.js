// Writes the manifest that npm sends when it publishes a package.
// Arguments: the packed package, the file to write.
const { writeFileSync, realpathSync } = require("node:fs");
const { createRequire } = require("node:module");
const path = require("node:path");

const [packed, written] = process.argv.slice(2);
const npm = createRequire(realpathSync(path.join(path.dirname(process.execPath), "npm")));
npm("pacote")
  .manifest(`file:${packed}`, { fullMetadata: true, fullReadJson: true })
  .then(({ _from, _resolved, _integrity, ...manifest }) => {
    manifest._nodeVersion = process.versions.node;
    manifest._npmVersion = npm("../package.json").version;
    writeFileSync(written, JSON.stringify(manifest));
  })
  .catch((error) => {
    console.error(`npm error ${error.message}`);
    process.exitCode = 1;
  });
