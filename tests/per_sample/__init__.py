"""Tests of the per-sample engine."""
