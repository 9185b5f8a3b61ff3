"""The learned parts, as functional Flax Linen modules: one file a step of the method."""
