"""Training. `loop.train` trains a network as a config says, into a run folder."""
