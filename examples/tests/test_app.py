import unittest

from service.app import LIMIT, create_app


class RenderTest(unittest.TestCase):
    def setUp(self):
        self.client = create_app().test_client()

    def test_markdown_becomes_html(self):
        answer = self.client.post("/render", data="# Hello *you*")
        self.assertEqual(answer.status_code, 200)
        self.assertEqual(answer.text, "<h1>Hello <em>you</em></h1>\n")

    def test_html_in_the_text_is_shown_not_passed_on(self):
        answer = self.client.post("/render", data="<script>alert(1)</script>")
        self.assertNotIn("<script>", answer.text)

    def test_a_text_that_is_too_long_is_refused(self):
        self.assertEqual(self.client.post("/render", data="x" * (LIMIT + 1)).status_code, 413)

    def test_health(self):
        self.assertEqual(self.client.get("/health").json, {"status": "ok"})


if __name__ == "__main__":
    unittest.main()
