"""The committed reference pages are what the code says."""

import importlib.util
from pathlib import Path

GENERATOR = Path(__file__).parents[3] / "docs" / "generate.py"


def test_the_pages_are_current() -> None:
    spec = importlib.util.spec_from_file_location("docs_generate", GENERATOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, render in module.PAGES.items():
        assert (module.FOLDER / name).read_text(encoding="utf-8") == render(), "run `make docs`"
