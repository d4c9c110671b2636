"""The stages of the pipeline on frames that stay in a GPU's memory. `torch` does the work there."""
