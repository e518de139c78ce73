"""Debian's Chromium, driven by Playwright; pages that complain when scripts do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, sync_playwright

from tests.conftest import program


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser, until the block ends."""
    # Its sandbox refuses to work for root, as which tests run in containers.
    args = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program("chromium", "chromium"), args=[*args, "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            browser.close()


def complaints_of(page: Page) -> list[str]:
    """What goes wrong on a page from now on: errors of scripts, breaches of its policy."""
    found: list[str] = []
    page.on("pageerror", lambda error: found.append(f"error: {error}"))
    page.on(
        "console",
        lambda message: (
            found.append(f"{message.type}: {message.text}")
            if message.type in ("error", "warning") and not _is_of_the_network(message.text)
            else None
        ),
    )
    return found


def serious_findings(page: Page, axe: str) -> list[tuple[str, list[str]]]:
    """What axe-core, whose source is given, holds against a page: rules, and the elements."""
    page.evaluate(axe)
    return [
        (one["id"], [node["html"][:200] for node in one["nodes"]])
        for one in page.evaluate("axe.run()")["violations"]
        if one["impact"] in ("serious", "critical")
    ]


def _is_of_the_network(text: str) -> bool:
    # Chromium's own words for an answer that is missing or an error; tests break connections.
    return text.startswith("Failed to load resource")
