"""The log viewer: large logs, live ones, hostile ones."""

import re
from datetime import timedelta

import pytest
from playwright.sync_api import expect

from buildrunner.engine.log.pipeline import LogChunk
from buildrunner.logs.files.retention import remove_log
from tests.log_servers import now

COUNT = 1_000_000
STEPS = [{"name": "busybox", "id": name} for name in ("compile", "test", "publish", "report")]


def log_address(server, build):
    return f"{server.url}/builds/p/{build.id}/log"


def opened(page, server, build, fragment=""):
    page.goto(log_address(server, build) + fragment)
    expect(page.locator("#log[data-ready]")).to_be_attached()
    return page


def line(page, number):
    """A line as people count them."""
    return page.locator(f'.row[data-line="{number - 1}"] .x')


def nodes(page):
    return page.evaluate("document.querySelectorAll('*').length")


def scroll_to(page, part):
    """Drag the scroll bar to a part (0 to 1) of its way."""
    page.evaluate(
        "part => { const box = document.getElementById('log');"
        " box.scrollTop = part * (box.scrollHeight - box.clientHeight) }",
        part,
    )


@pytest.fixture(scope="module")
def large(server):
    """A million lines, of four steps that work at the same time, in turns of 50,000 lines."""
    build = server.build("large", steps=STEPS).begin()
    for first in range(0, COUNT, 1000):
        step = first // 50_000 % 4
        name = STEPS[step]["id"]
        text = "".join(
            f'Step #{step} - "{name}": \x1b[32mok\x1b[0m module number {number}\n'
            for number in range(first, first + 1000)
        )
        build.write(text.encode(), step)
    return build.end()


def test_a_million_lines_are_painted_at_once_with_few_nodes(page, server, large):
    page.goto(log_address(server, large))
    expect(line(page, COUNT)).to_have_text(f'Step #3 - "report": ok module number {COUNT - 1}')
    painted = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    shown = page.evaluate("performance.now()")
    print(
        f"a million lines: first paint {painted:.0f} ms, viewer {shown:.0f} ms, {nodes(page)} nodes"
    )
    assert nodes(page) < 2000


def test_every_part_of_a_large_log_can_be_reached(page, server, large):
    opened(page, server, large)
    for part in (0.25, 0.5, 0.9):
        scroll_to(page, part)
        number = int(part * COUNT) + 5
        expect(line(page, number)).to_contain_text(f"module number {number - 1}")
        assert nodes(page) < 2000
    scroll_to(page, 0)
    expect(line(page, 1)).to_be_in_viewport()
    scroll_to(page, 1)
    expect(line(page, COUNT)).to_be_in_viewport()


# A row is drawn anew when its line arrives: between two looks it may be another element.
ROW_Y = """wanted => new Promise(done => {
  const look = () => {
    const y = document.querySelector('.row[data-line="500000"] .x')?.getBoundingClientRect().y;
    if (y !== undefined && (wanted === null || Math.abs(y - wanted) < 2)) done(y);
    else requestAnimationFrame(look);
  };
  look();
})"""


def test_a_wheel_moves_a_scaled_log_line_by_line(page, server, large):
    opened(page, server, large, "#L500001")
    expect(line(page, 500_001)).to_be_in_viewport()
    before = page.evaluate(ROW_Y, None)
    page.locator("#log").hover()
    page.mouse.wheel(0, 90)
    expect(line(page, 500_001)).to_be_in_viewport()
    assert round(before - page.evaluate(ROW_Y, before - 90)) in (89, 90, 91)


def test_the_whole_log_is_searched(page, server, large):
    opened(page, server, large)
    page.keyboard.press("/")
    page.keyboard.type("MODULE NUMBER 7777")
    page.keyboard.press("Enter")
    found = page.locator("#found")
    expect(found).to_have_text("1 of 111")  # 7777, 7777x, 7777xx
    expect(page.locator(".row.current .x")).to_have_text(
        'Step #0 - "compile": ok module number 7777'
    )
    assert page.evaluate("[...CSS.highlights.get('found')].map(String)") == ["module number 7777"]
    page.keyboard.press("Escape")
    page.keyboard.press("n")
    expect(found).to_have_text("2 of 111")
    expect(page.locator(".row.current .n")).to_have_text("77771")
    page.keyboard.press("N")
    page.keyboard.press("N")
    expect(found).to_have_text("111 of 111")
    expect(page.locator(".row.current .n")).to_have_text("777800")
    page.get_by_label("match case").check()
    expect(found).to_have_text("no match")
    page.get_by_label("regular expression").check()
    page.locator("#query").fill(r"number 12345\d$")
    page.keyboard.press("Enter")
    expect(found).to_have_text("1 of 10")
    page.locator("#query").fill("(")
    page.keyboard.press("Enter")
    expect(found).to_contain_text("not a regular expression")


