from __future__ import annotations

import base64
import json
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

import pytest

from buildrunner.errors import ConfigError
from buildrunner.server.notifications.dispatch import verdict_of
from buildrunner.server.notifications.facts import Facts
from buildrunner.server.notifications.messages import made_message
from buildrunner.server.notifications.notifier import read_notifier
from buildrunner.server.notifications.templates import TemplateProblem
from buildrunner.server.outbox.http import HttpMessage
from buildrunner.server.outbox.mail import MailMessage

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
URL = "https://ci.example.com/builds/p/b"
BUILD: dict[str, Any] = {
    "id": "b-1",
    "projectId": "p",
    "status": "FAILURE",
    "buildTriggerId": "t-1",
    "logUrl": URL,
    "substitutions": {
        "BRANCH_NAME": "main",
        "COMMIT_SHA": "0123456789abcdef",
        "_AUTHOR": "<me>",
        "TRIGGER_NAME": "on-push",
    },
    "failureInfo": {"detail": 'step "a"\nfailed <1>'},
}
LABELS = {"trigger_name": "on-push"}
SLACK = {
    "apiVersion": "cloud-build-notifiers/v1",
    "kind": "SlackNotifier",
    "metadata": {"name": "slack"},
    "spec": {
        "notification": {
            "filter": "build.status == Build.Status.FAILURE",
            "delivery": {"webhookUrl": {"secretRef": "url"}},
        },
        "secrets": [{"name": "url", "value": "projects/p/secrets/slack/versions/1"}],
    },
}
MAIL = {
    "apiVersion": "cloud-build-notifiers/v1",
    "kind": "SMTPNotifier",
    "metadata": {"name": "mail"},
    "spec": {
        "notification": {
            "filter": "build.status == Build.Status.FAILURE",
            "delivery": {
                "server": "mail.example.com",
                "port": "587",
                "sender": "ci@example.com",
                "from": "CI <ci@example.com>",
                "recipients": ["a@example.com", "b@example.com"],
                "password": {"secretRef": "password"},
            },
        },
        "secrets": [{"name": "password", "value": "smtp"}],
    },
}
HOOK = {
    "apiVersion": "buildrunner/v1",
    "kind": "HTTPNotifier",
    "metadata": {"name": "hook"},
    "spec": {
        "notification": {
            "delivery": {
                "url": "https://hooks.example.com/x",
                "signature": {"secretRef": "key"},
                "token": {"secretRef": "token"},
            }
        },
        "secrets": [{"name": "key", "value": "hook-key"}, {"name": "token", "value": "hook-token"}],
    },
}


def with_notification(notifier: dict[str, Any], **fields: Any) -> dict[str, Any]:
    changed = deepcopy(notifier)
    changed["spec"]["notification"] |= fields
    return changed


def ours(notifier: dict[str, Any], content: str = "", **fields: Any) -> dict[str, Any]:
    more = {"template": {"content": content}} if content else {}
    return {**with_notification(notifier, **more, **fields), "apiVersion": "buildrunner/v1"}


def facts(status: str = "FAILURE", before: str = "", **more: Any) -> Facts:
    previous = {**BUILD, "status": before} if before else None
    return Facts(build={**BUILD, "status": status}, labels=LABELS, previous=previous, **more)


def made(notifier: dict[str, Any], told: Facts | None = None) -> Any:
    one = made_message(read_notifier(notifier), told or facts(), key="notify/7/n", now=NOW)
    return one.call


def body(notifier: dict[str, Any], told: Facts | None = None) -> Any:
    call = made(notifier, told)
    assert isinstance(call, HttpMessage)
    assert call.content_type == "application/json"
    return json.loads(call.body)


