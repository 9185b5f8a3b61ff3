"""How good the depth is: metrics (sums and counts), the evaluation loop, its tables and figures.

`evaluate.evaluate_to_folder` is what `dff-jax evaluate` calls, `evaluate.evaluate` what training calls
between steps, `metrics.compute` what to call with one prediction and its truth.
"""
