"""Rewritings of a LaTeX answer that keep its meaning, where math-verify misses or misreads the original.

Each rule is applied to both sides. A rule belongs here only if no two answers with different meanings become equal.
"""

from __future__ import annotations

import re
from collections.abc import Callable

UNITS: dict[str, str] = {
    alias: unit
    for unit, aliases in {
        "mm": "mm millimeter millimeters millimetre millimetres",
        "cm": "cm centimeter centimeters centimetre centimetres",
        "m": "m meter meters metre metres",
        "km": "km kilometer kilometers kilometre kilometres",
        "in": "in inch inches",
        "ft": "ft foot feet",
        "yd": "yd yard yards",
        "mi": "mi mile miles",
        "s": "s sec second seconds",
        "min": "min minute minutes",
        "h": "h hr hour hours",
        "day": "day days",
        "week": "week weeks",
        "year": "year years",
        "g": "g gram grams",
        "kg": "kg kilogram kilograms",
        "lb": "lb lbs pound pounds",
        "oz": "oz ounce ounces",
        "L": "L liter liters litre litres",
        "mL": "mL ml milliliter milliliters",
        "dollar": "dollar dollars",
        "cent": "cent cents",
        "mph": "mph",
        "km/h": "km/h kph",
        "m/s": "m/s",
        "degree": "degree degrees",
        "radian": "radian radians rad",
        "": "unit units",
    }.items()
    for alias in aliases.split()
}
"""Canonical unit by the names that answers use; "" is compatible with every other."""

_TEXT = r"\\(?:text|textrm|textnormal|mathrm|mbox|hbox|rm|operatorname)\s*\{\s*"
_POWER = r"(?:\s*\^\s*\{?([23])\}?)?"
IN_TEXT = re.compile(rf"(.*[\d}}\w])\s*{_TEXT}\s*([A-Za-z/. ]+?){_POWER}\s*\}}{_POWER}\s*")
# Bare: at least two letters, or one after a space: "2m" is two times m.
BARE = re.compile(rf"([\d.,/{{}}\\a-z]*\d)\s+([A-Za-z/]+){_POWER}\s*|([\d.,]*\d)(cm|mm|km|ft|in|kg|lb|mph){_POWER}\s*")
DEGREES = re.compile(r"(.*?[\d}])\s*(?:\^\s*\{?\s*\\circ\s*\}?|°)\s*")
NOTHING = r"none|no\s+(?:real\s+)?solutions?|(?:the\s+)?empty\s+set"


def _repeating(match: re.Match[str]) -> str:
    whole, fixed, period = match[1] or "0", match[2], match[3]
    denominator = (10 ** len(period) - 1) * 10 ** len(fixed)
    numerator = int(whole + fixed + period) - int(whole + fixed)
    return rf"\frac{{{numerator}}}{{{denominator}}}"


RULES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^\s*(?:\$|\\\(|\\\[)+|(?:\$|\\\)|\\\])+\s*$", ""),  # math delimiters around the whole answer
    (r"\\(?:displaystyle|left(?![a-z])|right(?![a-z])|bigl?|bigr|Bigl?|Bigr)(?![a-zA-Z])", ""),
    (r"\\[dt]frac", r"\\frac"),
    (r"(?<=\d)(?:\\[,!]|\{,\})(?=\d{3}(?!\d))", ""),  # thin spaces between thousands
    (r"\\[,;:! ]|~|\\quad|\\qquad", " "),
    (r"\{:\}|\\colon", ":"),  # 3{:}30
    (r"[−–]", "-"),
    (r"\\varnothing|∅", r"\\emptyset"),
    (rf"(?i)^\s*(?:\\(?:text|textbf|mathrm)\s*\{{)?\s*(?:{NOTHING})\s*\.?\s*\}}?\s*$", r"\\emptyset"),
    (r"(?<![\d.])(\d*)\.(\d*)\\(?:overline|bar)\s*\{(\d+)\}", _repeating),  # 0.1\overline{6}
    (r"^\s*(-?\d+(?:\.\d+)?)[eE]([+-]?\d+)\s*$", r"\1 \\times 10^{\2}"),
    (r"(?<![\d.}])(\d+)\s+(\d+)\s*/\s*(\d+)(?!\d)", r"\1\\frac{\2}{\3}"),  # 3 1/2
    (r"(?<![\d.}])(\d+)\s*\\frac\s*(\d)\s*(\d)(?!\d)", r"\1\\frac{\2}{\3}"),  # 1\frac12
    (r"^\s*(-?\d+)\s*\^?\s*\{?\s*\\(?:text|mathrm|textrm)\s*\{\s*(?:st|nd|rd|th)\s*\}\s*\}?\s*$", r"\1"),
    (r"^\s*\\text\s*\{\s*(\d[\d.,]*)\s+([^{}]*)\}\s*$", r"\1 \\text{ \2}"),  # \text{4 dollars}
    (r"\\hat\s*\{?\s*\\(?:mathbf|bf|boldsymbol)\s*\{\s*([ijk])\s*\}\s*\}?", r" v_{\1} "),
    (r"\\(?:mathbf|boldsymbol|bm|vec|hat)\s*\{\s*\\?([ijk])(?:math)?\s*\}", r" v_{\1} "),  # unit vectors
    (r"(?<=[\d}a-z)])\.\s*$", ""),
)
_COMPILED = tuple((re.compile(pattern), replacement) for pattern, replacement in RULES)


def normalise(text: str) -> str:
    """The answer rewritten by all rules, in their order."""
    for pattern, replacement in _COMPILED:
        text = pattern.sub(replacement, text)
    return " ".join(text.split())


def split_unit(text: str) -> tuple[str, str | None]:
    """An answer without its unit, and the unit: a canonical name with its power, "" for just "units", None for none."""
    if match := DEGREES.fullmatch(text):
        return match[1], "degree"
    if (match := IN_TEXT.fullmatch(text)) and (unit := _canonical(match[2], match[3] or match[4])) is not None:
        return match[1].strip(), unit
    if match := BARE.fullmatch(text):
        value, name, power = (match[1], match[2], match[3]) if match[1] else (match[4], match[5], match[6])
        if (unit := _canonical(name, power)) is not None:
            return value.strip(), unit
    return text, None


def _canonical(name: str, power: str | None) -> str | None:
    """ "square feet" -> "ft^2"; None if no such unit is known."""
    words = name.replace(".", "").split()
    powers = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}
    if len(words) == 2 and words[0] in powers and power is None:
        words, power = words[1:], powers[words[0]]
    if len(words) != 1 or words[0] not in UNITS:
        return None
    unit = UNITS[words[0]]
    return f"{unit}^{power}" if unit and power else unit
