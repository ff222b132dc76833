"""Language models that transformers has no class for, written from their published architecture."""
