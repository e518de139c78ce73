"""The server that commands use, and the commands login, logout and whoami."""
