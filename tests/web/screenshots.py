"""Pictures of the dashboard for the manual: ``python -m tests.web.screenshots FOLDER``.

Nothing in them is drawn by hand: a server is started, a trigger of it builds a small project a few
times, the last time with a mistake in it, and Chromium takes the pictures.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildrunner.containers.docker.engine import DockerEngine
from tests.conftest import busybox_tar, remove_image
from tests.web.browser import chromium
from tests.web.serving import Serving, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PROJECT = "shop"
PHONE = {"viewport": {"width": 375, "height": 720}, "is_mobile": True, "has_touch": True}
DESK = {"viewport": {"width": 1180, "height": 720}}

_COMPILE = r"""
for name in cart catalog checkout search shipping; do
  printf 'compiling \033[36m%s\033[0m ' "$name"; sleep 0.1; printf '\033[32mok\033[0m\n'
done
"""
_LINT = "echo 'src/cart.c:14: warning: unused variable `total`'; sleep 0.4; echo '1 warning'"
_UNIT = r"""
n=0; while [ $n -lt 240 ]; do n=$((n+1)); printf 'test_%03d \033[32mPASSED\033[0m\n' $n; done
sleep 0.3
if [ "$_DISCOUNT" = on ]; then
  printf 'test_cart_total \033[1;31mFAILED\033[0m\n'
  echo 'cart_test.c:88: expected 42.00, got 37.80 (discount applied twice)'
  printf '\033[1;31m1 failed\033[0m, 240 passed\n'; exit 1
fi
printf 'test_cart_total \033[32mPASSED\033[0m\n'; echo '241 passed'
"""
_BROWSE = "echo 'opening the shop in 3 browsers'; sleep 1.2; echo 'all pages answer'"


def trigger(image: str) -> dict[str, Any]:
    """The nightly build of a small shop."""

    def step(name: str, script: str, *after: str) -> dict[str, Any]:
        env = ["_DISCOUNT=${_DISCOUNT}"]
        return {"name": image, "id": name, "script": script, "waitFor": list(after), "env": env}

    return {
        "name": "nightly",
        "description": "The whole shop, every night",
        "substitutions": {"_DISCOUNT": "off"},
        "cron": {"schedule": "30 2 * * *", "timeZone": "Europe/Vienna"},
        "build": {
            "steps": [
                step("compile", _COMPILE, "-"),
                step("lint", _LINT, "-"),
                step("unit-tests", _UNIT, "compile"),
                step("browser-tests", _BROWSE, "compile"),
                step("package", "echo packed shop-1.4.tar; sleep 0.2", "unit-tests", "lint"),
            ],
            "tags": ["nightly"],
        },
    }


def run_builds(server: Serving, image: str) -> tuple[str, str]:
    """Run the builds; ids of the last green one and of the red one."""
    made = server.http.post(f"/v1/projects/{PROJECT}/triggers", json=trigger(image))
    assert made.status_code == 200, made.text
    path = f"/v1/projects/{PROJECT}/triggers/{made.json()['id']}"

    def run() -> str:
        ran = server.http.post(f"{path}:run", json={})
        assert ran.status_code == 200, ran.text
        build_id = str(ran.json()["metadata"]["build"]["id"])
        server.ended(PROJECT, build_id)
        return build_id

    green = [run() for _ in range(5)][-1]
    changed = {**trigger(image), "substitutions": {"_DISCOUNT": "on"}}
    answer = server.http.patch(path, params={"updateMask": "substitutions"}, json=changed)
    assert answer.status_code == 200, answer.text
    red = run()
    return green, red


def shoot(browser: Browser, server: Serving, green: str, red: str, folder: Path) -> None:
    """Take the pictures."""
    listed = server.http.get(f"/v1/projects/{PROJECT}/triggers").json()
    [trigger_id] = [one["id"] for one in listed["triggers"]]
    builds = f"{server.url}/builds"
    shots = {
        "builds": (f"{builds}?project={PROJECT}", DESK, "light"),
        "build-failed": (f"{builds}/{PROJECT}/{red}", DESK, "light"),
        "waterfall": (f"{builds}/{PROJECT}/{green}?view=waterfall", DESK, "light"),
        "graph": (f"{builds}/{PROJECT}/{red}?view=graph", DESK, "dark"),
        "log": (f"{builds}/{PROJECT}/{red}/log", DESK, "light"),
        "phone": (f"{builds}/{PROJECT}/{red}", PHONE, "dark"),
        "trigger": (f"{server.url}/triggers/{PROJECT}/{trigger_id}", DESK, "light"),
        "trends": (f"{server.url}/trends?project={PROJECT}", DESK, "light"),
    }
    for name, (address, look, scheme) in shots.items():
        context = browser.new_context(**look, color_scheme=scheme)  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(address)
        _prepare(page, name)
        page.screenshot(path=folder / f"{name}.png")
        context.close()
        _squeeze(folder / f"{name}.png")


def _prepare(page: Page, name: str) -> None:
    if name in ("waterfall", "graph"):
        page.locator(".tabs").evaluate("tabs => tabs.scrollIntoView()")
    if name == "log":
        page.locator("#log[data-ready] .row .x").first.wait_for()
        page.locator("#query").fill("failed")
        page.locator("#query").press("Enter")
        page.locator(".row.current").wait_for()


def _squeeze(picture: Path) -> None:
    argv = ["pngquant", "--force", "--ext", ".png", "--skip-if-larger", "64", str(picture)]
    subprocess.run(argv, check=False)  # 98, 99: it is as small as it gets


def main() -> None:
    """See the module."""
    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    engine = DockerEngine()
    image = "buildrunner-demo/shop-tools"
    engine.import_image(image, [busybox_tar()], cmd=["sh"], env=["PATH=/bin"])
    try:
        with (
            tempfile.TemporaryDirectory() as scratch,
            serving(Path(scratch), "--auth", "none", "--sandbox", "host") as server,
            chromium() as browser,
        ):
            green, red = run_builds(server, image)
            shoot(browser, server, green, red, folder)
    finally:
        remove_image(image)
        engine.close()


if __name__ == "__main__":
    main()
