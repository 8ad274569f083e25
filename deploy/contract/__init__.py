"""What upstream systems may rely on, written down from the code: docs/messages, and the examples in docs/upstream.md.

`python -m deploy.contract` (make docs) writes all of it; a test compares it with what the code says.
"""
