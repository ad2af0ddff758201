"""The table of defences names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "security.md"


def test_every_test_of_the_table_exists() -> None:
    files = {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}
    last = ""
    found = 0
    for file, name in re.findall(r"`(?:[\w/]*?(test_\w+\.py))?(?:::(\w+))?`", PAGE.read_text(encoding="utf-8")):
        if not file and not name:
            continue
        last = file or last
        # A name without a file belongs to the file that was named before.
        assert last in files, last
        if name:
            assert f"def {name}(" in files[last].read_text(encoding="utf-8"), (last, name)
        found += 1
    assert found >= 30