def test_a_search_with_a_million_matches_stays_small(page, server, large):
    opened(page, server, large)
    page.locator("#query").fill("module")
    page.keyboard.press("Enter")
    expect(page.locator("#found")).to_have_text(re.compile(r"^1 of 2\d,\d{3}\+$"))
    page.get_by_role("button", name="Next match").click()
    expect(page.locator("#found")).to_have_text(re.compile(r"^2 of 2\d,\d{3}\+$"))
    assert nodes(page) < 2000


def test_lines_and_ranges_have_addresses(page, server, large):
    opened(page, server, large, "#L420000-L420002")
    for number in (420_000, 420_001, 420_002):
        expect(page.locator(f'.row.chosen[data-line="{number - 1}"]')).to_be_in_viewport()
    expect(page.locator(".row.chosen")).to_have_count(3)
    page.locator('.row[data-line="420004"] .n').click()
    assert page.url.endswith("#L420005")
    page.locator('.row[data-line="420006"] .n').click(modifiers=["Shift"])
    assert page.url.endswith("#L420005-L420007")
    expect(page.locator(".row.chosen")).to_have_count(3)


def test_the_keyboard_goes_from_step_to_step(page, server, large):
    opened(page, server, large)
    page.keyboard.press("g")
    expect(line(page, 1)).to_be_in_viewport()
    told = page.locator("#told")
    for key, begins in (("]", "50001: step #1"), ("]", "100001: step #2"), ("[", "50001: step #1")):
        page.keyboard.press(key)
        expect(told).to_have_text(f"line {begins} begins")
    expect(line(page, 50_001)).to_be_in_viewport()


def test_steps_fold_and_are_jumped_to(page, server, large):
    opened(page, server, large, "#L1")
    page.locator("#steps-of-log summary").click()
    page.get_by_role("button", name="Fold #0 compile").click()
    expect(page.locator(".row.fold").first).to_contain_text("step #0: 50,000 lines folded")
    expect(line(page, 50_001)).to_be_in_viewport()
    expect(page.get_by_role("button", name="Fold #0 compile")).to_have_attribute(
        "aria-pressed", "true"
    )
    page.locator("[data-jump='2']").click()
    expect(line(page, 100_001)).to_be_in_viewport()
    page.keyboard.press("g")
    page.get_by_role("button", name="step #0: 50,000 lines folded").first.click()
    expect(line(page, 2)).to_be_in_viewport()


def test_what_was_chosen_is_copied_without_colours(new_page, server, large):
    page = new_page(permissions=["clipboard-read", "clipboard-write"])
    opened(page, server, large, "#L5-L7")
    expect(page.locator(".row.chosen")).to_have_count(3)
    page.keyboard.press("c")
    expect(page.locator("#told")).to_have_text("3 lines copied")
    assert page.evaluate("navigator.clipboard.readText()") == "".join(
        f'Step #0 - "compile": ok module number {number}\n' for number in (4, 5, 6)
    )


def test_the_end_of_a_log_is_readable_without_scripts(new_page, server, large):
    page = new_page(java_script_enabled=False)
    page.goto(log_address(server, large))
    expect(page.locator("#tail")).to_contain_text(f"ok module number {COUNT - 1}")
    assert page.locator("#tail span").count() == 500
    expect(page.get_by_role("link", name="The whole log")).to_be_visible()


# -- colours, progress, times ---------------------------------------------------------------------


