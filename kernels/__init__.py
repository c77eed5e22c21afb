"""The operators of the model: a plain reference in torch (`reference.py`), shared by training, tests and export."""
