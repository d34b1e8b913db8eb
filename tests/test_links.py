"""Links of README and of the pages lead somewhere, headings included."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)|(?:src|href)=\"([^\"]+)\"")


def prose(path):
    """Without code, where brackets mean other things."""
    text = re.sub(r"^( *)```.*?^\1```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", lambda m: m[0].replace("](", "] ("), text)


def anchors(path):
    """What headings are called in a link, as on GitHub and on the site; ops' sections too."""
    text = prose(path)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    named = re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text)
    titles = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in titles]
    slugs = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
    return {*slugs, *named, *re.findall(r"^::: (maskcl\.\S+)$", text, flags=re.MULTILINE)}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_resolve(path):
    for found in LINK.findall(prose(path)):
        target, _, anchor = "".join(found).partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (path.parent / target).resolve() if target else path
        assert file.is_file(), f"{target} is not there"
        assert file.is_relative_to(ROOT), f"{target} is outside of the checkout"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{file.name} has no heading #{anchor}"


def test_pages_with_code_are_named_in_a_test():
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    for path in PAGES[2:]:
        if re.search(r"^ *```python", path.read_text(), flags=re.MULTILINE):
            assert path.name in tests or path.stem in tests, f"no test runs {path.name}"