def test_colours_progress_and_pauses_are_shown(page, server):
    build = server.build("colours").begin()
    build.write(
        b"\x1b[1;4;31merror\x1b[0m \x1b[38;5;208morange\x1b[m \x1b[48;2;1;2;3mtrue\x1b[49m x\n"
    )
    build.write(b"Step #0: 10%\rStep #0: 50%\r100% done\r\n")
    build.log.write(LogChunk(b"after a pause\n", 0, now() + timedelta(seconds=125)))
    build.end()
    opened(page, server, build)
    red, orange, true = (page.get_by_text(word, exact=True) for word in ("error", "orange", "true"))
    expect(red).to_have_css("font-weight", "700")
    expect(red).to_have_css("text-decoration-line", "underline")
    expect(red).to_have_css("color", "rgb(255, 143, 134)")
    expect(orange).to_have_css("color", "rgb(255, 135, 0)")
    expect(true).to_have_css("background-color", "rgb(1, 2, 3)")
    expect(line(page, 2)).to_have_text("Step #0: 100% done")
    expect(page.locator('.row[data-line="2"] .gap')).to_have_text("+2 min 5 s")
    expect(page.locator(".row time")).to_have_count(0)
    page.keyboard.press("t")
    expect(page.locator(".row time")).to_have_count(3)


def test_next_failure_goes_from_error_to_error(page, server):
    build = server.build("errors").begin()
    build.write(b"fine\n" * 300 + b"fatal: no such file\n" + b"fine\n" * 300 + b"2 tests FAILED\n")
    build.end()
    opened(page, server, build)
    for number in (301, 602):
        page.keyboard.press("e")
        expect(page.locator("#told")).to_have_text(f"line {number} looks like an error")
        expect(line(page, number)).to_be_in_viewport()
    page.keyboard.press("e")
    expect(page.locator("#told")).to_have_text("no more lines that look like an error")


# -- hostile logs ---------------------------------------------------------------------------------

HOSTILE = [
    "<script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    "</pre></div><h1 id=injected>hello</h1>",
    "\x1b]8;;javascript:alert(1)\x07a link\x1b]8;;\x07",
    "\x1b]0;a title\x07\x1b[2J\x1b[Hthe screen is mine",
    "\x1b[999999999;;;;;38;5;;2;1mstill here",
    "\x1b[38;2;999;-1;url(x)mno colour",
    "a\u202etxt.exe\u202c b",
    "nul\x00bell\x07backspace\x08 del\x7f",
    "&lt;b&gt; &amp; {{ 7 * 7 }} {% raw %}",
    "\udcff\udcfe".encode("utf-8", "surrogateescape").decode("latin-1"),
    " \x1b[31m" + "x\x1b[32my\x1b[31m" * 3000,
]


@pytest.fixture(scope="module")
def hostile(server):
    build = server.build("hostile", steps=[{"name": "busybox", "id": "x"}]).begin()
    build.write("\n".join(HOSTILE).encode("utf-8", "surrogateescape") + b"\n")
    build.write(b"\xff\xfe not UTF-8 \xc3\n")
    for _ in range(10):
        build.write(b"0123456789abcdef" * (1 << 16))  # one line of 10 MiB
    build.write(b"\nbehind the long line\n")
    for step in range(40):
        build.write(f"\x1b[3{step % 8}mc".encode() * 2000 + b"\n")
    build.write(b"the end\n")
    return build.end()


@pytest.mark.parametrize("scripts", [True, False])
def test_a_hostile_log_is_nothing_but_text(new_page, server, hostile, scripts):
    page = new_page(java_script_enabled=scripts)
    if scripts:
        opened(page, server, hostile, "#L1")
    else:
        page.goto(log_address(server, hostile))
    log = page.locator("#log")
    expect(log).to_contain_text("the screen is mine" if scripts else "the end")
    assert page.locator("#injected, #log script, #log img, #log h1").count() == 0
    assert page.locator("a[href^='javascript:']").count() == 0
    if not scripts:
        return
    assert page.evaluate("window.pwned") is None
    expect(line(page, 1)).to_have_text(HOSTILE[0])
    expect(line(page, 2)).to_have_text(HOSTILE[1])
    expect(line(page, 4)).to_have_text("a link")
    expect(line(page, 5)).to_have_text("the screen is mine")
    expect(line(page, 6)).to_have_text("still here")
    expect(line(page, 8)).to_have_text("a⟨U+202E⟩txt.exe⟨U+202C⟩ b")
    expect(line(page, 9)).to_have_text("nulbellbackspace del")
    assert page.title() == "Log of build hostile: success"
    assert nodes(page) < 2000


