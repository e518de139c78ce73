"""Logs of builds: `files` stores them, `console` prints them on a terminal."""
