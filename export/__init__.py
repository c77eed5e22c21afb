"""Export: a checkpoint becomes graphs, engines and a verified bundle."""
