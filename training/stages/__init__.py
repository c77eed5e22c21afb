"""The training stages, in the order in which a model goes through them: image, inversion, motion."""
