"""Language models that transformers does not have, one file each; imported where one is loaded."""
