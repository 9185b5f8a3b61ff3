"""Text from files in messages, on any console and in files."""

import json

import pytest

from dff_jax.errors import InputError, one_line, printable
from dff_jax.runtime.files import write_text
from dff_jax.runtime.markdown import table
from dff_jax.runtime.progress import ProgressBar


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\nb\r\x85\u2028", r"a\nb\r\x85\u2028"),
        ("gpj.\u202e\u2066\u200f", r"gpj.\u202e\u2066\u200f"),
        ("caf\udce9", r"caf\udce9"),
        ("plain é 日本 \u00a0 ∞ 🙂 \\x1b", "plain é 日本 \u00a0 ∞ 🙂 \\x1b"),
    ],
)
def test_only_what_a_terminal_would_obey_or_no_encoding_has_is_escaped(text, shown):
    assert printable(text) == shown and printable(shown) == shown
    shown.encode()


def test_a_message_is_one_line_that_can_be_printed():
    assert str(InputError("a\n  file\x1b[2J")) == one_line("a\n  file\x1b[2J", None) == r"a file\x1b[2J"


def test_progress_and_tables_show_names_as_text(capsys):
    with ProgressBar("one\x1b[2J", 1) as bar:
        bar.say("two\nthree\udce9")
        bar.advance()
    err = capsys.readouterr().err
    assert r"one\x1b[2J: 1/1" in err and "two\\nthree\\udce9\n" in err and "\x1b" not in err
    assert table([["a\nb\x1b"]], ["name"])[-1] == r"| a\nb\x1b |"


def test_files_are_utf_8_whatever_the_locale_and_whatever_the_names(tmp_path):
    write_text(tmp_path / "a.json", json.dumps(["é", "caf\udce9"], ensure_ascii=False))
    assert json.loads((tmp_path / "a.json").read_bytes()) == ["é", "caf\udce9"]
