"""What networks of plans are trained by: plans name functions of `methods.py`, each of which takes
a `nnr_codec.experiments.training_run.TrainingRun` and returns a bitstream."""
