"""Core experiments: rate against accuracy of coded networks, on the models and data of whoever runs
them.

Needs the extra `eval`. :mod:`~nnr_codec.experiments.subject` says what a network under test is,
:mod:`~nnr_codec.experiments.evaluation` runs it.
"""
