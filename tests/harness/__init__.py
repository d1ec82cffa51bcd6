"""Real peers on free ports in temporary folders: engine, registries, a faulty proxy, the daemon itself.

Shared by the tests, the demo and the benchmarks, so nothing here knows of a test runner. Everything is synchronous and
runs outside the caller's event loop: an `async` test may call it between awaits.
"""
