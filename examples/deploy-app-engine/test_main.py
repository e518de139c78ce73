import unittest

from main import answer


class AnswerTest(unittest.TestCase):
    def test_numbers(self) -> None:
        for number, numeral in ((1, "I"), (42, "XLII"), (1994, "MCMXCIV"), (3999, "MMMCMXCIX")):
            self.assertEqual(answer(f"/{number}"), (200, numeral))

    def test_other_paths(self) -> None:
        for path in ("/", "/0", "/4000", "/x"):
            self.assertEqual(answer(path)[0], 404)

    def test_version(self) -> None:
        self.assertEqual(answer("/version"), (200, "development"))
