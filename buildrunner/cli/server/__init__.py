"""Which server the commands use: `buildrunner login`, `logout`, `whoami`."""