class TestReading:
    @pytest.mark.parametrize("notifier", [SLACK, MAIL, HOOK], ids=["slack", "mail", "hook"])
    def test_configs_of_the_hosted_service_and_ours_are_read(self, notifier: Any) -> None:
        assert read_notifier(notifier).name == notifier["metadata"]["name"]

    @pytest.mark.parametrize(
        ("change", "path", "wrong"),
        [
            (
                {"apiVersion": "v2"},
                "apiVersion",
                "'v2' is unknown; use cloud-build-notifiers/v1 or",
            ),
            (
                {
                    "kind": "BigQueryNotifier",
                    "spec": {"notification": {"delivery": {"table": "projects/p/..."}}},
                },
                "kind",
                "there is no BigQueryNotifier here; use one of",
            ),
            ({"metadata": {"name": "a b"}}, "metadata.name", "'a b' is no name for a notifier"),
            ({"metadata": {}}, "metadata", "missing required field `name`"),
            ({"spec": {"notification": {}}}, "spec.notification.delivery.webhookUrl", "needs it"),
            ({"more": 1}, "", "unknown field `more`"),
        ],
    )
    def test_what_is_wrong_is_said_with_its_place(
        self, change: dict[str, Any], path: str, wrong: str
    ) -> None:
        with pytest.raises(ConfigError) as error:
            read_notifier({**SLACK, **change})
        assert path in [problem.path for problem in error.value.problems]
        assert wrong in str(error.value)

    @pytest.mark.parametrize(
        ("notifier", "fields", "wrong"),
        [
            (SLACK, {"filter": "build.x"}, "notification.filter: Build has no field x"),
            (
                SLACK,
                {"template": {"type": "golang", "content": '{"a": "{{.Build.Foo}}"}'}},
                "template.content: line 1: a Build has no field Foo",
            ),
            (
                HOOK,
                {"template": {"content": "{{ build.id }} {{ build.nope }}"}},
                "template.content: line 1: there is no field 'nope'",
            ),
            (SLACK, {"filter": "build.status"}, "filter gives 'STATUS_UNKNOWN', which is neither"),
            (SLACK, {"filter": "change"}, "filter: the filter gives '', which is neither true"),
            (SLACK, {"on": "change"}, "notification.on: cloud-build-notifiers/v1 does not know on"),
            (SLACK, {"on": "never"}, "on: invalid enum value 'never'; use one of status"),
            (SLACK, {"delivery": {"webhookUrl": "ftp://x"}}, "webhookUrl: this is no address"),
            (SLACK, {"delivery": {"webhookUrl": "https://x:99999/"}}, "this is no address"),
            (
                SLACK,
                {"delivery": {"webhookUrl": {"secretRef": "no"}}},
                "delivery.webhookUrl.secretRef: spec.secrets has no no; add it there",
            ),
            (SLACK, {"delivery": {"url": "https://x"}}, "url: a SlackNotifier has no url"),
            (
                SLACK,
                {"template": {"type": "jinja2"}},
                "template.type: cloud-build-notifiers/v1 does",
            ),
            (SLACK, {"template": {"type": "xslt"}}, "template.type: 'xslt' is no kind of template"),
            (
                SLACK,
                {"template": {"uri": "gs://b/o"}},
                "template.uri: the server reads no templates",
            ),
            (
                SLACK,
                {"template": {"content": "\n{{foo}}"}},
                "template.content: line 2: there is no",
            ),
            (MAIL, {"delivery": {}}, "delivery.recipients: a SMTPNotifier needs it"),
        ],
    )
    def test_what_is_wrong_in_a_notification(
        self, notifier: Any, fields: dict[str, Any], wrong: str
    ) -> None:
        with pytest.raises(ConfigError) as error:
            read_notifier(with_notification(notifier, **fields))
        assert wrong in str(error.value)

    @pytest.mark.parametrize(
        ("field", "value", "wrong"),
        [
            ("port", "x", "'x' is no port"),
            ("port", 70000, "'70000' is no port"),
            ("sender", "me", "'me' is no mail address"),
            ("recipients", ["a@b", "a@b, c@d"], "recipients[1]: 'a@b, c@d' is no mail address"),
            ("from", "CI\nBcc: x@y", "delivery.from: it must be one line"),
            ("username", "ci", "does not know username; write apiVersion: buildrunner/v1"),
            ("subject", "{{", "subject: line 1: there is a {{ without its }}"),
        ],
    )
    def test_what_is_wrong_with_mail(self, field: str, value: Any, wrong: str) -> None:
        notifier = deepcopy(MAIL)
        notifier["spec"]["notification"]["delivery"][field] = value  # type: ignore[index]
        with pytest.raises(ConfigError) as error:
            read_notifier(notifier)
        assert wrong in str(error.value)


class TestWhetherItTells:
    @pytest.mark.parametrize(
        ("before", "status", "change", "on_change", "on_recovery"),
        [
            ("", "FAILURE", "broken", True, False),
            ("", "SUCCESS", "still passing", False, False),
            ("SUCCESS", "TIMEOUT", "broken", True, False),
            ("SUCCESS", "SUCCESS", "still passing", False, False),
            ("FAILURE", "INTERNAL_ERROR", "still failing", False, False),
            ("TIMEOUT", "SUCCESS", "fixed", True, True),
            ("FAILURE", "CANCELLED", "", False, False),
            ("FAILURE", "EXPIRED", "", False, False),
            ("FAILURE", "WORKING", "", False, False),
        ],
    )
    def test_only_on_change_and_recovery(
        self, before: str, status: str, change: str, on_change: bool, on_recovery: bool
    ) -> None:
        told = facts(status, before)
        assert told.change == change
        for on, fires in (("status", True), ("change", on_change), ("recovery", on_recovery)):
            verdict = verdict_of(read_notifier(ours(HOOK, on=on)), told)
            assert verdict.fires is fires, verdict
            assert all(rule.text for rule in verdict.rules)

    def test_a_build_that_a_newer_one_overtook_is_no_news(self) -> None:
        verdict = verdict_of(
            read_notifier(ours(HOOK, on="change")), facts("FAILURE", "SUCCESS", overtaken=True)
        )
        assert not verdict.fires
        assert "a newer build" in verdict.reason

    def test_a_build_without_a_trigger_has_nothing_to_be_compared_with(self) -> None:
        build = {key: value for key, value in BUILD.items() if key != "buildTriggerId"}
        verdict = verdict_of(read_notifier(ours(HOOK, on="change")), Facts(build=build))
        assert not verdict.fires
        assert "no trigger" in verdict.reason

    def test_the_filter_decides(self) -> None:
        assert verdict_of(read_notifier(SLACK), facts("FAILURE")).fires
        verdict = verdict_of(read_notifier(SLACK), facts("SUCCESS"))
        assert not verdict.fires
        assert verdict.reason.startswith("the filter is false")


