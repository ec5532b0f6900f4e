"""The shipped policies: for each a weights file and a model card. Data, no code."""
