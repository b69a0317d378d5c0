"""Tests of the built-in probes."""
