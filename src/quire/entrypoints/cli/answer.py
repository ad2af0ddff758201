"""Shows a streamed answer while it arrives."""

import sys
import time
from collections.abc import Iterable


def show_answer(pieces: Iterable[str], *, stats: bool) -> None:
    """Writes the pieces to standard output as they come, then a line break. The times go to standard error."""
    begin = time.perf_counter()
    first: float | None = None
    num_pieces = 0
    for piece in pieces:
        if piece and first is None:
            first = time.perf_counter()
        num_pieces += bool(piece)
        print(piece, end="", flush=True)
    print(flush=True)
    if stats:
        end = time.perf_counter()
        waited = (first or end) - begin
        print(f"[first piece after {waited:.2f} s, {num_pieces} pieces in {end - begin:.2f} s]", file=sys.stderr)
