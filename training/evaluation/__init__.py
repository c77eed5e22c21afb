"""How good a checkpoint is: what is measured, against which clips, and the page that shows it."""
