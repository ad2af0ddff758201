"""Traces of what the device and its host do, on demand."""

import logging
import os
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from quire.errors import ConfigError, InvalidRequestError

logger = logging.getLogger("quire.worker")


class Profiler:
    """Records with torch.profiler between `start` and `stop`. Both belong to the thread that launches the steps: torch
    sees the operators of that thread, and the kernels of the whole process.

    Args:
        folder: Where traces go; made when the first is written. None where the user has named none.
    """

    def __init__(self, folder: str | None) -> None:
        self._folder = None if folder is None else Path(folder).expanduser()
        self._profile: profile | None = None
        self._num_traces = 0

    def start(self) -> None:
        """Begins to record.

        Raises:
            ConfigError: There is no folder, or nothing can be written to it.
            InvalidRequestError: It records already.
        """
        if self._folder is None:
            raise ConfigError(
                "there is no folder for traces", hint="--torch-profiler-dir FOLDER names it", param="torch_profiler_dir"
            )
        if self._profile is not None:
            raise InvalidRequestError("a profile is being recorded already", hint="stop it first")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot write traces to {self._folder}: {error.strerror}", param="torch_profiler_dir"
            ) from error
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities, acc_events=True)
        self._profile.start()

    def stop(self) -> str:
        """Ends the recording and writes it as a trace for chrome://tracing or Perfetto.

        Returns:
            The path of the trace.

        Raises:
            InvalidRequestError: It does not record.
        """
        if self._profile is None:
            raise InvalidRequestError("no profile is being recorded", hint="start one first")
        assert self._folder is not None
        recorded, self._profile = self._profile, None
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        recorded.stop()
        self._num_traces += 1
        path = self._folder / f"quire-{int(time.time())}-{os.getpid()}-{self._num_traces}.json.gz"
        recorded.export_chrome_trace(str(path))
        logger.info("profile written to %s", path)
        return str(path)
