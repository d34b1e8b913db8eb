"""README and the pages of docs/ as text, and their blocks of code."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def page(name):
    return (ROOT / "docs" / name).read_text()


def blocks(language, text):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def run_in_order(texts, names, folder):
    """Run blocks in one session and one folder; no block may write a file of an earlier one."""
    written = {}
    for text in texts:
        exec(compile(text, "a page", "exec"), names)
        for path in (p for p in folder.rglob("*") if p.is_file()):
            assert written.setdefault(path, path.read_bytes()) == path.read_bytes(), path
