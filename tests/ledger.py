"""A ledger of the lessons' prose: every number in it is one that the notebook computes or sets.

**What counts as a number.** Digits in Markdown, with their decimals, thousands (``2,000``), powers
of ten (``10⁵``, ``1e5``) and ``%``. Left out are, since they state no result:

- code and its fences, formulas (but for what stands at their end after ``=`` or ``≈``), addresses
  of links, and everything from the references on;
- the line of times, headings and the signature of an exercise, and questions, for they ask;
- years, numbers that name something (``section 4``, ``notebook 03``, ``equation 3``, ``GPT-2``);
- whole numbers up to ten without a unit: prose counts with them.

**What it may rest on.** A result is looked for in what the cells of its own section printed, those
of a section that the passage names, and the published figures in ``course/tables/published.csv``;
the head and the end of a lesson speak of all sections. The larger tables are no source: whatever is
quoted from them is printed by a cell. A number without a unit may also be a parameter: a whole
number in the notebook's code (but for sizes of figures and limits of axes), a setting such as
``lam=0.3``, or a number in a script of ``experiments/`` that the prose links.

It must be found as precisely as the prose states it: 0.62 is found in 0.6178, and with ``%`` or
*points* 62 is, too. After *about*, *nearly* and the like the trailing zeros of a whole number are
no digits (*about 300* is found in 287); after *more than*, *below* and other bounds the number
found may lie beyond by up to a half.

What rests on none of these stands in ``notebooks/unbound.toml``, each with its reason.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT / "ewc_tutorial" / "course" / "tables" / "published.csv"

_SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
_FIXED = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
#: A power of ten is read whole, a mantissa before it included.
_NUMBER = re.compile(
    rf"(?<![\w.⁰-⁹])(?P<number>(?:\d+(?:\.\d+)?\s?[×·]\s?)?10[⁻⁰¹²³⁴-⁹]+"
    rf"|\d+(?:\.\d+)?e[+-]?\d+|(?:{_FIXED}))"
    r"(?P<unit>\s?%|\s?(?:percentage )?points|\s?percent)?(?![\w⁰-⁹])"
)
_NAMED = re.compile(
    r"(?i)\b(?:notebooks?|sections?|equations?|eqs?\.|figures?|fig\.|exercises?|chapters?|tables?|"
    r"cases?|programs?|panels?|lines?|appendix|page|python|torch|volume|instance|layer|weight|tasks?|"
    r"class|row|labels?|version|steps?|images? of)"
    r"(?: k =)?\s\[?\d[\d.]*\w?\]?(?:(?:,| to| and| or|–|-|/)\s?\[?\d[\d.]*\w?\]?)*"
)
_ABOUT = re.compile(
    r"(?i)\b(?:about|around|nearly|almost|roughly|some|close to|order of|from|to|≈|between|and)\s*$"
)
_ABOVE = re.compile(
    r"(?i)(?:more than|above|over|at least|beyond|larger than|further than|exceeds?|>|≥)"
    r"(?: (?:a|the|by|one in|of|of guessing))*\s*$"
)
_BELOW = re.compile(
    r"(?i)(?:less than|below|under|at most|within|fewer than|smaller than|up to|<|≤)"
    r"(?: (?:a|the|by|1/))*\s*$"
)
_LINK = re.compile(r"\]\(([^)\s]*)\)")
_LINK_TO_LESSON = re.compile(r"\[[^\]]*\]\(\d\d_\w+\.ipynb\)")
#: The first number of *13 to 15 %* is in per cent, too.
_SHARED_UNIT = re.compile(
    r"^,? (?:to|and|or|against|instead of) (?:about )?[\d.]+\s?(?:%|points|percent)"
)
#: ``lam=0.3``, which a lesson may speak of in any section.
_SETTING = re.compile(r"\w=(-?[\d._]+(?:e[+-]?\d+)?)\b")
_REFERENCES = re.compile(r"^(?:#+ References|\*\*References)", flags=re.M)


@dataclass(frozen=True)
class Number:
    """A number as prose states it."""

    text: str
    value: float
    unit: float  # half of what its last digit stands for
    percent: bool
    low: float  # what it may stand for, as a multiple: a bound reaches to one side
    high: float
    before: str
    after: str

    def found_in(self, values: list[float]) -> bool:
        """Tell whether one of the values is this number; a share may stand for a percentage."""
        low = min(self.value * self.low, self.value - self.unit) - 1e-9 * abs(self.value)
        high = max(self.value * self.high, self.value + self.unit) + 1e-9 * abs(self.value)
        return any(
            low <= abs(v) <= high or (self.percent and abs(v) <= 1 and low <= 100 * abs(v) <= high)
            for v in values
        )

    @property
    def context(self) -> str:
        return " ".join(f"{self.before}{self.text}{self.after}".split())

    def __str__(self) -> str:
        return f"{self.text!r} in {self.context!r}"


@dataclass(frozen=True)
class Passage:
    """A Markdown cell and the values that its numbers may rest on."""

    text: str
    results: list[float]
    parameters: list[float]

    def unbound(self) -> list[Number]:
        """Return the numbers that rest on nothing."""
        return [number for number in numbers_in(self.text) if not self.binds(number)]

    def binds(self, number: Number) -> bool:
        """Tell whether a number is a result or, if it has no unit, a parameter."""
        if number.found_in(self.results):
            return True
        return not number.percent and number.found_in(self.parameters)


def passages(path: Path) -> list[Passage]:
    """Read a notebook: its prose in pieces, each with what it may rest on."""
    cells = nbformat.read(path, as_version=4).cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    parameters = [v for text in _linked_scripts(path, prose) for v in values_in(text)]
    published = _published() if "van de Ven" in prose else []
    sections = [_Section()]
    for cell in cells:
        if cell.cell_type == "markdown":
            head, *rest = re.split(r"^(?=## )", cell.source, flags=re.M)
            sections[-1].prose.append(head)
            sections += [_Section([text]) for text in rest]
            continue
        code = _without_looks(cell.source)
        parameters += values_in(" ".join(_SETTING.findall(code)))
        parameters += (v for v in values_in(code) if v.is_integer())
        sections[-1].results += (v for v in values_in(code) if not v.is_integer())
        for output in cell.outputs:
            sections[-1].results += values_in(_text_of(output))
    whole = [v for section in sections for v in section.results]
    found = []
    for section in sections:
        own = section.results if section.is_numbered else whole
        for text in section.prose:
            # A long number is told from any other, wherever it was printed.
            results = [*own, *published, *(v for v in whole if v >= 1000)]
            for named in re.findall(r"[Ss]ections? (\d+)(?! of)", text):
                results += (v for s in sections if s.number == named for v in s.results)
            found.append(Passage(text, results, parameters))
    return found


@dataclass
class _Section:
    prose: list[str] = field(default_factory=list)
    results: list[float] = field(default_factory=list)

    @property
    def number(self) -> str | None:
        heading = re.match(r"## (\d+)\b", self.prose[0]) if self.prose else None
        return heading[1] if heading else None

    @property
    def is_numbered(self) -> bool:
        return self.number is not None


def _linked_scripts(path: Path, prose: str) -> list[str]:
    scripts = {(path.parent / target).resolve() for target in _LINK.findall(prose)}
    return [
        _without_looks(script.read_text(encoding="utf-8"))
        for script in scripts
        if script.suffix == ".py" and script.parent == ROOT / "experiments"
    ]


def _published() -> list[float]:
    with PUBLISHED.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    keys = ("accuracy", "se", "seeds", "best_lambda")
    return [v for row in rows for key in keys for v in values_in(row[key] or "")]


def values_in(text: str) -> list[float]:
    """Return every number of a program or of what it printed."""
    found = re.findall(r"(?<![\w.])(?:\d[\d_,]*\d|\d)?(?:\.\d*)?(?:e[+-]?\d+)?(?!\w)", text)
    found += [f"1e{p.translate(_SUPERSCRIPTS)}" for p in re.findall(r"10([⁻⁰¹²³⁴-⁹]+)", text)]
    values = []
    for word in found:
        for part in {word, *word.split(",")}:  # 1,000 or a list of numbers
            try:
                values.append(float(part.replace(",", "").replace("_", "")))
            except ValueError:
                continue
    # 60 % and 1/32 say what .6 and .03125 say.
    values += [int(a) / int(b) for a, b in re.findall(r"\b(\d+) ?/ ?([1-9]\d*)\b", text)]
    return values


def numbers_in(markdown: str) -> Iterator[Number]:
    """Return the numbers of a Markdown cell that state something."""
    text = _statements(markdown)
    for match in _NUMBER.finditer(text):
        word, unit = match["number"], (match["unit"] or "").strip()
        value = _value(word)
        before, after = text[: match.start()], text[match.end("number") :]
        unit = unit or bool(_SHARED_UNIT.search(after))
        whole = re.fullmatch(r"\d+", word) is not None
        if whole and value <= 10 and not unit:
            continue
        if whole and len(word) == 4 and 1700 <= value < 2100:
            continue
        low, high = 1.0, 1.0
        if _ABOVE.search(before[-40:]):
            high = 1.5
        elif _BELOW.search(before[-40:]):
            low = 1 / 1.5
        rounded = _ABOUT.search(before[-25:]) is not None
        yield Number(
            word, value, _half_unit(word, rounded), bool(unit), low, high,
            before[-60:], after[:60],
        )  # fmt: skip


def _statements(markdown: str) -> str:
    """Return the part of a cell in which numbers state something."""
    text = _REFERENCES.split(markdown)[0]
    text = re.sub(r"```.*?```", " ", text, flags=re.S)
    text = re.sub(r"``?[^`]+``?", " ` ", text)
    text = re.sub(r"\$\$.*?\$\$", " ", text, flags=re.S)
    text = re.sub(r"\$([^$]+)\$", _end_of_formula, text)
    text = _LINK.sub("]", _LINK_TO_LESSON.sub(" ", text))
    text = re.sub(r"^⏱.*$|^#+ .*$", "", text, flags=re.M)
    text = re.sub(r"<[^>\n]+>", " ", unescape(text))
    text = re.sub(r"^\s*\d+\. ", "", text, flags=re.M)
    text = re.sub(r"\b[A-Za-z]\w*-\d+\b(?!-)|wav2vec 2\.0", " ", text)  # GPT-2, XLSR-53
    text = text.replace("\\*", "").replace("*", "").replace("\n> ", "\n").replace("[", "")
    text = text.replace("]", "").replace("\n", " ")
    text = _NAMED.sub(" ", text)
    return re.sub(r"[^.?!|]*(?:\.\d[^.?!|]*)*\?", " ", text)  # questions


def _end_of_formula(match: re.Match[str]) -> str:
    inside = match[1].replace("{,}", ",").replace("\\,", "")
    end = re.search(rf"(?:=|\\approx)\s*({_FIXED}|10\^{{?-?\d+}}?)\s*(\\?%)?$", inside)
    if end is None:
        return " formula "
    power = re.fullmatch(r"10\^{?(-?\d+)}?", end[1])
    return f" formula ≈ {'1e' + power[1] if power else end[1]} "


def _value(word: str) -> float:
    power = re.fullmatch(r"(?:(\d+(?:\.\d+)?)\s?[×·]\s?)?10([⁻⁰¹²³⁴-⁹]+)", word)
    if power:
        return float(power[1] or 1) * 10.0 ** int(power[2].translate(_SUPERSCRIPTS))
    return float(word.replace(",", ""))


def _half_unit(word: str, rounded: bool) -> float:
    """Return half of what the last digit stands for; that of *about 300* is the 3."""
    if re.search(r"[e×·⁰-⁹]|10[¹²³]", word):
        return 0.5 * _value(word) if rounded else 0.05 * _value(word)
    plain = word.replace(",", "")
    if "." in plain:
        return 0.5 * 10.0 ** -len(plain.split(".")[1])
    zeros = len(plain) - len(plain.rstrip("0")) if rounded else 0
    return 0.5 * 10.0**zeros


def _without_looks(code: str) -> str:
    """Return code without the numbers that only say how a picture looks."""
    looks = r"(?:figsize|ylim|xlim|width_ratios|height_ratios|bbox_to_anchor|lw|ms|pad|fontsize)"
    return re.sub(rf"\b(?:set_)?{looks}\s*[=(]\s*[\[(]?[^\])\n]*[\])]?", " ", code)


def _text_of(output: nbformat.NotebookNode) -> str:
    if output.output_type == "stream":
        return output.text
    text = output.get("data", {}).get("text/plain", "")
    return "" if text.startswith("<") else text
