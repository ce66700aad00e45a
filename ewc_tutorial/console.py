"""Text for consoles that cannot print every sign."""

from __future__ import annotations

import sys

#: What signs are written as where the console has no such characters.
_PLAIN: dict[str, str | int | None] = {
    **{"✓": "OK", "✗": "X", "○": "-", "λ": "lambda", "θ": "theta", "η": "eta", "μ": "mu"},
    **{"Σ": "sum", "√": "sqrt", "½": "1/2", "²": "^2", "−": "-", "·": "*", "≤": "<=", "≥": ">="},
    **{"…": "...", "→": "->", "×": "x", "∞": "inf"},
}


def printable(text: str) -> str:
    """Return ``text`` with nothing in it that standard output cannot encode."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        plain = text.translate(str.maketrans(_PLAIN))
        return plain.encode(encoding, "replace").decode(encoding)
    return text
