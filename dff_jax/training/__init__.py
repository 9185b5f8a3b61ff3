"""Training: objective, optimizer, step, devices, checkpoints, logs and the loop, whose door is
`loop.train`."""
