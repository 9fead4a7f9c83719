"""Count unclear patterns in docstrings, comments, messages and Markdown: part of ``make lint``.

    python -m docs.prose_check [--show RULE]

The check fails if the number of hits per 1,000 words exceeds ``prose_hits`` in pyproject.toml
(``[tool.airloop]``). Lower that limit after an improvement. A hit is not always wrong: "whatever"
is also good English.
"""

import argparse
import ast
import io
import re
import sys
import tokenize
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from include.settings import REPOSITORY

RULES = {
    "fused relative clause": (
        r"\b(what (becomes|came|comes|became|is|was|it|they|that|there|has|he)\b|whatever|whichever"
        r"|who (is|has|may|asks|looks|comes|watches|edits|sets|finds)\b(?![^.]*\?))"
    ),
    "whoever": r"\b(whoever|whomever|who so)\b",
    "of which": r"\b(of|with|by|at|to|from|in|on|for|under|beside|after|before|as) (which|whom|whose)\b",
    "house": r"\bhouses?\b",
    "person": (
        r"\b(speaks?|is told|are told|tells (of|what|who|how)|told (nobody|apart)|asks? (nobody|everybody|him|who one"
        r" is)|takes leave"
        r"|believes?d?|lives at|quarrel|blinks?|blinked|knows? (nobody|neither|nothing|no)|wants? other|gives? up|sees"
        r" to it)\b"
    ),
    "he": r"\b(he|him|his)\b",
    "value: meaning": r'\b(None|""|NaN|\{\}|none|empty|0|1|\[\]|True|False): [a-z]',
    "negated noun": r"\b(is|are|was|were) no (?!longer|more than|other)[a-z]+",
    "negated verb": (
        r"\b(has|have|gives?|takes?|holds?|needs?|makes?|finds?|says?|costs?|asks?|imports?) (no|none|nothing|nobody)\b"
    ),
    "archaic": (
        r"\b(anew|for want of|in vain|next to nothing|thereby|therein|hitherto|lest|ere|nor\b(?<!neither)|be it|such as"
        r" were|it is for them"
        r"|is to be had|cannot be had|can be had|could not be had|to be had|comes to nothing|came to nothing|without a"
        r" word|in its stead|dearest|of late"
        r"|as good as none|no sooner|what not|rather an?|but for|let alone)\b"
    ),
    "very": r"\b(this|that|the) very\b",
    "beside": r"\bbeside\b",
    "away": r"\b(is|are|was|were) (away|there|here|at hand|back|about)\b(?! (that|no|a|an|two|three)\b)",
    "stands in": r"\b(stands?|stood|lies|lay|lie) (in|on|beside|under|behind|at|where|by|open|there|for)\b",
    "as it is": r"\bas (it|they) (is|are|was|were|has|had|came|come|may|does|did|go|goes)\b",
    "at once": r"\b(meanwhile|at once|by itself|by themselves|of its own|of their own|each for itself|side by side)\b",
    "fragment": r"^(As|Of|With|By|Whose|Those|Also|And|Nor|For|In|To) (?!an? example)[^.]{0,60}\.?$",
    "chain of semicolons": r";[^;]{3,};",
    "somebody": r"\b(somebody|nobody|everybody|anybody)\b",
}
# Calls whose texts a user reads.
MESSAGES = {
    "fail",
    "Field",
    "Option",
    "Argument",
    "Param",
    "Counter",
    "Gauge",
    "Histogram",
    "echo",
    "invalid",
    "unavailable",
    "ProblemError",
}
NO_PROSE = re.compile(r"#\s*(noqa|type:|fmt:|pragma|-{3,}|!)")
NOT_TEXT = re.compile(r"`[^`]*`|\]\([^)]*\)|<[^>]*>")
SKIPPED = {".git", ".venv", "node_modules", "results", "data", "locales", "static"}


def texts_of_python(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of docstrings, messages and comments."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if text := ast.get_docstring(node):
                yield getattr(node, "lineno", 1), text
        elif isinstance(node, ast.Raise) or (
            isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in MESSAGES
        ):
            for part in ast.walk(node):
                if isinstance(part, ast.Constant) and isinstance(part.value, str) and " " in part.value:
                    yield part.lineno, part.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not NO_PROSE.match(token.string):
            yield token.start[0], token.string.lstrip("# ")


def texts_of_markdown(source: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line outside code blocks."""
    code = False
    for number, line in enumerate(source.splitlines(), 1):
        if line.startswith("```"):
            code = not code
        if not code and line.strip():
            yield number, NOT_TEXT.sub("", line)


def count(root: Path) -> tuple[int, Counter[str], dict[str, list[str]]]:
    """Return the number of words, the hits of each rule, and the places of each rule."""
    words, hits, places = 0, Counter(dict.fromkeys(RULES, 0)), defaultdict(list)
    for file in sorted((*root.rglob("*.py"), *root.rglob("*.md"))):
        where = file.relative_to(root)
        if SKIPPED.intersection(where.parts) or file == Path(__file__):
            continue
        for line, text in (texts_of_python if file.suffix == ".py" else texts_of_markdown)(file.read_text()):
            words += len(text.split())
            for rule, pattern in RULES.items():
                if number := len(re.findall(pattern, text, re.MULTILINE)):
                    hits[rule] += number
                    places[rule].append(f"{where}:{line} {' '.join(text.split())[:200]}")
    return words, hits, places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--show", choices=RULES, help="Print the places of this rule.")
    given = parser.parse_args()
    words, hits, places = count(REPOSITORY)
    if given.show:
        print(*places[given.show], sep="\n")
        return
    limit = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["airloop"]["prose_hits"]
    per_thousand = 1000 * hits.total() / words
    print(f"prose: {per_thousand:.2f} unclear patterns per 1,000 words, at most {limit}")
    if per_thousand > limit:
        print(
            *(f"  {rule}: {hits[rule]}, such as {places[rule][0]}" for rule, _ in hits.most_common(5)),
            sep="\n",
            file=sys.stderr,
        )
        sys.exit(
            f"prose: rewrite until there are at most {limit}. `python -m docs.prose_check --show RULE` lists the places"
            " of a rule"
        )


if __name__ == "__main__":
    main()
