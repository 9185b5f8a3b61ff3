"""Methods side by side: trained on the same data under one budget, measured on the same stacks, in one framework."""
