"""Fakes, a virtual clock, traces and a simulator: the control half of an engine without a model or a device.

Public: applications may test against them. May import: engine and below, the control half only.
Read first: `simulator.py`, `fake_executor.py`, `traces.py`.

```python
from quire.testing.simulator import Simulation
from quire.testing.traces import poisson_trace

report = Simulation(num_blocks=512, max_num_seqs=32).run(poisson_trace(num_requests=100, requests_per_second=5.0))
print(report.num_preemptions, max(timeline.ttft_seconds for timeline in report.timelines.values()))
```
"""