def test_a_line_of_ten_megabytes_is_cut_and_can_be_had_whole(page, server, hostile):
    opened(page, server, hostile, "#L14")
    long = line(page, len(HOSTILE) + 2)
    expect(long).to_contain_text("… 10,485,760 bytes")
    assert len(long.inner_text()) < 5000
    expect(line(page, len(HOSTILE) + 3)).to_have_text("behind the long line")
    address = long.get_by_role("link").get_attribute("href")
    whole = page.request.get(f"{server.url}{address}").body()
    assert whole == b"0123456789abcdef" * (10 << 16)


def test_lines_that_are_nothing_but_colours_keep_the_page_small(page, server, hostile):
    opened(page, server, hostile)
    expect(page.get_by_text("the end", exact=True)).to_be_in_viewport()
    assert nodes(page) < 2000


# -- live -----------------------------------------------------------------------------------------


def test_a_running_log_is_followed_until_somebody_scrolls_up(page, server):
    build = server.build("live").begin()
    build.write(b"".join(b"line %d\n" % number for number in range(1, 501)))
    opened(page, server, build)
    follow = page.get_by_role("button", name="Follow")
    expect(follow).to_have_attribute("aria-pressed", "true")
    expect(line(page, 500)).to_be_in_viewport()
    build.write(b"line 501\nline 502\n")
    expect(line(page, 502)).to_be_in_viewport()
    page.locator("#log").hover()
    page.mouse.wheel(0, -2000)
    expect(follow).to_have_attribute("aria-pressed", "false")
    build.write(b"".join(b"line %d\n" % number for number in range(503, 1201)))
    expect(page.locator("#log")).to_have_attribute("aria-label", "Log, 1200 lines")
    expect(line(page, 1200)).to_have_count(0)
    page.keyboard.press("f")
    expect(line(page, 1200)).to_be_in_viewport()
    build.write(b"100%")  # no newline yet
    expect(line(page, 1201)).to_have_text("100%")
    build.write(b" done\n")
    expect(line(page, 1201)).to_have_text("100% done")
    build.end("SUCCESS")
    expect(page.locator("#told")).to_have_text("the build has ended")
    expect(page.locator("h1 .badge")).to_contain_text("success")
    assert page.locator("#log .row .n").all_inner_texts()[-1] == "1201"


def test_a_server_that_goes_and_comes_back_loses_nothing(page, server):
    build = server.build("broken").begin()
    build.write(b"before\n")
    opened(page, server, build)
    expect(line(page, 1)).to_have_text("before")
    server.stop()
    notice = page.locator("#connection")
    expect(notice).to_have_text("connection lost, trying again")
    expect(notice).to_be_visible()
    build.write(b"while it was away\n")
    server.start()
    expect(notice).to_be_hidden()
    build.write(b"afterwards\n")
    expect(line(page, 3)).to_have_text("afterwards")
    assert page.locator("#log .row .x").all_inner_texts() == [
        "before",
        "while it was away",
        "afterwards",
    ]
    build.end()
    expect(page.locator("h1 .badge")).to_contain_text("success")


def test_the_page_of_a_build_comes_back_with_its_server(page, server):
    build = server.build("away", steps=STEPS).begin()
    page.goto(f"{server.url}/builds/p/{build.id}")
    badge = page.locator("#build-title .badge")
    expect(badge).to_contain_text("working")
    server.stop()
    notice = page.locator("#connection")
    expect(notice).to_have_text("connection lost, trying again")
    build.end("TIMEOUT")
    server.start()
    expect(badge).to_contain_text("timeout")
    expect(notice).to_be_hidden()


def test_a_page_of_which_a_part_is_lost_on_the_way_is_loaded_again(page, server):
    build = server.build("partly").begin()
    build.write(b"all of it\n")
    build.end()
    # As when a network of the machine comes or goes.
    for part in ("log_row.js", "style.css", "partly/log/lines*", "partly/log/steps"):
        page.route(f"**/{part}", lambda route: route.abort("connectionaborted"), times=1)
    opened(page, server, build)
    expect(line(page, 1)).to_have_text("all of it")
    assert page.evaluate("document.styleSheets.length") == 1
    expect(page.get_by_role("button", name="Fold #0 x")).to_be_hidden()


