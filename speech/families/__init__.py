"""Model families: one file each, chosen by the `family` key of a checkpoint's wavgate.json or of the config."""
