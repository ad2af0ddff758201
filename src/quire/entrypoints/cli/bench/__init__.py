"""`quire bench`: a load generator for running servers, and measurements of the engine alone.

The parts that compute are pure and tested by hand-made numbers: `metrics.py`, `arrivals.py`, `http_response.py`,
`event_stream.py`, `datasets.py`. Read first: `serve.py`, `client.py`, `metrics.py`.
"""
