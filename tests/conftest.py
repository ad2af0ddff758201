"""For all tests: the environment that quire gives torch, before anything imports it."""

from quire.worker.threads import prepare_torch

prepare_torch()