class TestMessages:
    def test_slack_without_a_template_gets_a_coloured_line_that_can_call_nobody(self) -> None:
        (attachment,) = body(SLACK)["attachments"]
        assert attachment["color"] == "#bb2124"
        title = "FAILURE: on-push, main 01234567 (broken)"
        assert attachment["text"] == f'<{URL}|{title}>\nstep "a" failed &lt;1&gt;'
        assert attachment["fallback"] == title
        assert body(SLACK, facts("SUCCESS"))["attachments"][0]["color"] == "#22bb33"
        assert body(SLACK, facts("WORKING"))["attachments"][0]["color"] == "#f0ad4e"

    def test_slack_takes_blocks_objects_and_text(self) -> None:
        blocks = '[{"type": "section", "text": {"type": "mrkdwn", "text": "{{.Build.Id}}"}}]'
        told = body(with_notification(SLACK, template={"type": "golang", "content": blocks}))
        (attachment,) = told["attachments"]
        assert attachment["color"] == "#bb2124"
        assert attachment["blocks"][0]["text"]["text"] == "b-1"
        assert body(ours(SLACK, '{"text": "{{ title }}", "channel": "#ci"}'))["channel"] == "#ci"
        assert body(ours(SLACK, "[{{ ref }}] {{ build.status }}")) == {"text": "[main] FAILURE"}

    def test_an_address_that_is_a_secret_is_in_no_message(self) -> None:
        call = made(SLACK)
        assert (call.url, call.url_secret) == ("", "projects/p/secrets/slack/versions/1")

    def test_params_are_bindings(self) -> None:
        params = {
            "status": "$(build.status)",
            "who": "by $(build['_AUTHOR'])",
            "none": "$(build.x)",
        }
        content = "{{ params.status }} {{ params.who }}{{ params.none }}"
        assert body(ours(SLACK, content, params=params)) == {"text": "FAILURE by &lt;me&gt;"}

    @pytest.mark.parametrize("kind", ["SlackNotifier", "GoogleChatNotifier"])
    @pytest.mark.parametrize(
        ("language", "content"),
        [
            ("jinja2", "Build of {{ params.branch }}"),
            ("golang", "Build of {{ .Params.branch }}"),
            ("golang", 'Build of {{ printf "%s" .Params.branch }}'),
            ("jinja2", '{"text": "Build of {{ params.branch }}"}'),
            ("jinja2", '{"text": {{ ("Build of " ~ params.branch) | tojson }}}'),
            ("golang", '{"text": "Build of {{ .Params.branch }}"}'),
            ("golang", '{"text": {{ printf "%q" (print "Build of " .Params.branch) }}}'),
        ],
    )
    def test_no_branch_mentions_people_or_makes_links(
        self, kind: str, language: str, content: str
    ) -> None:
        notifier = {**SLACK, "kind": kind, "apiVersion": "buildrunner/v1"}
        template = {"type": language, "content": content}
        for branch in ("<!channel>", "<https://evil.example|log-in>", '&"\\u003c!here>'):
            evil = {**BUILD, "substitutions": {**BUILD["substitutions"], "_B": branch}}
            params = {"branch": "$(build['_B'])"}
            told = body(
                with_notification(notifier, template=template, params=params), Facts(build=evil)
            )
            shown = branch.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            assert told == {"text": f"Build of {shown}"}

    def test_the_url_of_a_button_stays_a_url(self) -> None:
        url = "https://ci.example.com/x?a=1&b=2"
        values = {**BUILD, "substitutions": {**BUILD["substitutions"], "_B": url}}
        content = '{"blocks": [{"type": "button", "url": "{{ params.url }}"}]}'
        notifier = ours(SLACK, content, params={"url": "$(build['_B'])"})
        told = body(notifier, Facts(build=values))
        assert told == {"blocks": [{"type": "button", "url": url}]}

    def test_a_template_makes_links_and_calls_values_safe(self) -> None:
        content = "<{{ build.logUrl }}|{{ detail }}> {{ '<!here>' | safe }}"
        text = f'<{URL}|step "a" failed &lt;1&gt;> <!here>'
        assert body(ours(SLACK, content)) == {"text": text}

    def test_a_value_that_looks_like_json_stays_text(self) -> None:
        evil = {**BUILD, "failureInfo": {"detail": '{"text": "log in", "channel": "#all"}'}}
        for kind in ("SlackNotifier", "GoogleChatNotifier"):
            told = body(ours({**SLACK, "kind": kind}, "{{ detail }}"), Facts(build=evil))
            assert told == {"text": evil["failureInfo"]["detail"]}

    def test_what_builds_say_can_not_add_to_a_json_message(self) -> None:
        evil = {**BUILD, "failureInfo": {"detail": '", "channel": "#all'}}
        told = body(ours(SLACK, '{"text": "{{ detail }}"}'), Facts(build=evil))
        assert told == {"text": '", "channel": "#all'}

    def test_a_template_that_makes_no_json_says_so(self) -> None:
        with pytest.raises(TemplateProblem, match="it makes no JSON: "):
            made(ours(SLACK, '{"text": {{ title }}}'))

    def test_http_gets_the_build_signed_and_with_a_token(self) -> None:
        call = made(HOOK)
        assert body(HOOK) == facts().build
        assert (call.url, call.sign_secret, call.token_secret) == (
            "https://hooks.example.com/x",
            "hook-key",
            "hook-token",
        )

    def test_http_gets_what_a_template_makes(self) -> None:
        assert body(ours(HOOK, '{"n": "{{ build.id }}"}')) == {"n": "b-1"}
        call = made(ours(HOOK, "{{ title }}\n"))
        assert call.content_type == "text/plain; charset=utf-8"
        assert call.body == "FAILURE: on-push, main 01234567 (broken)"

    def test_google_chat(self) -> None:
        chat = {**SLACK, "kind": "GoogleChatNotifier"}
        assert body(chat)["text"].startswith(f"<{URL}|FAILURE: on-push")
        assert body(chat)["text"].endswith('step "a" failed &lt;1&gt;')  # no mention, no link
        assert body(ours(chat, "{{ ref }}")) == {"text": "main"}
        assert body(ours(chat, '{"cards": []}')) == {"cards": []}

    def test_pubsub_messages_have_the_form_of_the_topic_cloud_builds(self) -> None:
        told = body({**HOOK, "kind": "PubSubNotifier"})
        message = told["message"]
        assert json.loads(base64.b64decode(message["data"])) == facts().build
        assert message["attributes"] == {"buildId": "b-1", "status": "FAILURE"}
        assert message["messageId"] == "notify/7/n"
        assert message["publishTime"] == "2026-05-01T12:00:00Z"
        assert told["subscription"] == "projects/p/subscriptions/hook"

    def test_mail_without_a_template(self) -> None:
        mail = made(MAIL)
        assert isinstance(mail, MailMessage)
        assert mail.subject == "[buildrunner] FAILURE: on-push, main 01234567 (broken)"
        assert 'Reason: step "a" failed <1>\nLog: https://' in mail.body
        assert not mail.is_html
        assert (mail.server, mail.port, mail.tls) == ("mail.example.com", 587, False)
        assert (mail.username, mail.password_secret) == ("ci@example.com", "smtp")

    def test_mail_with_a_template_is_html_if_that_is(self) -> None:
        html = {"type": "golang", "content": "<p>{{.Build.Substitutions._AUTHOR}}</p>"}
        mail = made(with_notification(MAIL, template=html))
        assert (mail.body, mail.is_html) == ("<p>&lt;me&gt;</p>", True)
        text = ours(MAIL, "{{ detail }}")
        text["spec"]["notification"]["delivery"] |= {
            "subject": "{{ title }}\n{{ ref }}",
            "tls": "tls",
        }
        mail = made(text)
        assert (mail.body, mail.is_html) == ('step "a" failed <1>', False)
        assert mail.subject == "FAILURE: on-push, main 01234567 (broken) main"
        assert mail.tls

    @pytest.mark.parametrize(
        ("port", "tls"), [(465, True), ("465", True), (25, False), ("", False)]
    )
    def test_port_465_means_tls(self, port: Any, tls: bool) -> None:
        notifier = deepcopy(MAIL)
        notifier["spec"]["notification"]["delivery"]["port"] = port  # type: ignore[index]
        mail = made(notifier)
        assert (mail.port, mail.tls) == (int(port or 587), tls)
