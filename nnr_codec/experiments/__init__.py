"""Core experiments: rate against accuracy of coded networks, on the models and data of whoever runs
them.

Needs the extra `eval`. :mod:`~nnr_codec.experiments.plan` says what a plan is, and
:mod:`~nnr_codec.experiments.subject_source` how it names networks; `runner` measures its `cells`,
each a network (`subject`, `evaluation`) coded by a method (`methods/`) and judged (`measures/`);
`report/` makes tables, plots and a page of them.
"""
