#!/usr/bin/env node
// The launcher: plain JavaScript, so that even an old Node can read it and hand over to the pinned one.
import "../src/cli.ts"
