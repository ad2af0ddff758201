"""The application of `tests/pure/http`, for tests that take longer than belongs there."""

import importlib.util
import sys
from pathlib import Path

_PATH = Path(__file__).parents[2] / "pure" / "http" / "conftest.py"
_SPEC = importlib.util.spec_from_file_location("http_application", _PATH)
assert _SPEC is not None and _SPEC.loader is not None
_APPLICATION = sys.modules[_SPEC.name] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_APPLICATION)

globals().update({name: value for name, value in vars(_APPLICATION).items() if not name.startswith("_")})
