"""The style of the package's text: docstrings state, they do not ask."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "resnet_se"
FILES = {str(path.relative_to(ROOT)): path for path in sorted(ROOT.rglob("*.py"))}
QUESTION = re.compile(r"(what|whether|which|how)\b", re.IGNORECASE)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def questions(source: str) -> Iterator[str]:
    """Yield the docstrings that begin with a question word, by their first lines."""
    for node in ast.walk(ast.parse(source)):
        text = ast.get_docstring(node) if isinstance(node, DOCUMENTED) else None
        if text and QUESTION.match(text):
            yield f"{getattr(node, 'name', 'module')}: {text.splitlines()[0]}"


@pytest.mark.parametrize("name", FILES)
def test_a_docstring_begins_with_an_act_or_a_noun(name):
    assert list(questions(FILES[name].read_text(encoding="utf-8"))) == []


def test_a_question_is_found_wherever_a_docstring_may_stand():
    source = (
        '"""What it holds."""\n'
        "class A:\n"
        '    """How it works."""\n'
        "    def f(self):\n"
        '        """\n        Whether it is so.\n        """\n'
        "async def g():\n"
        '    """Which of them."""\n'
        "def h():\n"
        '    """Whatever this is, it is no question."""\n'
        '    return "What a text is not"\n'
    )
    found = {line.partition(":")[0] for line in questions(source)}
    assert found == {"module", "A", "f", "g"}
