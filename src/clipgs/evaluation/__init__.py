"""Evaluation: retrieval, zero-shot and few-shot classification, baselines, ablations. Protocols: docs/protocols.md."""
