#!/bin/sh
# Lint openapi.json with Redocly CLI, by redocly.yaml. Skipped, with a word, where node or the package is not there.
set -eu
package=@redocly/cli@2.77.0 # needs node 20.19 or 22.12 and later

skip() {
  echo "openapi.json is not linted: $1"
  exit 0
}

command -v npx >/dev/null || skip "there is no node"
node -e 'const [major, minor] = process.versions.node.split(".").map(Number);
process.exit(major > 22 || (major === 22 && minor >= 12) || (major === 20 && minor >= 19) ? 0 : 1)' ||
  skip "node $(node --version) is too old"
export REDOCLY_TELEMETRY=off REDOCLY_SUPPRESS_UPDATE_NOTICE=true
npx --yes "$package" --version >/dev/null 2>&1 || skip "$package cannot be installed here"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
npx --yes "$package" lint openapi.json --max-problems=50 >"$log" 2>&1 || { cat "$log"; exit 1; }
