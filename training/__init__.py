"""Training: clips become a checkpoint. `model.py` tells what the model is, `stages/` how it is trained."""
