"""A page to look at: one self-contained HTML file with sliders through the focal stack and the iterations."""

from dff_jax.pictures.panels.page import TOGETHER_UP_TO, Shown, Stage, Table, page, shown_stack

__all__ = ["TOGETHER_UP_TO", "Shown", "Stage", "Table", "page", "shown_stack"]
