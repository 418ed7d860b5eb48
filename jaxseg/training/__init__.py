"""The training step, the loop around it, and what makes a run survive: checkpoints, signals, several hosts.

Start with `step.train_step` and `loop.train_and_evaluate`; README.md says what a run's folder holds and what resume promises.
"""