def test_a_page_that_can_not_be_whole_is_left_as_it_is(new_page, server):
    page = new_page()
    build = server.build("never-whole").begin()
    build.write(b"readable\n")
    build.end()
    loads = []
    page.on("load", lambda _: loads.append(1))
    page.route("**/log_row.js", lambda route: route.abort("connectionaborted"))
    with page.expect_event("load", lambda _: len(loads) == 6):
        page.goto(log_address(server, build))
    expect(page.locator("#tail")).to_contain_text("readable")
    assert len(loads) == 6


def test_a_page_that_lost_its_connection_for_a_moment_becomes_true(page, server):
    build = server.build("moment", steps=STEPS).begin()
    address = f"{server.url}/builds/p/{build.id}"
    page.goto(address)
    lost = []
    page.route(address, lambda route: (lost.append(1), route.abort("connectionaborted")), times=1)
    build.end()
    expect(page.locator("#build-title .badge")).to_contain_text("success")
    assert lost == [1]
    expect(page.locator("#connection")).to_be_hidden()


SEEN = """state => {
    Object.defineProperty(document, "visibilityState", { value: state, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
}"""
"""A headless browser shows all its pages: what a person does who changes tabs."""


def test_many_builds_are_watched_at_once(page, server):
    tabs = [page, *(page.context.new_page() for _ in range(7))]  # of connections, there are six
    builds = [server.build(f"tab-{number}").begin() for number in range(len(tabs))]
    for tab, build in zip(tabs, builds, strict=True):
        tab.clock.install()
        opened(tab, server, build)
        tab.evaluate(SEEN, "hidden")
    builds[0].write(b"done\n")
    builds[0].end()
    page.clock.fast_forward(10_000)
    expect(page).to_have_title(re.compile("success"))
    expect(line(page, 1)).to_have_text("done")
    page.evaluate(SEEN, "visible")
    expect(page.locator("#told")).to_have_text("the build has ended")


def test_a_page_that_is_true_is_not_asked_for_again(page, server):
    build = server.build("steady", steps=STEPS).begin()
    requested = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto(f"{server.url}/builds/p/{build.id}")
    with page.expect_request(lambda request: request.url.endswith(f"/builds/p/{build.id}")):
        build.end()  # a page that asked for itself before would have been drawn as working
    expect(page.locator("#build-title .badge")).to_contain_text("success")
    assert [url.split("?")[0] for url in requested if "/static/" not in url] == [
        f"{server.url}/builds/p/{build.id}",
        f"{server.url}{build.path}/events",
        f"{server.url}/builds/p/{build.id}",
    ]


def test_a_log_that_was_removed_leaves_a_word(page, server):
    build = server.build("removed").begin()
    build.write(b"gone\n")
    build.end()
    remove_log(build.folder, "it was older than 30 days", now=now())
    page.goto(log_address(server, build))
    expect(page.locator("main")).to_contain_text("was removed")
    expect(page.locator("main")).to_contain_text("it was older than 30 days")


def test_a_phone_shows_the_viewer_without_scrolling_sideways(new_page, server, hostile):
    page = new_page(viewport={"width": 375, "height": 700}, has_touch=True, is_mobile=True)
    opened(page, server, hostile)
    page.locator("#query").fill("the")
    page.locator("#query").press("Enter")
    expect(page.locator("#found")).to_contain_text("of")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_a_log_that_has_nothing_yet_says_so_and_begins(page, server):
    build = server.build("empty")
    opened(page, server, build)
    expect(page.locator("#log")).to_have_attribute("aria-label", "Log, 0 lines")
    expect(page.locator("h1 .badge")).to_contain_text("queued")
    build.begin().write(b"now\n")
    expect(line(page, 1)).to_have_text("now")
    expect(page.locator("h1 .badge")).to_contain_text("working")
    build.end("SUCCESS")
    expect(page.locator("h1 .badge")).to_contain_text("success")
