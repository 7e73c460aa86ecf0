"""``builtin:python-docs``: the language reference that CPython carries for ``help()``, about 0.5 MB of English.

The text differs a little between Python versions, and with it every figure measured on it.

    python -m transformer_from_scratch.builtin.python_docs | head
"""

from __future__ import annotations

import sys


def python_docs() -> str:
    """Return all topics of ``pydoc_data``, in alphabetical order, each under its name."""
    from pydoc_data.topics import topics

    return "\n\n".join(f"{name}\n\n{text.strip()}" for name, text in sorted(topics.items())) + "\n"


if __name__ == "__main__":
    sys.stdout.write(python_docs())
