"""How good the depth is: metrics (sums and counts), the evaluation loop, its tables and figures.

`folder.evaluate_to_folder` is what `dff-jax evaluate` calls, `evaluate.evaluated` the loop that training and the
studies call too, `metrics.compute` what to call with one prediction and its truth.
"""
